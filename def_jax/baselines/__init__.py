"""Methods that DEF is compared with, as optax transformations."""

from def_jax.baselines.base import ResidualState
from def_jax.baselines.cser import cser
from def_jax.baselines.demo import demo
from def_jax.baselines.dense import all_reduce_mean
from def_jax.baselines.ef21 import EF21State, ef21, ef21_sgdm
from def_jax.baselines.onebit_adam import OneBitAdamState, onebit_adam
from def_jax.baselines.powersgd import powersgd
from def_jax.baselines.signs import sign_ef
from def_jax.baselines.sparse_loco import SparseLoCoState, sparse_loco
from def_jax.baselines.top_k import top_k

__all__ = [
    'EF21State',
    'OneBitAdamState',
    'ResidualState',
    'SparseLoCoState',
    'all_reduce_mean',
    'cser',
    'demo',
    'ef21',
    'ef21_sgdm',
    'onebit_adam',
    'powersgd',
    'sign_ef',
    'sparse_loco',
    'top_k',
]
