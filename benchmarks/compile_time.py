"""CPU time of tracing and compiling a pmapped training step: DEF-Q beside dense training, by turns.

    python -m benchmarks.compile_time --output=results/benchmarks/compile_time.md

The step is that of a transformer of --layers blocks, eight tensors each, for eight fake CPU devices. The
number of its tensors matters here, not their size. `benchmarks.accelerators` has the times of the compilers
for H100 and TPU.
"""

import os
import statistics

import jax
import numpy as np
from absl import app, flags

from benchmarks import pages
from benchmarks.accelerators.programs import MAPPINGS
from benchmarks.optimizers import ADAMW, OPTIMIZERS, SGD
from benchmarks.trees import Network, shapes
from def_jax.trainer.models.transformer import Transformer

_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks/compile_time.md', 'The page, whose tables are replaced.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How often every step is compiled.', lower_bound=1)
_LAYERS = flags.DEFINE_multi_integer('layers', [12, 37], 'Blocks of the transformer: a table each.')

_WORKERS = 8
_DENSE = {SGD: SGD, 'DEF, 1/64': SGD, 'DEF-Q, 1/64, 2 bits': SGD, 'DEF-Q, 1/256, 2 bits': SGD}
_DENSE |= {ADAMW: ADAMW, 'DEF around AdamW, 1/64': ADAMW, 'def_adamw, 1/64, 2 bits': ADAMW}


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', _WORKERS)
    jax.config.update('jax_enable_compilation_cache', False)  # which JAX_COMPILATION_CACHE_DIR fills
    for layers in _LAYERS.value:
        network = Network('', Transformer(256, layers, width=64, num_heads=4, context=1024), (1, 1024))
        count = len(jax.tree.leaves(shapes(network)[0]))
        pages.write(_OUTPUT.value, {f'{layers} layers': f'## {count} tensors\n\n{_table(network)}'})
    pages.write(_OUTPUT.value, {'origin': pages.origin('benchmarks.compile_time')})


def _table(network: Network) -> str:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _DENSE}
    for _ in range(_ROUNDS.value):
        for name, seconds in found.items():
            seconds.append(_seconds(network, name))
    rows = []
    for name, seconds in found.items():
        ratios = [sum(ours) / sum(dense) for ours, dense in zip(seconds, found[_DENSE[name]], strict=True)]
        trace, compiling = (statistics.median(column) for column in zip(*seconds, strict=True))
        rows.append(
            {
                'optimizer': name,
                'tracing, s': f'{trace:.1f}',
                'compiling, s': f'{compiling:.1f}',
                'both, over dense': f'{statistics.median(ratios):.2f}',
            }
        )
    return pages.table(rows)


def _seconds(network: Network, optimizer: str) -> tuple[float, float]:
    """CPU seconds of this process to trace and to compile a step."""
    jax.clear_caches()
    times = [sum(os.times()[:2])]
    lowered = MAPPINGS['pmap'](network, OPTIMIZERS[optimizer], np.array([jax.devices()[:_WORKERS]]))
    times.append(sum(os.times()[:2]))
    lowered.compile()
    times.append(sum(os.times()[:2]))
    return times[1] - times[0], times[2] - times[1]


if __name__ == '__main__':
    app.run(main)
