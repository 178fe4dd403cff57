"""Type aliases."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

PyTree = Any
AxisName = str | Sequence[str] | None  # of the axis over workers, of several, or of none: a single worker
# What a worker has sent and the mean of it, as soon as this is known, to the mean.
Arrive = Callable[[jax.Array, jax.Array], jax.Array]
