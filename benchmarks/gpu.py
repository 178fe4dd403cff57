"""What DEF costs on the accelerator at hand: a page in minutes, from one command and without a network.

    python -m benchmarks.gpu --output=results/benchmarks/gpu.md

Measures the optimizer stage at all ratios against momentum SGD and AdamW, compile times, the convolutions of
virtual workers, and steps a second of VGG-16 and of a transformer. Runs on any JAX backend; --size=tiny is
for CPUs and for tests.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax import lax

import def_jax
from benchmarks import peers, timing
from benchmarks.compile_times import compile_times
from benchmarks.stages import LEAST_PASSES, stage, update
from benchmarks.trees import NETWORKS, Network

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the page; only printed if not given.')
_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'Networks for a GPU, or for a test on a CPU.')
_SECONDS = flags.DEFINE_float('seconds', 15, 'Approximate time limit per table, compilation excluded.')
_MINUTES = flags.DEFINE_float('minutes', 8, 'No table or row of the stage is begun after this time.')
_ROUNDS = flags.DEFINE_integer('rounds', 50, 'How often every variant runs.', lower_bound=3)

PyTree = Any


class _Scale(NamedTuple):
    """What is measured at one size."""

    stages: Sequence[str]  # networks whose parameters are updated
    ratios: Sequence[int]
    tensors: Sequence[int]  # numbers of tensors that are compiled for
    images: str
    tokens: str
    batch: tuple[int, int]  # images, and sequences
    context: int
    workers: Sequence[int]  # numbers of virtual workers


_SCALES = {
    'full': _Scale(
        ('vgg16', 'resnet50', 'gpt2'),
        (10, 37, 50, 64, 100, 1000, 1024),
        (300, 1000),
        'vgg16',
        'gpt2',
        (128, 8),
        context=1024,
        workers=(1, 4, 16),
    ),
    'tiny': _Scale(
        ('tiny_transformer',), (10,), (4,), 'digits', 'tiny_transformer', (8, 2), context=16, workers=(1, 2)
    ),
}


def main(_) -> None:
    scale, sections = _SCALES[_SIZE.value], []
    deadline = time.monotonic() + 60 * _MINUTES.value
    tables: dict[str, Callable[[], str]] = {
        'steps': lambda: _steps_table(scale),
        'virtual workers': lambda: _virtual_workers_table(scale),
        **{
            f'stage of {name}': functools.partial(_stage_table, name, scale, deadline)
            for name in scale.stages
        },
        **{
            f'compile time for {count} tensors': functools.partial(compile_times, [count], repeats=1)
            for count in scale.tensors
        },
    }
    for name, make in tables.items():
        start = time.monotonic()
        sections.append(make() if start < deadline else f'No time was left for: {name}.\n')
        jax.clear_caches()
        print(f'gpu: {name}, {time.monotonic() - start:.0f} s', file=sys.stderr, flush=True)
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.gpu', sections)


def _stage_table(name: str, scale: _Scale, deadline: float) -> str:
    """The stage's time over momentum SGD's, and the share of the memory bandwidth that it reaches."""
    params = NETWORKS[name].variables()['params']
    grads = jax.tree.map(lambda x: 0.01 * x, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    adamw, block = optax.adamw(1e-3), def_jax.random_block(64)
    optimizers = {
        'momentum SGD': peers.momentum_sgd(),
        **{f'DEF, 1/{ratio}': peers.feedback(def_jax.random_block(ratio)) for ratio in scale.ratios},
        'DEF, 1/64, one block of the model': peers.feedback(def_jax.random_block(64, granularity='model')),
        'DEF, random 1/64 of the elements': peers.feedback(def_jax.random_k(64)),
        'DEF, 1/64, skip_nonfinite': peers.feedback(block, skip_nonfinite=True),
        'AdamW': adamw,
        'AdamW in DEF, 1/64': optax.chain(adamw, def_jax.error_feedback(block, None)),
    }
    triad = timing.limit(size)
    # One after the other, each with a turn of momentum SGD: all states at once may not fit in memory.
    rows = []
    for label, optimizer in optimizers.items():
        if time.monotonic() > deadline:
            rows.append([label, 'no time was left', *[''] * 3])
            continue
        turns = [triad, stage(optimizers['momentum SGD'], params, grads), stage(optimizer, params, grads)]
        timing.alternate(turns, rounds=_ROUNDS.value, seconds=_SECONDS.value / len(optimizers))
        bandwidth = timing.TRIAD_PASSES * 4 * size / triad.median
        base, own = turns[1].median, turns[2].median
        # AdamW reads and writes a second moment more; in DEF, the residual besides the parameters' block.
        passes = LEAST_PASSES + 2 * ('AdamW' in label)
        share = passes * 4 * size / own / bandwidth
        rows.append(
            [label, f'{1e3 * own:.3f}', f'{own / base:.2f}', f'{bandwidth / 1e9:.0f}', f'{share:.0%}']
        )
    title = (
        f'## Optimizer stage of {NETWORKS[name].title}: {size:,} parameters in '
        f'{len(jax.tree.leaves(params))} tensors\n\n'
        'Each row against momentum SGD in the same rounds. The bandwidth is that of `m <- 0.9·m + g`; the '
        'share is that of the least traffic, five passes over the parameters, or seven with AdamW.\n\n'
    )
    columns = ['variant', 'ms', 'ratio to momentum SGD', 'bandwidth, GB/s', 'share of the bandwidth']
    return title + timing.table(columns, rows)


def _virtual_workers_table(scale: _Scale) -> str:
    """A convolutional gradient of one batch, divided among workers that share the device, in both forms."""
    network, (batch, _) = NETWORKS[scale.images], scale.batch
    variables, images = network.variables(), _ones(network, batch)

    def gradient(params, images):
        return jax.grad(lambda p: network.loss(variables | {'params': p}, images))(params)

    def mapped(points, images):
        return (jax.vmap(gradient)(points, images),)

    def in_sequence(points, images):
        return (lax.map(lambda own: gradient(*own), (points, images)),)

    rows, base = [], None
    for workers in scale.workers:

        def points(workers=workers):
            return jax.tree.map(lambda x: jnp.stack([x] * workers), variables['params'])

        split = images.reshape(workers, -1, *images.shape[1:])
        forms = [timing.compile_stage(form, (points(),), split) for form in (mapped, in_sequence)]
        timing.alternate(forms, rounds=_ROUNDS.value, seconds=_SECONDS.value / len(scale.workers))
        base = base or forms[0].median
        figures = [(f'{1e3 * form.median:.2f}', f'{form.median / base:.2f}') for form in forms]
        rows.append([workers, batch // workers, *itertools.chain(*figures)])
    title = (
        f'## Virtual workers: the gradient of {network.title} on {batch} images\n\n'
        'Workers with points of their own on one device: under `vmap`, which makes grouped convolutions, and '
        'one after another, as with `--config.sequential_workers=True`. Ratios are to one worker.\n\n'
    )
    columns = ['workers', 'images each', 'ms, vmap', 'ratio', 'ms, in sequence', 'ratio']
    return title + timing.table(columns, rows)


def _steps_table(scale: _Scale) -> str:
    """Whole steps a second: gradient at the detached point, update."""
    rows = []
    for name, batch in ((scale.images, scale.batch[0]), (scale.tokens, scale.batch[1])):
        network = NETWORKS[name]
        inputs = _ones(network, batch, scale.context)
        optimizers = {
            'momentum SGD': peers.momentum_sgd(),
            'DEF, 1/64': peers.feedback(def_jax.random_block(64)),
        }
        base = None
        for label, optimizer in optimizers.items():
            measured = _whole_step(network, optimizer, inputs, detaches=label != 'momentum SGD')
            timing.alternate([measured], rounds=_ROUNDS.value, seconds=_SECONDS.value / len(optimizers))
            base = base or measured.median
            shape = ' × '.join(map(str, inputs.shape))
            speed = f'{1 / measured.median:.2f}', f'{inputs.shape[0] / measured.median:.0f}'
            rows.append([network.title, shape, label, *speed, f'{measured.median / base:.2f}'])
    columns = ['network', 'batch', 'optimizer', 'steps/s', 'examples/s', 'time over momentum SGD']
    return '## Steps a second of one worker, float32\n\n' + timing.table(columns, rows)


def _whole_step(network: Network, optimizer, inputs: jax.Array, *, detaches: bool) -> timing.Stage:
    variables = network.variables()

    def step(params, opt_state, inputs):
        point = def_jax.detached_params(params, opt_state) if detaches else params
        grads = jax.grad(lambda p: network.loss(variables | {'params': p}, inputs))(point)
        return update(optimizer, params, opt_state, grads)

    params = variables['params']
    return timing.compile_stage(step, (jax.tree.map(jnp.copy, params), optimizer.init(params)), inputs)


def _ones(network: Network, batch: int, context: int = 0) -> jax.Array:
    example = network.batch[1:] if network.has_images else (context,)
    return jnp.ones((batch, *example), network.inputs().dtype)


if __name__ == '__main__':
    app.run(main)
