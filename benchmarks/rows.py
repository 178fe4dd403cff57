"""Tables of how a cost scales: one row per size, one column per way of selecting what is sent."""

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import timing
from benchmarks.stages import LEAST_PASSES

__all__ = ['CAPTION', 'Row', 'make_tree', 'measured_table', 'tree_size']

CAPTION = (
    'Time of `optimizer.update` and `optax.apply_updates` in ms, with the ratio to momentum SGD in '
    'parentheses, followed by the time to select and pack the message alone, in ms. The limit is five passes '
    'over memory at the speed of `m <- 0.9·m + g` on as many elements, measured in the same rounds.\n'
)


class Row(NamedTuple):
    """What is measured for one row."""

    label: str
    stages: dict[str, timing.Stage]  # the optimizer stage; the first is the baseline
    selections: dict[str, timing.Stage]  # selecting and packing alone
    triad: timing.Stage


def measured_table(
    column: str, rows: Iterable[Row], *, rounds: int, seconds: float, calls: int | None = None
) -> str:
    """Measures one row after another, freeing its memory for the next; see `timing.alternate`."""
    cells, names = [], []
    for row in rows:
        everything = [row.triad, *row.stages.values(), *row.selections.values()]
        timing.alternate(everything, rounds=rounds, calls=calls, seconds=seconds)
        print(f'{column}: {row.label} measured', file=sys.stderr, flush=True)
        baseline, *others = row.stages
        base = row.stages[baseline].median
        line = {
            column: row.label,
            'limit': _ms(LEAST_PASSES / timing.TRIAD_PASSES * row.triad.median),
            baseline: _ms(base),
        }
        line |= {
            name: f'{_ms(s.median)} ({s.median / base:.2f})'
            for name, s in row.stages.items()
            if name in others
        }
        line |= {f'{name}: select and pack': _ms(s.median) for name, s in row.selections.items()}
        cells.append(line)
        names += [name for name in line if name not in names]
    return timing.table(names, [[line.get(name, '') for name in names] for line in cells])


def make_tree(shape: tuple[int, int], count: int) -> dict[str, jax.Array]:
    """`count` tensors of one shape, with distinct values, so that top-k has something to select."""
    line = jnp.sin(jnp.arange(shape[0] * shape[1], dtype=jnp.float32)).reshape(shape)
    return {f'tensor{i:04}': (1 + i) * line for i in range(count)}


def tree_size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _ms(seconds: float) -> str:
    return f'{1e3 * seconds:.3g}' if seconds < 1 else f'{1e3 * seconds:.0f}'
