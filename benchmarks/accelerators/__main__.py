"""Compiles whole steps for H100 and TPU without either, and writes what the programs hold to a page.

    make bench-compiled

or, where jax[tpu], jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12 are installed,
`python -m benchmarks.accelerators --output=results/benchmarks`. Every program's figures are kept in
accelerators.json as soon as they are there; a second call goes on, and compiles what is missing. To compile a
program again, delete its entry.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path

os.environ['TPU_SKIP_MDS_QUERY'] = '1'  # there is no TPU to ask
import jax
import numpy as np
from absl import app, flags

from benchmarks.accelerators import page
from benchmarks.accelerators.programs import MAPPINGS
from benchmarks.accelerators.rows import ROWS, Row
from benchmarks.accelerators.targets import SLOW_LINE, TARGETS, Unavailable
from benchmarks.hlo import read
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.trees import NETWORKS
from experiments import spec

_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks', 'Folder of accelerators.md and accelerators.json.'
)
_TARGETS = flags.DEFINE_multi_enum('target', list(TARGETS), list(TARGETS), 'What to compile for.')
_PAIRS = flags.DEFINE_integer(
    'pairs', 1, 'How often a program and dense training compile by turns, for the ratio of times; 0: alone.'
)


def main(_) -> int:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {SLOW_LINE}'
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        devices = {name: TARGETS[name].devices() for name in _TARGETS.value}
    except Unavailable as error:
        print(f'accelerators: {" ".join(str(error).split())}', file=sys.stderr)
        return 2
    path = folder / 'accelerators.json'
    figures = json.loads(path.read_text()) if path.exists() else {}
    for row in ROWS:
        if row.target in devices and row.key not in figures:
            figures[row.key] = _figures(row, devices[row.target])
            path.write_text(json.dumps(figures, indent=0))
            print(f'{row.key}: {figures[row.key]["seconds"]} s', file=sys.stderr, flush=True)
    page.write(folder)
    return 0


def _figures(row: Row, devices: np.ndarray) -> dict:
    """The figures of a program, and its compile time over dense training's, which is compiled by turns."""
    target, network, pairs = TARGETS[row.target], NETWORKS[row.network], []

    def compiled(optimizer):
        jax.clear_caches()
        return read(MAPPINGS[row.mapping](network, OPTIMIZERS[optimizer], devices), target.options)

    for _ in range(0 if row == row.dense else _PAIRS.value):
        dense, figures = compiled(row.dense.optimizer), compiled(row.optimizer)
        pairs.append(round(figures['seconds'] / dense['seconds'], 2))
    if not pairs:
        figures = compiled(row.optimizer)
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.variables)['params'])]
    shards = devices.shape[1] if row.sharded else 1
    return figures | {
        'pairs': pairs,
        'commit': spec.commit(allow_dirty=True),
        'devices': devices.size,
        'model': 4 * sum(sizes) // shards,  # bytes of what a device holds of the parameters
        'compiler': f'jax {jax.__version__}, {target.compiler} {importlib.metadata.version(target.compiler)}',
    }


if __name__ == '__main__':
    app.run(main)
