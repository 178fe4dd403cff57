"""Methods that DEF is compared with, as optax transformations; `METHODS` has all of them, as data."""

import importlib
from typing import TYPE_CHECKING, Any

from def_jax.baselines.base import ResidualState
from def_jax.baselines.cser import cser
from def_jax.baselines.demo import demo
from def_jax.baselines.dense import all_reduce_mean
from def_jax.baselines.ef21 import EF21State, ef21, ef21_sgdm
from def_jax.baselines.onebit_adam import OneBitAdamState, onebit_adam
from def_jax.baselines.powersgd import powersgd
from def_jax.baselines.random_k import random_k
from def_jax.baselines.scaled import scaled
from def_jax.baselines.signs import sign_ef
from def_jax.baselines.sparse_loco import SparseLoCoState, sparse_loco
from def_jax.baselines.top_k import top_k

if TYPE_CHECKING:
    from def_jax.baselines.methods import METHODS, Method, get_method

__all__ = [
    'METHODS',
    'EF21State',
    'Method',
    'OneBitAdamState',
    'ResidualState',
    'SparseLoCoState',
    'all_reduce_mean',
    'cser',
    'demo',
    'ef21',
    'ef21_sgdm',
    'get_method',
    'onebit_adam',
    'powersgd',
    'random_k',
    'scaled',
    'sign_ef',
    'sparse_loco',
    'top_k',
]


def __getattr__(name: str) -> Any:
    """The table of methods, which is loaded when it is asked for: `import def_jax` does not need it."""
    if name in ('METHODS', 'Method', 'get_method'):
        return getattr(importlib.import_module('def_jax.baselines.methods'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
