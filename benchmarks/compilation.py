"""Compile time by the number of tensors, and memory by parameters up to 10⁹, without allocating any.

    python -m benchmarks.compilation --output=results/benchmarks/compilation.md

Compiles the optimizer stage for shapes alone. Times are CPU seconds of tracing, lowering and compiling, which
neither another program on the machine nor the number of cores changes much.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

import def_jax
from benchmarks import peers, timing
from benchmarks.compile_times import compile_cold, compile_times

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the tables; only printed if not given.')
_TENSORS = flags.DEFINE_multi_integer('tensors', [2, 300, 1000], 'Numbers of tensors, of two shapes.')
_PARAMETERS = flags.DEFINE_multi_integer(
    'parameters', [10**6, 10**7, 10**8, 10**9], 'Numbers of parameters, roughly.'
)
_REPEATS = flags.DEFINE_integer('repeats', 3, 'How often everything is compiled.', lower_bound=1)

_WIDTH = 1024  # of the square matrices of the large models

PyTree = Any


def main(_) -> None:
    sections = [
        'The optimizer stage, `optimizer.update` and `optax.apply_updates`, compiled for shapes alone. Times '
        'are CPU seconds of tracing, lowering and compiling, all threads together.\n',
        compile_times(_TENSORS.value, _REPEATS.value),
        _memory(_PARAMETERS.value),
    ]
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.compilation', sections)


def _memory(parameters: list[int]) -> str:
    rows = [cells for d in parameters for cells in _memory_rows(d)]
    columns = ['parameters', 'optimizer', 'message, elements', 'arguments', 'in place', 'temporary']
    columns += ['more than momentum SGD', 'in models', 'CPU seconds to compile']
    title = (
        f'## Memory by parameters, MB\n\nMatrices of {_WIDTH:,} × {_WIDTH:,}, from shapes alone: the memory '
        'that the compiled program needs, of which the gradients, momentum, residual and parameters are '
        'arguments. The residual should be one model more, and nothing else grow with it.\n\n'
    )
    return title + timing.table(columns, rows)


def _memory_rows(d: int) -> Iterator[list[Any]]:
    count = max(1, round(d / _WIDTH**2))
    params = [jax.ShapeDtypeStruct((_WIDTH, _WIDTH), jnp.float32)] * count
    model_bytes, base = 4 * count * _WIDTH**2, None
    compressors = {
        'momentum SGD': None,
        'DEF, 1/64': def_jax.random_block(64),
        'DEF, 1/100': def_jax.random_block(100),
        'DEF, 1/64, one block of the model': def_jax.random_block(64, granularity='model'),
    }
    for name, compressor in compressors.items():
        optimizer = peers.feedback(compressor) if compressor else peers.momentum_sgd()
        compiled = compile_cold(optimizer, params)
        memory = compiled.program.memory_analysis()
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes
        total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        base = base or total
        yield [
            f'{count * _WIDTH**2:,}',
            name,
            f'{def_jax.message_size(compressor, params):,}' if compressor else '',
            *(
                f'{size / 1e6:.1f}'
                for size in (
                    memory.argument_size_in_bytes,
                    memory.alias_size_in_bytes,
                    memory.temp_size_in_bytes,
                    total - base,
                )
            ),
            f'{(total - base) / model_bytes:.2f}',
            f'{compiled.seconds:.1f}',
        ]


if __name__ == '__main__':
    app.run(main)
