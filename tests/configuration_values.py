"""For every key of a configuration, values that it may and may not hold."""

import math

import ml_collections

from configs import digits
from def_jax.trainer.configuration.defaults import KEYS

NAN, INF = math.nan, math.inf
COUNT_FROM_0 = [1.5, '1', True, None, -1]
COUNT_FROM_1 = [*COUNT_FROM_0, 0]
OPTIONS = [1, None, 'b2=0.95', ('b2', 0.95)]


def changed(removed=(), **changes):
    """The digits configuration with some keys set, to values of any type, and some removed."""
    settings = digits.get_config().to_dict() | changes
    return ml_collections.ConfigDict({k: v for k, v in settings.items() if k not in removed})


def each(keys, values):
    return {key: values for key in keys.split()}


AVERAGE = 'trainer.configuration.factories_to_find:average'
# What uses a key, where that of configs/digits.py does not.
USED_BY = {
    'average_every': {'method': 'saef'},
    'rank': {'method': 'powersgd'},
    'chunk': {'method': 'demo'},
    'error_decay': {'method': 'sparse_loco'},
    'freeze_after': {'method': 'onebit_adam'},
    'outer_options': {'outer': 'sgd'},
    'method_options': {'method': AVERAGE},
}
FLAG = [1, 0, None, 'True']
REFUSED = {
    **each(
        'every chunk freeze_after num_workers inside workers_per_device shards_per_worker min_workers '
        'batch_size accumulate num_epochs eval_every_epochs log_every_steps keep_checkpoints',
        COUNT_FROM_1,
    ),
    **each(
        'average_every rank patience train_examples validation_examples test_examples '
        'num_steps eval_every_steps diagnostics_every evaluate_train_examples '
        'recalibrate_batches check_replicas_every',
        COUNT_FROM_0,
    ),
    **each('skip_nonfinite overlap sequential_workers elastic fake_devices', FLAG),
    **each(
        'method_options outer_options task_options dataset_options model_options schedule_options '
        'optimizer_options',
        OPTIONS,
    ),
    'method': [3, None, 'dfe', '', 'DEF'],
    'ratio': ['64', None, True, 0, 0.5, -64, NAN, INF],
    **each('outer task', [1, None, 'equal']),
    **each('order allocation', [0, 'shuffle', 'equal']),
    'detach': ['0.3', 'half', False, -0.1, 1.1, NAN],
    'bits': [3, 0, -8, 64, 'int8'],
    **each('decay error_decay', ['1', None, False, -0.1, 1.1, NAN]),
    'dataset': [10, None, 'cifar'],
    'data_dir': [None, 3, True],
    'model': [16, None, 'vgg'],
    'compute_dtype': [16, None, 'bf16', 'float16', 'float64'],
    'learning_rate': ['0.1', None, True, -0.1, NAN, INF],
    'schedule': [0, None, 'cosin'],
    'learning_rate_drops': [
        *(0.5, None, 'half', (0.75, 0.5), (0.5, 0.5), (0,), (1,), (0.5, 1.5), (-0.5,)),
        *((NAN,), ('0.5',), (None,), (True,), ((0.5,),)),
    ],
    'optimizer': [0, None, 'adam'],
    'momentum': ['0.9', None, False, -0.1, 1, 1.5, NAN],
    'weight_decay': ['0', None, False, -1e-4, NAN, INF],
    'seed': [1.5, '0', None, False, -1, 2**32],
    'evaluate_on': [0, None, True, 'train', 'valid'],
}
# Beside the default of each key.
ACCEPTED = {name: [key.default] for name, key in KEYS.items()} | {
    **each(
        'average_every num_steps eval_every_steps diagnostics_every evaluate_train_examples '
        'train_examples validation_examples test_examples recalibrate_batches check_replicas_every patience',
        [0, 1, 1000],
    ),
    **each('every chunk freeze_after min_workers num_epochs eval_every_epochs log_every_steps', [1, 100]),
    **each('skip_nonfinite overlap sequential_workers fake_devices', [True, False]),
    'method': ['sgd', 'def', AVERAGE],
    'method_options': [{}, {'scale': 2.0}],
    'ratio': [1, 1.5, 64, 1e6],
    'order': [None, 'random', 'shuffled', 'cyclic'],
    'allocation': [None, 'proportional', 'balanced'],
    'detach': [None, 0, 0.0, 0.3, 1, 'auto'],
    'bits': [None, 1, 2, 4, 8, 16, 32],
    'decay': [0, 0.95, 1],
    **each('num_workers workers_per_device shards_per_worker inside', [1, 2, 8]),
    'dataset': ['digits', 'cifar10', 'fractions:Fraction'],
    'model': ['vgg16', 'vgg_digits', 'fractions:Fraction'],
    'model_options': [{}, {'dtype': 'bfloat16'}],
    'compute_dtype': ['float32', 'bfloat16'],
    'accumulate': [1, 2, 4, 8],
    'learning_rate': [1, 1e-9, 5.0],
    'schedule': ['drops', 'cosine', 'wsd'],
    'learning_rate_drops': [(), (0.5,), [0.1, 0.2, 0.3]],
    'outer_options': [{'learning_rate': 0.7}],
    'optimizer': ['sgd', 'adamw', 'lion', 'muon'],
    'optimizer_options': [{}, {'nesterov': True}],
    **each('momentum weight_decay', [0, 0.0, 0.99]),
    'seed': [0, 2**32 - 1],
    'evaluate_on': ['test', 'validation'],
}
