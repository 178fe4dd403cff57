"""`def_jax.spmd`: workers of several devices, sharded inside by the compiler, error feedback across.

`functions` has what users call: gradients at the detached points by `at_points`, updates by `after_link`.
"""

from def_jax.mesh.spmd.functions import Spmd, spmd

__all__ = ['Spmd', 'spmd']
