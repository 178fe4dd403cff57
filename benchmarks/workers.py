"""How the cost of the optimizer stage, including the all-reduce, scales with workers.

    python -m benchmarks.workers --output=results/benchmarks/workers.md

Runs on the machine's accelerators, or on fake devices that share the cores of its CPU.
"""

import functools
import os
from collections.abc import Iterator

# Collectives of many fake devices on few cores can starve each other of threads; this provides enough.
os.environ.setdefault('NPROC', '16')

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

from benchmarks import peers, timing
from benchmarks.rows import CAPTION, Row, make_tree, measured_table, tree_size
from benchmarks.stages import update

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the table; only printed if not given.')
_ROUNDS = flags.DEFINE_integer('rounds', 40, 'How often every variant runs.', lower_bound=10)
_SECONDS = flags.DEFINE_float('seconds', 10, 'Approximate time limit per row.', lower_bound=1)

_WORKERS = [1, 2, 4, 8, 16]
_SHAPE = ((250, 256), 16)


def main(_) -> None:
    jax.config.update('jax_num_cpu_devices', max(_WORKERS))
    # A fake device that runs ahead can starve another one.
    calls = 1 if jax.default_backend() == 'cpu' else None
    figures = measured_table('workers', _rows(), rounds=_ROUNDS.value, seconds=_SECONDS.value, calls=calls)
    note = (
        'Ratio 64, 1.024 M parameters on every worker. Momentum SGD averages the gradient; top-k, whose '
        'workers select different elements, gathers values and indices. The limit counts the passes of all '
        'workers.'
    )
    if calls:
        note += ' The workers are fake devices: the same cores do the work of all of them.'
    timing.write_page(
        _OUTPUT.value,
        'python -m benchmarks.workers',
        [CAPTION, f'## Cost by workers\n\n{note}\n\n{figures}'],
    )


def _rows() -> Iterator[Row]:
    for num_workers in _WORKERS:
        if num_workers <= len(jax.devices()):
            optimizers = peers.by_selection(64, 'workers')
            stages = {name: _stage(optimizer, num_workers) for name, optimizer in optimizers.items()}
            yield Row(str(num_workers), stages, {}, _limit(num_workers))


def _stage(optimizer: optax.GradientTransformation, num_workers: int) -> timing.Stage:
    """The stage on each of several workers, as one program."""

    def init(seed):
        params = jax.tree.map(lambda x: x + 0 * seed, make_tree(*_SHAPE))
        return (params, optimizer.init(params)), jax.tree.map(lambda x: 0.01 * x, params)

    transform = _on_workers(num_workers)
    state, grads = transform(init)(jnp.zeros(num_workers))
    return timing.compile_stage(functools.partial(update, optimizer), state, grads, transform=transform)


def _limit(num_workers: int) -> timing.Stage:
    size, transform = tree_size(make_tree(*_SHAPE)), _on_workers(num_workers)
    arrays = transform(lambda x: (jnp.zeros(size) + 0 * x, jnp.full(size, 1e-3) + 0 * x))(
        jnp.zeros(num_workers)
    )
    return timing.compile_stage(timing.triad, arrays[:1], arrays[1], transform=transform)


def _on_workers(num_workers: int):
    return functools.partial(jax.pmap, axis_name='workers', devices=jax.devices()[:num_workers])


if __name__ == '__main__':
    app.run(main)
