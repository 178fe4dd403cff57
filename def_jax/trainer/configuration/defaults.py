"""Every key of a training configuration: one declaration each, for whoever reads, checks or resumes a run."""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import ml_collections
from ml_collections.config_dict import placeholder

from def_jax.baselines.methods import METHODS, OPTIONS
from def_jax.checks import check_choice, check_flag, check_integer, check_number, is_number, nearest
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.optimizers import OPTIMIZERS
from def_jax.trainer.schedules import SCHEDULES
from def_jax.trainer.tasks import TASKS

__all__ = ['FORMER', 'KEYS', 'SECTIONS', 'Key', 'get_defaults']

FORMER = {'wire_dtype': ' Write bits=8 for int8, 16 for bfloat16 or float16, 32 for float32.'}


class Key(NamedTuple):
    """One key."""

    default: Any  # its value if nobody sets it; None where the method chooses
    help: str
    check: Callable[[str, Any], None] | None = None  # raises ValueError; None: the library checks it
    change: Literal['never', 'always', 'regroups', 'with_workers'] = 'never'  # when a run is resumed
    kind: type | None = None  # of the values, where the default is None
    table: Mapping[str, Any] | None = None  # the factories that have a name, if the key names a factory
    passed: Mapping[str, Any] = {}  # to that factory: `...` if it must take it, else the key's value if not


def _of_library(**helps: str) -> dict[str, Key]:
    return {name: Key(OPTIONS[name], help) for name, help in helps.items()}


def _count(default: int, low: int, help: str, change: Any = 'never', bits: int = 31) -> Key:
    return Key(default, help, lambda name, x: check_integer(name, x, low, help, bits=bits), change)


def _number(default: float, high: float, help: str) -> Key:
    return Key(default, help, lambda name, x: check_number(name, x, 0, high, help, below=True))


def _choice(help: str, **meanings: str) -> Key:
    return Key(next(iter(meanings)), help, lambda name, x: check_choice(name, x, meanings))


def _flag(help: str) -> Key:
    return Key(False, help, check_flag, 'always')


