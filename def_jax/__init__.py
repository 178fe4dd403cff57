"""def_jax: communication-efficient data-parallel training with Detached Error Feedback, for optax."""

from def_jax import baselines, compressors, diagnostics, options
from def_jax.alias import def_adamw, def_sgd
from def_jax.baselines import EF21State, all_reduce_mean, ef21
from def_jax.compressors import identity, message_size, random_block, random_k, scaled
from def_jax.error_feedback import ErrorFeedbackState, detached_params, error_feedback, output_params
from def_jax.mesh.ownership import state_specs
from def_jax.mesh.replication import assert_replicated
from def_jax.mesh.spmd import spmd
from def_jax.methods import METHODS, Method, get_method
from def_jax.traffic.crossing import check

__version__ = '0.3.0'

__all__ = [
    'METHODS',
    'EF21State',
    'ErrorFeedbackState',
    'Method',
    'all_reduce_mean',
    'assert_replicated',
    'baselines',
    'check',
    'compressors',
    'def_adamw',
    'def_sgd',
    'detached_params',
    'diagnostics',
    'ef21',
    'error_feedback',
    'get_method',
    'identity',
    'message_size',
    'options',
    'output_params',
    'random_block',
    'random_k',
    'scaled',
    'spmd',
    'state_specs',
]
