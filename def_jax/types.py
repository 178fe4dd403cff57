"""Type aliases."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

PyTree = Any
AxisName = str | Sequence[str] | None  # of the axis over workers, of several, or of none: a single worker
# Line 9: a block and the state before the step, to the mean block and the state after it, whose residual is
# the rest of the block.
Send = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
# What a worker has sent and the mean of it, as soon as this is known, to the mean.
Arrive = Callable[[jax.Array, jax.Array], jax.Array]