def _other(accepts: Callable[[Any], bool], allowed: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not accepts(value):
            raise ValueError(f'{name}={value!r} must be {allowed}.')

    return check


def _factory(default: str, table: Mapping[str, Any], help: str, **passed: Any) -> Key:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not (value in table or ':' in value or value == default):
            paths = 'or an import path such as my_package.my_module:factory' + ', or empty' * (not default)
            allowed = f'one of {", ".join(table)}, {paths}'
            raise ValueError(f'{name}={value!r} must be {allowed}.{nearest(value, table)}')

    return Key(default, help, check, table=table, passed=passed)


def _are_drops(drops: Any) -> bool:
    shares = isinstance(drops, (tuple, list)) and all(is_number(d) and 0 < d < 1 for d in drops)
    return shares and list(drops) == sorted(set(drops))


_MODELS: Mapping[str, Any] = ChainMap(LANGUAGE_MODELS, MODELS)  # type: ignore[arg-type]  # only read

SECTIONS: dict[str, dict[str, Key]] = {
    'Method': {
        'method': _factory('def', METHODS, 'how the workers communicate', axis_name=...),
        'ratio': Key(64.0, 'one element in `ratio` is sent; of `def_q`, one byte in `ratio`'),
        'bits': Key(None, 'of a number: 1, 2, 4, 8, 16 or 32; None leaves it to the method', kind=int),
        'order': Key(None, 'of the blocks: `random`, `shuffled` or `cyclic`; None likewise', kind=str),
        'allocation': Key(None, 'sizes of the blocks: `proportional` or `balanced`; likewise', kind=str),
        'detach': Key(None, 'λ, or `auto`, which follows λ*(t); None likewise', kind=object),
        **_of_library(
            every='steps per message; workers take local steps in between',
            decay='multiplies the residual at every step',
            average_every="SAEF's period P: steps between averages of the residuals; 0: never",
            rank="of PowerSGD's factors; 0: the largest that sends no more than `ratio` allows",
            chunk='the longest edge of a chunk of DeMo or SparseLoCo',
            freeze_after='dense steps of 1-bit Adam before its second moment is frozen',
            skip_nonfinite='all workers skip a step with an update that is not finite',
            overlap='messages travel during the next gradient; x is one step behind',
        ),
        'outer': _factory('', OPTIMIZERS, 'the optimizer that applies the message; empty to add it'),
    },
    'Workers': {
        'num_workers': _count(16, 1, 'K, over all devices', 'regroups'),
        'workers_per_device': _count(1, 1, 'virtual workers: the same run on fewer devices', 'regroups'),
        'shards_per_worker': _count(1, 1, 'devices that share its matrices and examples', 'regroups'),
        'sequential_workers': _flag('virtual workers take gradients in turn: convolutions stay ungrouped'),
        'elastic': _flag('goes on while processes come and go'),
        'min_workers': _count(1, 1, 'with fewer, an elastic run waits', 'always'),
        'patience': _count(600, 0, 'seconds that it waits before it stops', 'always'),
        'fake_devices': _flag('the devices are simulated on this CPU'),
    },
    'Task, data set and model': {
        'task': _factory('image_classification', TASKS, 'the loss and the metrics', model=..., dataset=...),
        'dataset': _factory('digits', FACTORIES, 'the examples'),
        'data_dir': Key(
            *('', "where TFDS stores data sets; empty for TFDS's default"),
            _other(lambda value: isinstance(value, str), "a path, or empty for TFDS's default"),
            'always',
        ),
        'train_examples': _count(0, 0, 'limits the training split to its first ones; 0 means all'),
        'validation_examples': _count(
            0, 0, 'holds out the last training examples; 0 keeps the validation split, if there is one'
        ),
        'test_examples': _count(0, 0, 'limits the test split to its first examples; 0 means all'),
        'model': _factory('vgg_digits', _MODELS, 'the network'),
        'compute_dtype': _choice(
            'dtype of the network; parameters stay float32',
            **{'float32': 'the default', 'bfloat16': 'faster where the hardware has it'},
        ),
    },
    'Optimization': {
        'batch_size': _count(128, 1, 'examples per step, over all workers', 'with_workers'),
        'accumulate': _count(1, 1, "equal parts of a worker's batch, to save memory"),
        'num_epochs': _count(280, 1, "the run's length"),
        'num_steps': _count(0, 0, "the run's length in steps; 0 means `num_epochs`"),
        'learning_rate': _number(0.1, math.inf, 'η, the peak of the schedule'),
        'schedule': _factory(
            *('drops', SCHEDULES, '`cosine` follows a warm-up; `wsd` is warm-up, stable, decay'),
            **{'learning_rate': ..., 'num_steps': ..., 'learning_rate_drops': (0.5, 0.75)},
        ),
        'learning_rate_drops': Key(
            *((0.5, 0.75), 'for `drops`: fractions of the run; the rate drops tenfold at each'),
            _other(_are_drops, 'increasing fractions of the run in (0, 1), e.g. (0.5, 0.75)'),
        ),
        'optimizer': _factory(
            *('sgd', OPTIMIZERS, "the workers' own optimizer"),
            **{'learning_rate': ..., 'momentum': 0.9, 'weight_decay': 0},
        ),
        'momentum': _number(0.9, 1, 'of `sgd`; an option of the others'),
        'weight_decay': _number(5e-4, math.inf, "`sgd`'s L2 penalty; decoupled in the others"),
        'seed': _count(0, 0, 'of the initial parameters, the batches and the blocks', bits=32),
    },
    'Output': {
        'eval_every_epochs': _count(20, 1, 'epochs between evaluations; each writes a checkpoint'),
        'eval_every_steps': _count(0, 0, 'the same in steps; 0 means `eval_every_epochs`'),
        'evaluate_on': _choice(
            '`validation` for whatever compares runs', test='for results', validation='for choices'
        ),
        'log_every_steps': _count(20, 1, 'steps per training record', 'always'),
        'evaluate_train_examples': _count(0, 0, 'how many training examples are also evaluated'),
        'recalibrate_batches': _count(0, 0, 'that recalibrate BatchNorm before each evaluation'),
        'diagnostics_every': _count(0, 0, 'steps between `def_jax.diagnostics`; 0 means never', 'always'),
        'check_replicas_every': _count(0, 0, 'steps between comparisons of copies; 0: never', 'always'),
        'keep_checkpoints': _count(2, 1, 'how many checkpoints are kept', 'always'),
    },
}
_is_dict = _other(lambda x: isinstance(x, (ml_collections.ConfigDict, dict)), 'a dict of its arguments')
for _keys in SECTIONS.values():  # what a factory is given besides
    for _name in [name for name, key in _keys.items() if key.table]:
        _keys[f'{_name}_options'] = Key({}, f'further arguments of `{_name}`', _is_dict)
KEYS: dict[str, Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}


def get_defaults() -> ml_collections.ConfigDict:
    """A new, complete configuration for get_config functions to modify, which `arguments.override` locks.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    fields = {name: placeholder(key.kind) if key.kind else key.default for name, key in KEYS.items()}
    return ml_collections.ConfigDict(fields)
