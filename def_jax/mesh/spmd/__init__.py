"""`def_jax.spmd`: workers of several devices, sharded inside by the compiler, error feedback across."""

from def_jax.mesh.spmd.functions import Spmd, spmd

__all__ = ['Spmd', 'spmd']
