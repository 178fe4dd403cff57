"""Every key of a training configuration: one declaration each, for whoever reads, checks or resumes a run."""

import contextlib
import itertools
import json
import math
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import placeholder

from def_jax.baselines.methods import METHODS, OPTIONS, nearest
from def_jax.ground.arguments import check_flag, check_integer, check_number, is_number
from def_jax.trainer.configuration.schedules import OPTIMIZERS, SCHEDULES
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS

__all__ = ['KEYS', 'LIBRARY', 'SECTIONS', 'Key', 'get_defaults', 'override']

# Keys that are arguments of the library, which checks them; here, a worker of one device has inside=1.
LIBRARY = [name for name in OPTIONS if name not in ('outer', 'inside')]


def _is_json(value: Any) -> bool:
    """Whether a run can record a dict."""
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(ml_collections.ConfigDict(value).to_dict())
        return True
    return False


class Key(NamedTuple):
    """One key. Its values have the type of its default; numbers are at least 0."""

    default: Any  # its value if nobody sets it; None where the method chooses
    help: str
    table: Mapping[str, Any] = {}  # the factories that have a name, if it names a factory
    least: int = 0  # of an integer
    below: float = math.inf  # of another number
    words: tuple[str, ...] = ()  # the only ones allowed
    # Whether it may change on resumption; what `grows` may only rise, and 0 stays 0.
    change: Literal['never', 'always', 'regroups', 'with_workers', 'grows'] = 'never'

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError unless the value of a key that is not the library's is allowed."""
        kind, known = type(self.default), [self.default, *self.words, *self.table]
        if kind is bool:
            return check_flag(name, value)
        if kind is int:
            return check_integer(name, value, self.least, self.help, bits=32)
        if kind is float:
            return check_number(name, value, 0, self.below, self.help, below=True)
        if kind is tuple:
            ends = (0, *value, 1) if isinstance(value, (tuple, list)) else ()
            fits = bool(ends) and all(is_number(b) and a < b for a, b in itertools.pairwise(ends))
            allowed = 'increasing fractions of the run in (0, 1), e.g. (0.5, 0.75)'
        elif kind is dict:
            fits = isinstance(value, (ml_collections.ConfigDict, dict)) and _is_json(value)
            allowed = 'a dict of its arguments: numbers, text, lists and dicts of these'
        elif len(known) == 1:
            fits, allowed = isinstance(value, str), 'a path'
        else:
            fits = isinstance(value, str) and (value in known or (':' in value and bool(self.table)))
            path = ' or an import path such as my_package.my_module:factory' * bool(self.table)
            allowed = f'one of {", ".join(each or "empty" for each in dict.fromkeys(known))}{path}'
        if not fits:
            raise ValueError(f'{name}={value!r} must be {allowed}.{nearest(value, known)}')
        return None


