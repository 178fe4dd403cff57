"""Every key of a training configuration: one declaration each, for whoever reads, checks or resumes a run."""

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import ml_collections
from ml_collections.config_dict import placeholder

from def_jax.baselines.methods import METHODS, OPTIONS
from def_jax.baselines.names import nearest
from def_jax.checks import check_choice, check_flag, check_integer, check_number, is_number
from def_jax.trainer.configuration.optimizers import OPTIMIZERS
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS

__all__ = ['FORMER', 'KEYS', 'SECTIONS', 'Key', 'get_defaults']

FORMER = {'wire_dtype': ' Write bits=8 for int8, 16 for bfloat16 or float16, 32 for float32.'}


class Key(NamedTuple):
    """One key. Its values have the type of its default, unless something else is said."""

    default: Any  # its value if nobody sets it; None where the method chooses
    help: str
    least: int = 0  # of an integer
    bits: int = 31  # of an integer
    below: float = math.inf  # of another number, which is at least 0
    words: Mapping[str, str] = {}  # the only ones allowed, each with its meaning
    allows: tuple[Callable[[Any], bool], str] | None = None  # whether a value is allowed, and which are
    library: type | None = None  # of the values, if it is an argument of the library, which checks it
    change: Literal['never', 'always', 'regroups', 'with_workers'] = 'never'  # when a run is resumed
    table: Mapping[str, Any] | None = None  # the factories that have a name, if it names a factory
    passed: Mapping[str, Any] = {}  # to the factory: `...` if it must take it, else the key's value if not

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless the value of a key that is not the library's is allowed."""
        if self.words:
            check_choice(name, value, self.words)
        elif self.allows and not self.allows[0](value):
            near = nearest(value, self.table or ())
            raise ValueError(f'{name}={value!r} must be {self.allows[1]}.{near}')
        elif isinstance(self.default, bool):
            check_flag(name, value)
        elif isinstance(self.default, int):
            check_integer(name, value, self.least, self.help, bits=self.bits)
        elif isinstance(self.default, float):
            check_number(name, value, 0, self.below, self.help, below=True)


def _factory(
    default: str, table: Mapping[str, Any], help: str, passed: Mapping[str, Any] | None = None
) -> Key:
    def allows(value: Any) -> bool:
        return isinstance(value, str) and (value in table or ':' in value or value == default)

    paths = 'or an import path such as my_package.my_module:factory' + ', or empty' * (not default)
    allowed = f'one of {", ".join(table)}, {paths}'
    return Key(default, help, allows=(allows, allowed), table=table, passed=passed or {})


def _are_drops(drops: Any) -> bool:
    shares = isinstance(drops, (tuple, list)) and all(is_number(d) and 0 < d < 1 for d in drops)
    return shares and list(drops) == sorted(set(drops))


def _of_library(**helps: str) -> dict[str, Key]:
    return {name: Key(OPTIONS[name], help, library=type(OPTIONS[name])) for name, help in helps.items()}


_MODELS: Mapping[str, Any] = ChainMap(LANGUAGE_MODELS, MODELS)  # type: ignore[arg-type]  # only read

_IS_DICT = (lambda x: isinstance(x, (ml_collections.ConfigDict, dict))), 'a dict of its arguments'

