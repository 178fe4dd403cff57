"""How the cost of the optimizer stage grows: with parameters, ratio and tensors.

    python -m benchmarks.scaling --output=results/benchmarks/scaling.md

DEF beside momentum SGD and error feedback that sends random or the largest elements, on one device. Gradients
are given and state is donated.
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
_ROUNDS = flags.DEFINE_integer('rounds', 40, 'Times that every variant is run.', lower_bound=10)
_SECONDS = flags.DEFINE_float('seconds', 10, 'About how long a row may be measured.', lower_bound=1)

# Shapes of one tensor, such that 64 divides it, and how many of them.
_PARAMETERS = [((80, 80), 16), ((250, 256), 16), ((800, 800), 16), ((2500, 2560), 16)]
_RATIOS = [1, 4, 16, 64, 256, 1024, 4096, 16384]
_RATIO_SHAPE = ((1024, 1024), 10)
_TENSORS = [((1024, 1000), 10), ((320, 320), 100), ((128, 80), 1000)]
# Its generator is unrolled for every tensor, and takes minutes to compile for 1,000.
_NOT_FOR_MANY_TENSORS, _MANY = 'random-k', 1000

PyTree = Any


def main(_) -> None:
    rows = {
        'parameters': ('Ratio 64, 16 tensors.', _by_parameters()),
        'ratio': ('Ten tensors of 1024 × 1024. At ratio 1 all is sent and SGD is what is left.', _by_ratio()),
        'tensors': ('Ratio 64, 10.24 M parameters in all.', _by_tensors()),
    }
    sections = [CAPTION]
    for name, (note, measured) in rows.items():
        figures = measured_table(name, measured, rounds=_ROUNDS.value, seconds=_SECONDS.value)
        sections.append(f'## Cost against {name}\n\n{note}\n\n{figures}')
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
    if len(tree) >= _MANY:
        del optimizers[_NOT_FOR_MANY_TENSORS], choices[_NOT_FOR_MANY_TENSORS]
    return Row(
        label,
        {name: stage(optimizer, tree, grads) for name, optimizer in optimizers.items()},
        {name: _selection(choose, tree) for name, choose in choices.items()},
        timing.limit(tree_size(tree)),
    )


def _selection(choose, pending: PyTree) -> timing.Stage:
    def select(step, message, pending):
        del message  # its memory is used again
        return step + 1, choose(step, pending)

    first = jnp.uint32(0), jax.jit(functools.partial(choose, jnp.uint32(0)))(pending)
    return timing.compile_stage(select, first, pending)


if __name__ == '__main__':
    app.run(main)
