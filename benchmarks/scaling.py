"""How the cost of the optimizer stage scales with parameters, ratio and tensors.

    python -m benchmarks.scaling --output=results/benchmarks/scaling.md

Compares DEF with momentum SGD and with error feedback that sends random or the largest elements, on one
device. Gradients are given and state is donated.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import peers, timing
from benchmarks.rows import CAPTION, Row, make_tree, measured_table, tree_size
from benchmarks.stages import stage

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the tables; only printed if not given.')
_ROUNDS = flags.DEFINE_integer('rounds', 40, 'How often every variant runs.', lower_bound=10)
_SECONDS = flags.DEFINE_float('seconds', 10, 'Approximate time limit per row.', lower_bound=1)

# Shapes of tensors whose sizes are multiples of 64, and how many there are of each.
_PARAMETERS = [((80, 80), 16), ((250, 256), 16), ((800, 800), 16), ((2500, 2560), 16)]
_RATIOS = [1, 4, 16, 64, 256, 1024, 4096, 16384]
_RATIO_SHAPE = ((1024, 1024), 10)
_TENSORS = [((1024, 1000), 10), ((320, 320), 100), ((128, 80), 1000)]

PyTree = Any


def main(_) -> None:
    rows = {
        'parameters': ('Ratio 64, 16 tensors.', _by_parameters()),
        'ratio': ('Ten tensors of 1024 × 1024. At ratio 1, everything is sent, as in SGD.', _by_ratio()),
        'tensors': ('Ratio 64, 10.24 M parameters in total.', _by_tensors()),
    }
    sections = [CAPTION]
    for name, (note, measured) in rows.items():
        figures = measured_table(name, measured, rounds=_ROUNDS.value, seconds=_SECONDS.value)
        sections.append(f'## Cost by {name}\n\n{note}\n\n{figures}')
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.scaling', sections)


def _by_parameters() -> Iterator[Row]:
    for shape, count in _PARAMETERS:
        tree = make_tree(shape, count)
        yield _row(f'{tree_size(tree):,}', tree, 64)


def _by_ratio() -> Iterator[Row]:
    for ratio in _RATIOS:
        yield _row(f'{ratio:,}', make_tree(*_RATIO_SHAPE), ratio)


def _by_tensors() -> Iterator[Row]:
    for shape, count in _TENSORS:
        yield _row(f'{count:,}', make_tree(shape, count), 64)


def _row(label: str, tree: PyTree, ratio: float) -> Row:
    grads = jax.tree.map(lambda x: 0.01 * x, tree)
    optimizers, choices = peers.by_selection(ratio), peers.selections(ratio)
    return Row(
        label,
        {name: stage(optimizer, tree, grads) for name, optimizer in optimizers.items()},
        {name: _selection(choose, tree) for name, choose in choices.items()},
        timing.limit(tree_size(tree)),
    )


def _selection(choose, pending: PyTree) -> timing.Stage:
    def select(step, message, pending):
        del message  # donated: its memory is reused
        return step + 1, choose(step, pending)

    first = jnp.uint32(0), jax.jit(functools.partial(choose, jnp.uint32(0)))(pending)
    return timing.compile_stage(select, first, pending)


if __name__ == '__main__':
    app.run(main)