SECTIONS: dict[str, dict[str, Key]] = {
    'Method': {
        'method': _factory('def', METHODS, 'how the workers communicate', {'axis_name': ...}),
        'ratio': Key(64.0, 'one element in `ratio` is sent; of `def_q`, one byte in `ratio`', library=float),
        'bits': Key(None, 'of a number: 1, 2, 4, 8, 16 or 32; None leaves it to the method', library=int),
        'order': Key(None, 'of the blocks: `random`, `shuffled` or `cyclic`; None likewise', library=str),
        'allocation': Key(None, 'sizes of the blocks: `proportional` or `balanced`; likewise', library=str),
        'detach': Key(None, 'λ, or `auto`, which follows λ*(t); None likewise', library=object),
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
        'num_workers': Key(16, 'K, over all devices', least=1, change='regroups'),
        'workers_per_device': Key(
            1, 'virtual workers: the same run on fewer devices', least=1, change='regroups'
        ),
        'shards_per_worker': Key(
            1, 'devices that share its matrices and examples', least=1, change='regroups'
        ),
        'sequential_workers': Key(
            False, 'virtual workers take gradients in turn: convolutions stay ungrouped', change='always'
        ),
        'elastic': Key(False, 'goes on while processes come and go', change='always'),
        'min_workers': Key(1, 'with fewer, an elastic run waits', least=1, change='always'),
        'patience': Key(600, 'seconds that it waits before it stops', change='always'),
        'fake_devices': Key(False, 'the devices are simulated on this CPU', change='always'),
    },
    'Task, data set and model': {
        'task': _factory(
            'image_classification', TASKS, 'the loss and the metrics', {'model': ..., 'dataset': ...}
        ),
        'dataset': _factory('digits', FACTORIES, 'the examples'),
        'data_dir': Key(
            *('', "where TFDS stores data sets; empty for TFDS's default"),
            allows=(lambda path: isinstance(path, str), "a path, or empty for TFDS's default"),
            change='always',
        ),
        'train_examples': Key(0, 'limits the training split to its first ones; 0 means all'),
        'validation_examples': Key(
            0, 'holds out the last training examples; 0 keeps the validation split, if there is one'
        ),
        'test_examples': Key(0, 'limits the test split to its first examples; 0 means all'),
        'model': _factory('vgg_digits', _MODELS, 'the network'),
        'compute_dtype': Key(
            *('float32', 'dtype of the network; parameters stay float32'),
            words={'float32': 'the default', 'bfloat16': 'faster where the hardware has it'},
        ),
    },
    'Optimization': {
        'batch_size': Key(128, 'examples per step, over all workers', least=1, change='with_workers'),
        'accumulate': Key(1, "equal parts of a worker's batch, to save memory", least=1),
        'num_epochs': Key(280, "the run's length", least=1),
        'num_steps': Key(0, "the run's length in steps; 0 means `num_epochs`"),
        'learning_rate': Key(0.1, 'η, the peak of the schedule'),
        'schedule': _factory(
            *('drops', SCHEDULES, '`cosine` follows a warm-up; `wsd` is warm-up, stable, decay'),
            passed={'learning_rate': ..., 'num_steps': ..., 'learning_rate_drops': (0.5, 0.75)},
        ),
        'learning_rate_drops': Key(
            *((0.5, 0.75), 'for `drops`: fractions of the run; the rate drops tenfold at each'),
            allows=(_are_drops, 'increasing fractions of the run in (0, 1), e.g. (0.5, 0.75)'),
        ),
        'optimizer': _factory(
            *('sgd', OPTIMIZERS, "the workers' own optimizer"),
            passed={'learning_rate': ..., 'momentum': 0.9, 'weight_decay': 0},
        ),
        'momentum': Key(0.9, 'of `sgd`; an option of the others', below=1),
        'weight_decay': Key(5e-4, "`sgd`'s L2 penalty; decoupled in the others"),
        'seed': Key(0, 'of the initial parameters, the batches and the blocks', bits=32),
    },
    'Output': {
        'eval_every_epochs': Key(20, 'epochs between evaluations; each writes a checkpoint', least=1),
        'eval_every_steps': Key(0, 'the same in steps; 0 means `eval_every_epochs`'),
        'evaluate_on': Key(
            *('test', '`validation` for whatever compares runs'),
            words={'test': 'for results', 'validation': 'for choices'},
        ),
        'log_every_steps': Key(20, 'steps per training record', least=1, change='always'),
        'evaluate_train_examples': Key(0, 'how many training examples are also evaluated'),
        'recalibrate_batches': Key(0, 'that recalibrate BatchNorm before each evaluation'),
        'diagnostics_every': Key(0, 'steps between `def_jax.diagnostics`; 0 means never', change='always'),
        'check_replicas_every': Key(0, 'steps between comparisons of copies; 0: never', change='always'),
        'keep_checkpoints': Key(2, 'how many checkpoints are kept', least=1, change='always'),
    },
}
for _keys in SECTIONS.values():  # what a factory is given besides
    for _name in [name for name, key in _keys.items() if key.table]:
        _keys[f'{_name}_options'] = Key({}, f'further arguments of `{_name}`', allows=_IS_DICT)
KEYS: dict[str, Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}


def get_defaults() -> ml_collections.ConfigDict:
    """A new, complete configuration for get_config functions to modify, which `arguments.override` locks.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    # A key without a default knows the type of its values.
    unset = {name: placeholder(key.library) for name, key in KEYS.items() if key.default is None}
    return ml_collections.ConfigDict({name: key.default for name, key in KEYS.items()} | unset)
