"""What the files of this folder share."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = ['Send']

# Line 9: a block and the state before the step, to the mean block and the state after it, whose residual is
# the rest of the block.
Send = Callable[[jax.Array, Any], tuple[jax.Array, Any]]
