"""Training that continues while workers die and return, on JAX's coordination service.

x is on every worker, and only a worker's residual dies with it. The survivors keep theirs and continue on a
mesh of the live workers; a newcomer receives x and everything replicated from a survivor, and the mean of the
others' per-worker state, so that y = x + mean_k r_k does not move.

Experimental: it is built on `jax.experimental.multihost_utils.live_devices`, which JAX calls unstable, and on
what is in `private`. It has been tested only with gloo on CPUs. Process 0 runs the coordination service,
and its death ends all processes.
"""

from def_jax.elastic.group import SHARD_AXIS
from def_jax.elastic.service import (
    DifferError,
    FailedError,
    GivenUpError,
    RefusedError,
    TooFewError,
    initialize,
)
from def_jax.elastic.team import Team

__all__ = [
    'SHARD_AXIS',
    'DifferError',
    'FailedError',
    'GivenUpError',
    'RefusedError',
    'Team',
    'TooFewError',
    'initialize',
]
