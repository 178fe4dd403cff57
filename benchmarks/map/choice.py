"""The rates of the map, which one held-out losses choose, and how certain that choice is."""

from collections.abc import Callable

import numpy as np

__all__ = ['LIKELY', 'chosen', 'nearest', 'rate', 'shares', 'tune']

BASE, FACTOR = 0.1, 1.4  # rates are BASE · FACTOR^k
LIKELY = 0.05  # share of the bootstrap's draws
_LIMIT = 12  # times a grid may grow


def rate(k: int) -> float:
    return BASE * FACTOR**k


def nearest(rate: float) -> int:
    """The k of a rate."""
    return round(np.log(rate / BASE) / np.log(FACTOR))


def tune(losses: Callable[[int], np.ndarray], first: int) -> dict[int, np.ndarray]:
    """Losses by k, one per tuning seed: around `first`, and on until the best has two neighbours."""
    tried = {k: losses(k) for k in range(first - 1, first + 2)}
    for _ in range(_LIMIT):
        best = chosen(tried)
        if min(tried) < best < max(tried):
            return tried
        beyond = best - 1 if best == min(tried) else best + 1
        tried[beyond] = losses(beyond)
    raise ValueError(f'no best rate within {sorted(map(rate, tried))}')


def chosen(tried: dict[int, np.ndarray]) -> int:
    """The k with the lowest mean loss."""
    return min(tried, key=lambda k: tried[k].mean())


def shares(tried: dict[int, np.ndarray], draws: int = 2000) -> dict[int, float]:
    """How often each k would be chosen by as many tuning seeds, drawn again from these: a bootstrap."""
    rates, losses = list(tried), np.stack(list(tried.values()))
    drawn = np.random.default_rng(0).integers(0, losses.shape[1], (draws, losses.shape[1]))
    best = losses[:, drawn].mean(-1).argmin(0)
    return {k: float(np.mean(best == i)) for i, k in enumerate(rates)}
