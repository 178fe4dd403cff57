"""def_jax: communication-efficient data-parallel training with Detached Error Feedback, for optax."""

from def_jax import baselines, compressors, diagnostics, options
from def_jax.baselines import EF21State, all_reduce_mean, ef21
from def_jax.compressors import identity, message_size, random_block
from def_jax.error_feedback import ErrorFeedbackState, detached_params, error_feedback, output_params
from def_jax.guards import all_finite, assert_replicated, debug
from def_jax.presets import def_adamw, def_sgd
from def_jax.sharding import spmd
from def_jax.state.ownership import state_specs
from def_jax.state.regrouping import stack_state, unstack_state
from def_jax.traffic.crossing import check

__version__ = '0.5.0'

__all__ = [
    'EF21State',
    'ErrorFeedbackState',
    'all_finite',
    'all_reduce_mean',
    'assert_replicated',
    'baselines',
    'check',
    'compressors',
    'debug',
    'def_adamw',
    'def_sgd',
    'detached_params',
    'diagnostics',
    'ef21',
    'error_feedback',
    'identity',
    'message_size',
    'options',
    'output_params',
    'random_block',
    'spmd',
    'stack_state',
    'state_specs',
    'unstack_state',
]
