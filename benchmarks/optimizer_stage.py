"""Cost of the optimizer stage: DEF's chain and plain momentum SGD, side by side in one process.

    python -m benchmarks.optimizer_stage --output=results/benchmarks/optimizer_stage.md

One device, CPU or accelerator; the parameters of VGG-16, ResNet-50 and a transformer, given gradients. Every
variant runs `optimizer.update` and `optax.apply_updates` with donated state. In rows that include the
detached point, a program first writes x + λ·r to memory, as a gradient requires. A message of few bits is
packed and unpacked for --workers, by collectives that only copy.

All stages of a table run in turn, so that drift in the machine's speed affects all equally. A figure is the
median of the rounds after warm-up; only its ratio to another row of the table is meaningful. The first call
of a turn is not counted: after a stage that frees much memory, it takes up to twice as long.
"""

import functools
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import def_jax
from benchmarks import hlo, pages
from benchmarks.cluster.timing import keep_memory
from benchmarks.copying import as_one_of
from benchmarks.optimizers import OPTIMIZERS, PLAIN, SGD, feedback, update
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
_SHORTEST = 5e-3  # seconds per measurement, long enough to hide the launch of a program
_WARM_UP = 0.2  # fraction of the rounds
# The minimum over memory: a step reads g, m and r and writes m and r; momentum SGD has x instead of r.
# Without momentum, g and r are read and r is written. The message is not counted, though in
# one bit at 1/64 it is half of the model, in two a quarter.
# m <- 0.9·m + g reads and writes three times, with next to no arithmetic.
_PASSES, _WITHOUT_MOMENTUM, _TRIAD = 5, 3, 3
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

PyTree = Any


class _Stage:
    """One variant of a computation, as a function from state to state, and the seconds it took."""

    def __init__(self, step: Callable[[PyTree], PyTree], state: PyTree, programs: Sequence[Any]):
        self._step, self._state = step, state
        self.programs = programs  # the compiled programs that make up the step
        self._calls = 0
        self.seconds: list[float] = []

    def run(self) -> None:
        """Times as many steps as a measurement needs, waiting once at the end."""
        if not self._calls:
            self._wait(1)
            self._calls = min(100, math.ceil(_SHORTEST / self._wait(1)))
        self._wait(1)
        self.seconds.append(self._wait(self._calls) / self._calls)

    def _wait(self, calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            self._state = self._step(self._state)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start

    @property
    def median(self) -> float:
        return float(np.median(self.seconds[int(len(self.seconds) * _WARM_UP) :]))


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
        'DEF, random 1/64 of the elements': feedback(def_jax.baselines.random_k(64)),
    }
    return {name: make(None) for name, make in found.items()}


def main(_) -> None:
    keep_memory()
    for network in _NETWORKS.value:
        pages.write(_OUTPUT.value, {network: _section(network)})
    pages.write(_OUTPUT.value, {'origin': pages.origin('benchmarks.optimizer_stage')})


def _section(network: str) -> str:
    params = NETWORKS[network].variables()['params']
    grads = jax.tree.map(lambda x: 0.01 * x, params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    with as_one_of(_WORKERS.value):
        stages = {
            name: _stage(optimizer, params, grads)
            for name, optimizer in variants().items()
            if _wanted(name) and (network == 'vgg16' or name != _ONLY_VGG)
        }
    for name in (_DEF, _NO_MOMENTUM):
        if _wanted(name + _POINT):
            stages[name + _POINT] = _stage_with_point(variants()[name], params, grads)
    zeros, small = jnp.zeros(size), jnp.full(size, 1e-3)
    triad = _one_program(lambda m, g: (0.9 * m + g,), (zeros,), small)
    # A detached point is written to memory that its program does not read.
    copy = _one_program(lambda z, x, r: (x + 0.3 * r,), (jnp.copy(zeros),), small, jnp.copy(small))
    start = time.perf_counter()
    for done in range(_ROUNDS.value):
        if done < 3 or time.perf_counter() - start < _SECONDS.value:
            for stage in (triad, copy, *stages.values()):
                stage.run()

    pass_seconds, base = triad.median / _TRIAD, stages[SGD].median
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


def _stage(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree) -> _Stage:
    """The optimizer stage for given gradients."""
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    return _one_program(functools.partial(update, optimizer), state, grads)


def _stage_with_point(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree) -> _Stage:
    """The stage, after a program that overwrites the detached point of the previous step."""
    point, params, opt_state = *(jax.tree.map(jnp.copy, params) for _ in range(2)), optimizer.init(params)

    def detached(point, params, opt_state):
        del point
        return def_jax.detached_params(params, opt_state)

    detach = _compiled(detached, point, params, opt_state, donate=[0])
    plain = _compiled(functools.partial(update, optimizer), params, opt_state, grads, donate=[0, 1])

    def step(state):
        point, params, opt_state = state
        return detach(point, params, opt_state), *plain(params, opt_state, grads)

    return _Stage(step, (point, params, opt_state), [detach, plain])


def _one_program(function: Callable, state: tuple, *given: PyTree) -> _Stage:
    """A stage of a function from the parts of the state and `given` to the new state."""
    program = _compiled(function, *state, *given, donate=range(len(state)))
    return _Stage(lambda state: program(*state, *given), state, [program])


def _compiled(function: Callable, *arguments: PyTree, donate: Sequence[int]) -> Any:
    # A donated argument may be no more than a buffer to fill, hence `keep_unused`.
    jitted = jax.jit(function, donate_argnums=tuple(donate), keep_unused=True)
    return jitted.lower(*arguments).compile()


def _wanted(name: str) -> bool:
    return name == SGD or re.search(_ONLY.value, name) is not None


def _row(name: str, measured: _Stage, base: float, least: float) -> dict[str, Any]:
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