SECTIONS: dict[str, dict[str, Key]] = {
    'Method': {
        'method': Key('def', 'how the workers communicate', METHODS),
        'ratio': Key(64.0, 'one element in `ratio` is sent; of `def_q`, one byte in `ratio`'),
        'bits': Key(None, 'of a number: 1, 2, 4, 8, 16 or 32; None leaves it to the method'),
        'order': Key(None, 'of the blocks: `random`, `shuffled` or `cyclic`; None likewise'),
        'allocation': Key(None, 'sizes of the blocks: `proportional` or `balanced`; likewise'),
        'detach': Key(None, 'λ, or `auto`, which follows λ*(t); None likewise'),
        'every': Key(1, 'steps per message; workers take local steps in between'),
        'decay': Key(1.0, 'multiplies the residual at every step'),
        'average_every': Key(0, "SAEF's period P: steps between averages of the residuals; 0: never"),
        'rank': Key(0, "of PowerSGD's factors; 0: the largest that sends no more than `ratio` allows"),
        'chunk': Key(64, 'the longest edge of a chunk of DeMo or SparseLoCo'),
        'error_decay': Key(0.95, "multiplies SparseLoCo's error at every message"),
        'freeze_after': Key(100, 'dense steps of 1-bit Adam before its second moment is frozen'),
        'skip_nonfinite': Key(False, 'all workers skip a step with an update that is not finite'),
        'overlap': Key(False, 'messages travel during the next gradient; x is one step behind'),
        'outer': Key('', "applies the message; empty for the method's: DiLoCo's own, else added", OPTIMIZERS),
    },
    'Workers': {
        'num_workers': Key(16, 'K, over all devices', least=1, change='regroups'),
        'inside': Key(1, 'devices of a worker, each with its part of the batch', least=1, change='regroups'),
        'workers_per_device': Key(1, 'virtual workers: the run on fewer devices', least=1, change='regroups'),
        'shards_per_worker': Key(1, 'devices that share its tensors and batch', least=1, change='regroups'),
        'sequential_workers': Key(
            False,
            'a device computes its virtual workers one after another: faster for convolutions',
            change='always',
        ),
        'elastic': Key(False, 'goes on while processes come and go', change='always'),
        'min_workers': Key(1, 'with fewer, an elastic run waits', least=1, change='always'),
        'patience': Key(600, 'seconds that it waits before it stops', change='always'),
        'fake_devices': Key(False, 'the devices are simulated on this CPU', change='always'),
    },
    'Task, data set and model': {
        'task': Key('image_classification', 'loss and metrics', TASKS),
        'dataset': Key('digits', 'the examples', FACTORIES),
        'data_dir': Key('', "where TFDS stores data sets; empty for TFDS's default", change='always'),
        'train_examples': Key(0, 'limits the training split to its first ones; 0 means all'),
        'validation_examples': Key(0, 'holds out the last training ones; 0 keeps the validation split'),
        'test_examples': Key(0, 'limits the test split to its first examples; 0 means all', change='always'),
        'model': Key('vgg_digits', 'the network', ChainMap(LANGUAGE_MODELS, MODELS)),
        'compute_dtype': Key('float32', 'of the network, not of parameters', words=('float32', 'bfloat16')),
    },
    'Optimization': {
        'batch_size': Key(128, 'examples per step, over all workers', least=1, change='with_workers'),
        'accumulate': Key(1, "equal parts of a worker's batch, one after another, to save memory", least=1),
        'num_epochs': Key(280, "the run's length", least=1, change='grows'),
        'num_steps': Key(0, 'its length in steps; unless 0, `num_epochs` has no effect', change='grows'),
        'learning_rate': Key(0.1, 'η, the peak of the schedule'),
        'schedule': Key('drops', '`cosine` follows a warm-up; `wsd` is warm-up, stable, decay', SCHEDULES),
        'learning_rate_drops': Key((0.5, 0.75), 'fractions of the run at which `drops` divides it by ten'),
        'optimizer': Key('sgd', "the workers' own optimizer", OPTIMIZERS),
        'momentum': Key(0.9, 'of `sgd`; an option of the others', below=1),
        'weight_decay': Key(5e-4, "`sgd`'s L2 penalty; decoupled in the others"),
        'seed': Key(0, 'of the initial parameters, the batches and the blocks'),
    },
    'Output': {
        'eval_every_epochs': Key(
            20, 'epochs between evaluations, each with a checkpoint', least=1, change='always'
        ),
        'eval_every_steps': Key(0, 'in steps; unless 0, `eval_every_epochs` has no effect', change='always'),
        'evaluate_on': Key(
            'test',
            '`validation` for runs that choose anything',
            words=('test', 'validation'),
            change='always',
        ),
        'log_every_steps': Key(20, 'steps per training record', least=1, change='always'),
        'evaluate_train_examples': Key(0, 'how many training examples are also evaluated', change='always'),
        'recalibrate_batches': Key(
            0, 'training batches that recalibrate BatchNorm before an evaluation; 0 for none', change='always'
        ),
        'diagnostics_every': Key(0, 'steps between `def_jax.diagnostics`; 0 means never', change='always'),
        'check_replicas_every': Key(0, 'steps between comparisons of copies; 0: never', change='always'),
        'keep_checkpoints': Key(2, 'how many checkpoints are kept', least=1, change='always'),
    },
}
for _keys in SECTIONS.values():  # what a factory is given besides
    for _name in [name for name, key in _keys.items() if key.table]:
        _keys[f'{_name}_options'] = Key({}, f'further arguments of `{_name}`')
KEYS: dict[str, Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}


def get_defaults() -> ml_collections.ConfigDict:
    """A new, complete configuration for get_config functions to modify, which `override` ends.

    >>> override(get_defaults(), 'method=ef,ratio=256').ratio
    256.0
    """
    unset = {name: placeholder(object) for name, key in KEYS.items() if key.default is None}
    return ml_collections.ConfigDict({name: key.default for name, key in KEYS.items()} | unset)


def override(config: ml_collections.ConfigDict, arg: str | None) -> ml_collections.ConfigDict:
    """Applies the settings after the colon of --config=FILE:key=value,key=value; ends every get_config.

    A value with a comma in it needs --config.key=value instead.
    """
    if not arg:  # a config flag would write the whole configuration as YAML for its help
        return config
    argv, values = ['', *(f'--config.{each}' for each in arg.split(',') if each)], flags.FlagValues()
    options = {'lock_config': False, 'accept_new_attributes': True, 'sys_argv': argv}
    config_flags.DEFINE_config_dict('config', config, flag_values=values, **options)
    values(argv)
    return config
