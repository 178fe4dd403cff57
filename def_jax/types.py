"""What signatures call things."""

from collections.abc import Sequence
from typing import Any

__all__ = ['AxisName', 'PyTree']

PyTree = Any
AxisName = str | Sequence[str] | None  # of the axis over workers, of several, or of none: a single worker
