"""Training that goes on while workers die and return, on JAX's coordination service.

x lies on every worker, and what dies with one is its residual alone. The survivors keep theirs and go on with
a mesh of those who live; a newcomer receives x and everything replicated from a survivor, and the mean of the
others' per-worker state, so that y = x + mean_k r_k stays where it is.

`jax.experimental.multihost_utils.live_devices` is the engine. JAX calls it unstable; here it was tested with
gloo on CPUs alone. Process 0 holds the coordination service, and its death ends all.
"""

from def_jax.elastic.group import SHARD_AXIS
from def_jax.elastic.service import GivenUpError, RefusedError, TooFewError, initialize
from def_jax.elastic.team import Team

__all__ = ['SHARD_AXIS', 'GivenUpError', 'RefusedError', 'Team', 'TooFewError', 'initialize']
