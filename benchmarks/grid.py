"""How a learning rate is chosen: on a geometric grid, by held-out losses, until the best is inside it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ['LIKELY', 'Grid', 'Tried', 'chosen', 'inside', 'shares', 'tune']

LIKELY = 0.05  # share of the bootstrap's draws
_LIMIT = 12  # times a grid may grow

Tried = dict[int, np.ndarray]  # losses by k, one per tuning seed


class Grid(NamedTuple):
    """The rates base · factor^k."""

    base: float
    factor: float

    def rate(self, k: int) -> float:
        return self.base * self.factor**k

    def nearest(self, rate: float) -> int:
        """The k of a rate."""
        return round(np.log(rate / self.base) / np.log(self.factor))


def tune(losses: Callable[[Sequence[int]], np.ndarray], first: int, reach: int = 1) -> Tried:
    """Tries `reach` rates on either side of `first`, and as many more while the best is at an edge.

    Args:
        losses: of several k, [len(k), seeds]; what is not finite counts as infinite.
        first: the k in the middle.
        reach: how many are tried at once beyond an edge.

    Raises:
        ValueError: if the best is still at an edge after growing twelve times.
    """
    tried: Tried = {}
    new: Sequence[int] = range(first - reach, first + reach + 1)
    for _ in range(_LIMIT):
        found = np.nan_to_num(np.asarray(losses(new), float), nan=np.inf, posinf=np.inf)
        tried |= dict(zip(new, found, strict=True))
        if inside(tried):
            return tried
        best = chosen(tried)
        new = range(best - reach, best) if best == min(tried) else range(best + 1, best + reach + 1)
    raise ValueError(f'no rate is best within its grid: k = {min(tried)} to {max(tried)} were tried.')


def chosen(tried: Tried) -> int:
    """The k with the lowest mean loss."""
    return min(tried, key=lambda k: tried[k].mean())


def inside(tried: Tried) -> bool:
    """Whether rates were tried on either side of the best."""
    return min(tried) < chosen(tried) < max(tried)


def shares(tried: Tried, draws: int = 2000) -> dict[int, float]:
    """How often each k would be chosen by as many tuning seeds, drawn again from these: a bootstrap."""
    rates, losses = list(tried), np.stack(list(tried.values()))
    drawn = np.random.default_rng(0).integers(0, losses.shape[1], (draws, losses.shape[1]))
    best = losses[:, drawn].mean(-1).argmin(0)
    return {k: float(np.mean(best == i)) for i, k in enumerate(rates)}
