"""Methods that DEF is compared with, as optax transformations."""

from def_jax.baselines.ef21 import EF21State, ef21

__all__ = ['EF21State', 'ef21']
