"""Every key of a training configuration: one declaration each, for whoever reads, checks or resumes a run."""

from collections import ChainMap

import ml_collections

from def_jax.baselines.methods import METHODS, OPTIONS
from def_jax.trainer.configuration.keys import (
    ARGUMENTS,
    FLAG,
    LIBRARY,
    Key,
    Rule,
    at_least,
    named,
    one_of,
    real,
)
from def_jax.trainer.configuration.optimizers import OPTIMIZERS
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS

__all__ = ['KEYS', 'SECTIONS', 'get_defaults']

_DROPS = Rule(
    lambda drops: (
        isinstance(drops, (tuple, list))
        and all(isinstance(d, (int, float)) and 0 < d < 1 for d in drops)
        and list(drops) == sorted(set(drops))
    ),
    'increasing fractions of the run, each in (0, 1), e.g. (0.5, 0.75)',
)
_PATH = Rule(lambda value: isinstance(value, str), "a path, or empty for TFDS's default")
_MODELS: ChainMap[str, object] = ChainMap(LANGUAGE_MODELS, MODELS)  # type: ignore[arg-type]  # nothing is written to them
SECTIONS: dict[str, dict[str, Key]] = {
    'Method': {
        'method': Key('def', named(METHODS), 'how the workers communicate', required=('axis_name',)),
        'ratio': Key(64.0, LIBRARY, 'one element in `ratio` is sent; of `def_q`, one byte in `ratio`'),
        'bits': Key(
            None,
            LIBRARY,
            'of a number in a message: 1, 2, 4, 8, 16 or 32; None leaves this and what follows to the method',
            kind=int,
        ),
        'order': Key(None, LIBRARY, 'of the blocks: `random`, `shuffled` or `cyclic`', kind=str),
        'allocation': Key(None, LIBRARY, 'sizes of the blocks: `proportional` or `balanced`', kind=str),
        'detach': Key(None, LIBRARY, 'λ, or `auto`, which follows λ*(t)', kind=object),
        'every': Key(OPTIONS['every'], LIBRARY, 'steps per message; workers take local steps in between'),
        'decay': Key(OPTIONS['decay'], LIBRARY, 'multiplies the residual at every step'),
        'average_every': Key(
            OPTIONS['average_every'],
            LIBRARY,
            "SAEF's period P: steps between averages of the residuals; 0: never",
        ),
        'rank': Key(
            OPTIONS['rank'],
            LIBRARY,
            "of PowerSGD's factors; 0: the largest that sends no more than `ratio` allows",
        ),
        'chunk': Key(OPTIONS['chunk'], LIBRARY, 'the longest edge of a chunk of DeMo or SparseLoCo'),
        'freeze_after': Key(
            OPTIONS['freeze_after'], LIBRARY, 'dense steps of 1-bit Adam before its second moment is frozen'
        ),
        'skip_nonfinite': Key(False, LIBRARY, 'all workers skip a step with an update that is not finite'),
        'overlap': Key(False, LIBRARY, 'messages travel during the next gradient; x is one step behind'),
        'outer': Key('', named(OPTIMIZERS, ', or empty to add it'), 'the optimizer that applies the message'),
    },
    'Workers': {
        'num_workers': Key(16, at_least(1), 'K, over all devices', 'regroups'),
        'workers_per_device': Key(
            1, at_least(1), 'virtual workers: the same run on fewer devices', 'regroups'
        ),
        'shards_per_worker': Key(1, at_least(1), 'devices that share its matrices and examples', 'regroups'),
        'sequential_workers': Key(
            False, FLAG, 'virtual workers take gradients in turn: convolutions stay ungrouped', 'always'
        ),
        'elastic': Key(False, FLAG, 'goes on while processes come and go', 'always'),
        'min_workers': Key(1, at_least(1), 'with fewer, an elastic run waits', 'always'),
        'patience': Key(600, at_least(0), 'seconds that it waits before it stops', 'always'),
        'fake_devices': Key(False, FLAG, 'the devices are simulated on this CPU', 'always'),
    },
    'Task, data set and model': {
        'task': Key(
            *('image_classification', named(TASKS), 'the loss and the metrics'),
            required=('model', 'dataset'),
        ),
        'dataset': Key('digits', named(FACTORIES), 'the examples'),
        'data_dir': Key('', _PATH, "where TFDS stores data sets; empty for TFDS's default", 'always'),
        'train_examples': Key(0, at_least(0), 'limits the training split to its first ones; 0 means all'),
        'validation_examples': Key(
            0,
            at_least(0),
            'holds out the last training examples; 0 keeps the validation split, if there is one',
        ),
        'test_examples': Key(0, at_least(0), 'limits the test split to its first examples; 0 means all'),
        'model': Key('vgg_digits', named(_MODELS), 'the network'),
        'compute_dtype': Key(
            'float32', one_of('float32', 'bfloat16'), 'dtype of the network; parameters stay float32'
        ),
    },
    'Optimization': {
        'batch_size': Key(128, at_least(1), 'examples per step, over all workers', 'with_workers'),
        'accumulate': Key(1, at_least(1), "equal parts of a worker's batch, to save memory"),
        'num_epochs': Key(280, at_least(1), "the run's length"),
        'num_steps': Key(0, at_least(0), "the run's length in steps; 0 means `num_epochs`"),
        'learning_rate': Key(0.1, real(lambda x: x > 0, '> 0'), 'η, the peak of the schedule'),
        'schedule': Key(
            *('drops', named(SCHEDULES), '`cosine` follows a warm-up; `wsd` is warm-up, stable, decay'),
            required=('learning_rate', 'num_steps'),
            passed={'learning_rate_drops': (0.5, 0.75)},
        ),
        'learning_rate_drops': Key(
            (0.5, 0.75), _DROPS, 'for `drops`: fractions of the run; the rate drops tenfold at each'
        ),
        'optimizer': Key(
            *('sgd', named(OPTIMIZERS), "the workers' own optimizer"),
            required=('learning_rate',),
            passed={'momentum': 0.9, 'weight_decay': 0},
        ),
        'momentum': Key(0.9, real(lambda x: 0 <= x < 1, 'in [0, 1)'), 'of `sgd`; an option of the others'),
        'weight_decay': Key(
            5e-4, real(lambda x: x >= 0, '>= 0'), "`sgd`'s L2 penalty; decoupled in the others"
        ),
        'seed': Key(0, at_least(0, 2**32), 'of the initial parameters, the batches and the blocks'),
    },
    'Output': {
        'eval_every_epochs': Key(20, at_least(1), 'epochs between evaluations; each writes a checkpoint'),
        'eval_every_steps': Key(0, at_least(0), 'the same in steps; 0 means `eval_every_epochs`'),
        'evaluate_on': Key('test', one_of('test', 'validation'), '`validation` for whatever compares runs'),
        'log_every_steps': Key(20, at_least(1), 'steps per training record', 'always'),
        'evaluate_train_examples': Key(0, at_least(0), 'how many training examples are also evaluated'),
        'recalibrate_batches': Key(0, at_least(0), 'that recalibrate BatchNorm before each evaluation'),
        'diagnostics_every': Key(
            0, at_least(0), 'steps between `def_jax.diagnostics`; 0 means never', 'always'
        ),
        'check_replicas_every': Key(
            0, at_least(0), 'steps between comparisons of copies; 0: never', 'always'
        ),
        'keep_checkpoints': Key(2, at_least(1), 'how many checkpoints are kept', 'always'),
    },
}
for _keys in SECTIONS.values():  # what a factory is given besides
    for _name in [name for name, key in _keys.items() if key.rule.is_factory]:
        _keys[f'{_name}_options'] = Key({}, ARGUMENTS, f'further arguments of `{_name}`')
KEYS: dict[str, Key] = {name: key for keys in SECTIONS.values() for name, key in keys.items()}


def get_defaults() -> ml_collections.ConfigDict:
    """A complete configuration for get_config functions to modify: DEF at ratio 64 on scikit-learn's digits.

    It is a new one at every call, which `arguments.override` locks.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    fields = {
        name: ml_collections.FieldReference(key.default, field_type=key.kind) if key.kind else key.default
        for name, key in KEYS.items()
    }
    return ml_collections.ConfigDict(fields)
