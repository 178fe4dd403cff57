"""Cost of the optimizer stage: DEF's chain and plain momentum SGD, side by side in one process.

    python -m benchmarks.optimizer_stage --output=results/benchmarks/optimizer_stage.md

One device, the parameters of VGG-16, ResNet-50 and a transformer, given gradients. Every variant runs
`optimizer.update` and `optax.apply_updates` with donated state. In rows that include the detached point, a
program first writes x + λ·r to memory, as a gradient requires.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags
from flax import linen as nn

import def_jax
from benchmarks import peers, timing
from benchmarks.stages import LEAST_PASSES, WITHOUT_MOMENTUM, network_step, stage, stage_with_point, update
from benchmarks.trees import NETWORKS

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the tables; only printed if not given.')
_ROUNDS = flags.DEFINE_integer('rounds', 60, 'How often every variant runs.', lower_bound=10)
_SECONDS = flags.DEFINE_float('seconds', 60, 'Approximate time limit per table.', lower_bound=1)
_ONLY = flags.DEFINE_string('only', '', 'A regular expression: which variants to run besides momentum SGD.')
_NETWORKS = flags.DEFINE_multi_enum(
    'network', ['vgg16', 'resnet50', 'transformer'], list(NETWORKS), 'Networks whose parameters are updated.'
)

_SGD, _DEF, _POINT = 'momentum SGD', 'DEF, block of 1/64', ', with the detached point'
_NO_MOMENTUM = 'DEF, 1/64, no momentum'
_TARGETS = {
    _DEF: '≤ 1.5, aim 1.25',
    _DEF + _POINT: '≤ 2',
    _NO_MOMENTUM + _POINT: '≤ 2',
    'DEF, 1/64, skip_nonfinite': '≤ 1.25',
    'DEF, block of 1/10': '≤ 1.8',
    **{f'DEF, block of 1/{ratio}': '≤ 1.5' for ratio in (37, 50, 100, 1000, 1024)},
    'DEF, 1/64, one block of the model': '≤ 2',
    'DEF, random 1/64 of the elements': '≤ 3',
}
# What costs 20 times momentum SGD is run for the smallest network only.
_ONLY_VGG = 'top 1/64'
_LARGE = 100_000  # elements of a tensor whose copies are counted


def main(_) -> None:
    sections = [
        'A stage is `optimizer.update` and `optax.apply_updates`. The limit is the time of the five passes '
        'over memory that the arithmetic requires, three without momentum, at the speed of `m <- 0.9·m + g` '
        'on as many elements in the same rounds. The detached point adds the time of `z <- x + 0.3·r`, whose '
        "destination a CPU reads before writing. A program's memory is its arguments and results, counted "
        'once if updated in place, and its temporaries.\n'
    ]
    for network in _NETWORKS.value:
        sections.append(_timings(network))
        if NETWORKS[network].has_images:
            sections.append(_memory(network))
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.optimizer_stage', sections)


def _timings(network: str) -> str:
    params = NETWORKS[network].variables()['params']
    grads = jax.tree.map(lambda x: 0.01 * x, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    stages = {
        name: stage(optimizer, params, grads)
        for name, optimizer in peers.variants().items()
        if _wanted(name) and (network == 'vgg16' or _ONLY_VGG not in name)
    }
    for name in (_DEF, _NO_MOMENTUM):
        if _wanted(name + _POINT):
            stages[name + _POINT] = stage_with_point(peers.variants()[name], params, grads)
    triad = timing.limit(size)
    copy = timing.copy_limit(size)
    timing.alternate([triad, copy, *stages.values()], rounds=_ROUNDS.value, seconds=_SECONDS.value)

    pass_seconds = triad.median / timing.TRIAD_PASSES
    base = stages[_SGD].median
    rows = []
    for name, measured in stages.items():
        passes = WITHOUT_MOMENTUM if _NO_MOMENTUM in name else LEAST_PASSES
        least = passes * pass_seconds + copy.median * name.endswith(_POINT)
        rows.append(_row(name, measured, base, least))
    columns = ['variant', 'ms', 'ratio to momentum SGD', 'target', 'limit, ms', 'limit / time']
    return (
        f'## {NETWORKS[network].title}: {size:,} parameters in {len(jax.tree.leaves(params))} tensors\n\n'
        f'Median of {len(triad.seconds)} rounds, excluding the first fifth; memory bandwidth '
        f'{4e-9 * size / pass_seconds:.1f} GB/s.\n\n'
    ) + timing.table([*columns, 'copies of a large tensor', 'temporary MB'], rows)


def _wanted(name: str) -> bool:
    return name == _SGD or re.search(_ONLY.value, name) is not None


def _row(name: str, measured: timing.Stage, base: float, least: float) -> list[Any]:
    temporary = sum(program.memory_analysis().temp_size_in_bytes for program in measured.programs)
    return [
        name,
        f'{1e3 * measured.median:.2f}',
        f'{measured.median / base:.2f}',
        _TARGETS.get(name, ''),
        f'{1e3 * least:.2f}',
        f'{least / measured.median:.0%}',
        sum(timing.full_size_copies(program, _LARGE) for program in measured.programs),
        f'{temporary / 1e6:.1f}',
    ]


def _memory(network: str) -> str:
    """Memory of the compiled programs: the stage, and a whole step with the network's gradient."""
    title, model, images = NETWORKS[network]
    rows = list(_memory_rows(model, images))
    columns = ['program', 'optimizer', 'arguments', 'results', 'in place', 'temporary', 'total']
    columns += ['more than momentum SGD', 'in models', 'target: residual + point']
    return f'## {title}: memory of the compiled program, MB\n\n' + timing.table(columns, rows)


def _memory_rows(model: nn.Module, images: tuple[int, ...]) -> Iterator[list[Any]]:
    optimizers = {_SGD: peers.momentum_sgd(), _DEF: peers.feedback(def_jax.random_block(64))}
    for program in ('stage, given gradients', f'step with the gradient of {images[0]} images'):
        base = None
        for name, optimizer in optimizers.items():
            step, arguments = network_step(model, optimizer, images, detaches=name == _DEF)
            if program.startswith('stage'):
                step, arguments = functools.partial(update, optimizer), (*arguments[:2], arguments[0])
            memory = timing.compiled(step, *arguments, donate=[0, 1]).memory_analysis()
            given, returned = memory.argument_size_in_bytes, memory.output_size_in_bytes
            in_place, temporary = memory.alias_size_in_bytes, memory.temp_size_in_bytes
            everything = given + returned - in_place + temporary
            base = base or everything
            model_size = 4 * sum(leaf.size for leaf in jax.tree.leaves(arguments[0]))
            target = 0 if name != _DEF else 1 if program.startswith('stage') else 2
            yield [
                program,
                name + (_POINT if target == 2 else ''),
                *(f'{part / 1e6:.1f}' for part in (given, returned, in_place, temporary, everything)),
                f'{(everything - base) / 1e6:.1f}',
                f'{(everything - base) / model_size:.2f}',
                f'≤ {target}',
            ]


if __name__ == '__main__':
    app.run(main)
