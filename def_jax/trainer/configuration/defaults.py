"""Every key of a training configuration: one entry each, for whoever reads, checks or resumes a run."""

import functools

import ml_collections

from def_jax.methods import METHODS, OPTIONS
from def_jax.trainer.configuration.keys import (
    Key,
    factory,
    flag,
    integer,
    library,
    number,
    one_of,
    options,
    value,
)
from def_jax.trainer.configuration.optimizers import OPTIMIZERS
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS

__all__ = ['KEYS', 'SECTIONS', 'get_defaults']

# Arguments of the library, which checks them. Its defaults hold, but for two.
_ARGUMENTS = {
    'ratio': 'one element in `ratio` is sent',
    'granularity': 'what is drawn: a block of every tensor (`tensor`), one block of the whole model '
    '(`model`) or random elements (`element`)',
    'order': 'blocks are drawn independently, as in the paper (`random`), or each is sent once per round '
    '(`shuffled`, `cyclic`)',
    'allocation': 'every tensor sends the same share (`proportional`), or small ones send more (`balanced`)',
    'detach': 'λ, where the method leaves it free; `auto` estimates λ*(t) from the messages and uses that',
    'every': 'steps per message; workers take local steps in between',
    'decay': 'multiplies the residual at every step',
    'average_every': "SAEF's period P: steps between averages of the residuals; 0 means never",
    'wire_dtype': 'dtype of the message: `float32`, `bfloat16`, `float16`, `int8`',
    'rank': "rank of PowerSGD's factors; 0 means the largest that sends no more than `ratio` allows",
    'chunk': 'the longest edge of a chunk of DeMo or SparseLoCo',
    'freeze_after': 'dense steps of 1-bit Adam, after which its second moment is frozen',
    'skip_nonfinite': 'all workers skip a step in which any update is NaN or infinite',
    'overlap': 'messages travel while the next gradient is computed; x is one step behind',
}
_DEFAULTS = OPTIONS | {'ratio': 64.0, 'wire_dtype': 'float32'}
_METHOD = {
    'method': one_of('def', METHODS, 'how the workers communicate'),
    **{name: library(_DEFAULTS[name], help) for name, help in _ARGUMENTS.items()},
    'outer': factory(
        '', OPTIMIZERS, 'the optimizer that applies the mean message; if empty, the message is added'
    ),
    'outer_options': options('outer'),
}
_WORKERS = {
    'num_workers': integer(16, 1, 'K, over all devices', 'regroups'),
    'workers_per_device': integer(1, 1, 'virtual workers: the same trajectory on fewer devices', 'regroups'),
    'shards_per_worker': integer(
        1,
        1,
        'above 1, a worker is that many devices, which share its matrices and examples (FSDP)',
        'regroups',
    ),
    'sequential_workers': flag(
        "the gradients of a device's virtual workers are computed one after another, so that convolutions "
        'stay ordinary instead of grouped',
        'always',
    ),
    'elastic': flag(
        'the run continues while processes die and return; see "When workers come and go"', 'always'
    ),
    'min_workers': integer(1, 1, 'with fewer, an elastic run waits', 'always'),
    'patience': integer(600, 0, 'seconds that it waits before it stops with a checkpoint', 'always'),
    'fake_devices': flag('the devices are simulated on this CPU', 'always'),
}
_PARTS = {
    'task': factory('image_classification', TASKS, 'the loss and the metrics'),
    'task_options': options('task'),
    'dataset': factory('digits', FACTORIES, 'the examples'),
    'dataset_options': options('dataset'),
    'data_dir': value(
        '',
        "where TFDS stores data sets; empty for TFDS's default",
        lambda value: True,
        "a path, or empty for TFDS's default",
        change='always',
    ),
    'train_examples': integer(0, 0, 'limits the training split to its first examples; 0 means all'),
    'validation_examples': integer(
        0,
        0,
        'holds out the last training examples; 0 keeps the validation split of data sets that have one',
    ),
    'test_examples': integer(0, 0, 'limits the test split to its first examples; 0 means all'),
    'model': factory('vgg_digits', [*MODELS, *LANGUAGE_MODELS], 'the network'),
    'model_options': options('model'),
    'compute_dtype': one_of(
        'float32', ('float32', 'bfloat16'), 'dtype of the network; parameters stay float32'
    ),
}
_OPTIMIZATION = {
    'batch_size': integer(128, 1, 'examples per step, over all workers', 'with_workers'),
    'accumulate': integer(
        1, 1, "equal parts of a worker's batch; their gradients are taken in turn, which saves memory"
    ),
    'num_epochs': integer(280, 1, "the run's length"),
    'num_steps': integer(0, 0, "the run's length in steps; 0 means `num_epochs`"),
    'learning_rate': number(0.1, lambda value: value > 0, '> 0', 'η, the peak of the schedule'),
    'schedule': factory('drops', SCHEDULES, '`cosine` follows a warm-up; `wsd` is warm-up, stable, decay'),
    'schedule_options': options('schedule'),
    'learning_rate_drops': value(
        (0.5, 0.75),
        'for `drops`: fractions of the run; the rate drops tenfold at each',
        lambda drops: (
            all(isinstance(d, (int, float)) and 0 < d < 1 for d in drops)
            and list(drops) == sorted(set(drops))
        ),
        'increasing fractions of the run, each in (0, 1), e.g. (0.5, 0.75)',
        tuple,
        list,
    ),
    'optimizer': factory('sgd', OPTIMIZERS, "the workers' own optimizer"),
    'optimizer_options': options('optimizer'),
    'momentum': number(
        0.9,
        lambda value: 0 <= value < 1,
        'in [0, 1)',
        'momentum of `sgd`; other optimizers have it among their options',
    ),
    'weight_decay': number(
        5e-4, lambda value: value >= 0, '>= 0', 'the L2 penalty of `sgd`; decoupled in the others'
    ),
    'seed': value(
        0,
        'seed of the initial parameters, the batches and the blocks',
        lambda value: 0 <= value < 2**32,
        'an integer in [0, 2**32)',
    ),
}
_OUTPUT = {
    'eval_every_epochs': integer(20, 1, 'epochs between evaluations; each writes a checkpoint'),
    'eval_every_steps': integer(0, 0, 'the same in steps; 0 means `eval_every_epochs`'),
    'evaluate_on': one_of(
        'test',
        ('test', 'validation'),
        'the split; use `validation` for every choice made by comparing runs',
    ),
    'log_every_steps': integer(20, 1, 'steps per training record', 'always'),
    'evaluate_train_examples': integer(
        0, 0, 'how many of the first training examples are also evaluated, at x and y'
    ),
    'recalibrate_batches': integer(
        0, 0, 'training batches that recalibrate BatchNorm before each evaluation'
    ),
    'diagnostics_every': integer(
        0, 0, 'steps between measurements of `def_jax.diagnostics`; 0 means never', 'always'
    ),
    'check_replicas_every': integer(
        0, 0, "steps between comparisons of the workers' copies; 0 means never", 'always'
    ),
    'keep_checkpoints': integer(2, 1, 'how many checkpoints are kept', 'always'),
}
SECTIONS: dict[str, dict[str, Key]] = {
    'Method': _METHOD,
    'Workers': _WORKERS,
    'Task, data set and model': _PARTS,
    'Optimization': _OPTIMIZATION,
    'Output': _OUTPUT,
}
KEYS: dict[str, Key] = functools.reduce(dict.__or__, SECTIONS.values())


def get_defaults() -> ml_collections.ConfigDict:
    """A complete configuration for get_config functions to modify: DEF at ratio 64 on scikit-learn's digits.

    It is a new one at every call, which `arguments.override` locks.

    >>> config = get_defaults()
    >>> config.method, config.ratio, config.num_workers
    ('def', 64.0, 16)
    """
    config = ml_collections.ConfigDict({name: key.default for name, key in KEYS.items()})
    config.detach = ml_collections.FieldReference(KEYS['detach'].default, field_type=object)  # or 'auto'
    return config
