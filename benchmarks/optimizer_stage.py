"""Cost of the optimizer stage: DEF's chain and plain momentum SGD, side by side in one process.

    python -m benchmarks.optimizer_stage --output=results/benchmarks/optimizer_stage.md

One device, CPU or accelerator; the parameters of VGG-16, ResNet-50 and a transformer, given gradients. Every
variant runs `optimizer.update` and `optax.apply_updates` with donated state. In rows that include the
detached point, a program first writes x + λ·r to memory, as a gradient requires. A message of few bits is
packed and unpacked for --workers, by collectives that only copy.
"""

import re
from typing import Any

import jax
from absl import app, flags

import def_jax
from benchmarks import hlo, pages, timing
from benchmarks.copying import as_one_of
from benchmarks.optimizers import OPTIMIZERS, PLAIN, SGD, feedback
from benchmarks.trees import NETWORKS

_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks/optimizer_stage.md', 'The page, whose tables are replaced.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 60, 'How often every variant runs.', lower_bound=10)
_SECONDS = flags.DEFINE_float('seconds', 60, 'Approximate time limit per table.', lower_bound=1)
_ONLY = flags.DEFINE_string('only', '', 'A regular expression: which variants to run besides momentum SGD.')
_WORKERS = flags.DEFINE_integer('workers', 8, 'For how many a message of few bits is packed.', lower_bound=1)
_NETWORKS = flags.DEFINE_multi_enum(
    'network', ['vgg16', 'resnet50', 'transformer'], list(NETWORKS), 'Networks whose parameters are updated.'
)

_DEF, _NO_MOMENTUM, _POINT = 'DEF, 1/64', 'DEF, 1/64, no momentum', ', with the detached point'
# The minimum over memory: a step reads g, m and r and writes m and r; momentum SGD has x instead of r.
# Without momentum, g and r are read and r is written. The message is too small to count.
_PASSES, _WITHOUT_MOMENTUM = 5, 3
_TARGETS = {
    _DEF: '≤ 1.5, aim 1.25',
    _DEF + _POINT: '≤ 2',
    _NO_MOMENTUM + _POINT: '≤ 2',
    'DEF, 1/64, skip_nonfinite': '≤ 1.25',
    'DEF, 1/10': '≤ 1.8',
    **{f'DEF, 1/{ratio}': '≤ 1.5' for ratio in (37, 50, 100, 1000, 1024)},
    'DEF-Q, 1/256, 2 bits': '≤ 1.5',
    'DEF-Q, 1/64, 2 bits': '≤ 2.5',
    'DEF-Q, 1/64, 4 bits': '≤ 2',
    'DEF, random 1/64 of the elements': '≤ 3',
}
_ONLY_VGG = 'top-k, 1/64'  # costs 20 times momentum SGD
_LARGE = 400_000  # bytes of a tensor whose copies are counted


def variants() -> dict[str, Any]:
    """The rows, by name; the first is the baseline."""
    options = ('1024', '64, shuffled', '64, balanced', "64, detach='auto'", '64, 16 bits')
    options += ('64, skip_nonfinite', '64, overlap', '10')
    few = ('256, 2 bits', '64, 2 bits', '64, 4 bits', '64, 1 bit', '64, 2 bits, λ 0.3', '64, 2 bits, overlap')
    names = [SGD, _DEF, *(f'DEF, 1/{option}' for option in options), _ONLY_VGG]
    names += [f'DEF-Q, 1/{option}' for option in few]
    found = {name: OPTIMIZERS[name] for name in names}
    found |= {f'DEF, 1/{ratio}': feedback(ratio) for ratio in (37, 50, 100, 1000)}
    found |= {
        _NO_MOMENTUM: feedback(64, PLAIN),
        'DEF, random 1/64 of the elements': feedback(64, compressor=def_jax.random_k(64)),
    }
    return {name: make(None) for name, make in found.items()}


def main(_) -> None:
    timing.keep_memory()
    for network in _NETWORKS.value:
        pages.write(_OUTPUT.value, {network: _section(network)})
    pages.write(_OUTPUT.value, {'origin': pages.origin('benchmarks.optimizer_stage')})


def _section(network: str) -> str:
    params = NETWORKS[network].variables()['params']
    grads = jax.tree.map(lambda x: 0.01 * x, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    with as_one_of(_WORKERS.value):
        stages = {
            name: timing.stage(optimizer, params, grads)
            for name, optimizer in variants().items()
            if _wanted(name) and (network == 'vgg16' or name != _ONLY_VGG)
        }
    for name in (_DEF, _NO_MOMENTUM):
        if _wanted(name + _POINT):
            stages[name + _POINT] = timing.stage_with_point(variants()[name], params, grads)
    triad, copy = timing.limit(size), timing.copy_limit(size)
    timing.alternate([triad, copy, *stages.values()], rounds=_ROUNDS.value, seconds=_SECONDS.value)

    pass_seconds, base = triad.median / timing.TRIAD_PASSES, stages[SGD].median
    rows = []
    for name, measured in stages.items():
        passes = _WITHOUT_MOMENTUM if _NO_MOMENTUM in name or 'DEF-Q' in name else _PASSES
        least = passes * pass_seconds + copy.median * name.endswith(_POINT)
        rows.append(_row(name, measured, base, least))
    return (
        f'## {NETWORKS[network].title}: {size:,} parameters in {len(jax.tree.leaves(params))} tensors\n\n'
        f'Median of {len(triad.seconds)} rounds, excluding the first fifth; memory bandwidth '
        f'{4e-9 * size / pass_seconds:.1f} GB/s.\n\n'
    ) + pages.table(rows)


def _wanted(name: str) -> bool:
    return name == SGD or re.search(_ONLY.value, name) is not None


def _row(name: str, measured: timing.Stage, base: float, least: float) -> dict[str, Any]:
    temporary = sum(program.memory_analysis().temp_size_in_bytes for program in measured.programs)
    copied = [hlo.copies(program.as_text(), smallest=_LARGE) for program in measured.programs]
    return {
        'variant': name,
        'ms': f'{1e3 * measured.median:.2f}',
        'ratio to momentum SGD': f'{measured.median / base:.2f}',
        'target': _TARGETS.get(name, ''),
        'limit, ms': f'{1e3 * least:.2f}',
        'limit / time': f'{least / measured.median:.0%}',
        'copies of a large tensor': sum(sum(found.values()) for found in copied),
        'temporary MB': f'{temporary / 1e6:.1f}',
    }


if __name__ == '__main__':
    app.run(main)
