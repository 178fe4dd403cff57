"""How long the optimizer stage takes to compile, by the number of tensors."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from benchmarks import peers, timing
from benchmarks.stages import update

__all__ = ['Compiled', 'compile_cold', 'compile_times']

_PAIR = (64, 48), (48,)  # a matrix and a vector

PyTree = Any


class Compiled(NamedTuple):
    """A program, and what it took to make it."""

    program: Any
    seconds: float  # of CPU time: tracing, lowering and compiling
    instructions: int  # of the optimized HLO


def _optimizers() -> dict[str, tuple[optax.GradientTransformation, str | None]]:
    """The rows, by name: an optimizer, and the row of the same optimizer without DEF."""
    sgd, adamw = peers.momentum_sgd(), optax.adamw(1e-3)

    def feedback(inner, ratio, **options):
        detach = options.pop('detach', 0.3)
        block = def_jax.random_block(ratio, **options)
        return optax.chain(inner, def_jax.error_feedback(block, None, detach=detach))

    return {
        'momentum SGD': (sgd, None),
        'DEF, 1/64': (feedback(sgd, 64), 'momentum SGD'),
        'DEF, 1/100': (feedback(sgd, 100), 'momentum SGD'),
        "DEF, 1/64, shuffled, detach='auto'": (
            feedback(sgd, 64, order='shuffled', detach='auto'),
            'momentum SGD',
        ),
        'AdamW': (adamw, None),
        'AdamW in DEF, 1/64': (feedback(adamw, 64), 'AdamW'),
    }


def compile_times(tensors: Sequence[int], repeats: int) -> str:
    """The table of compile times: medians, one row for each number of tensors and optimizer."""
    rows = []
    for count in tensors:
        shapes = [jax.ShapeDtypeStruct(_PAIR[i % 2], jnp.float32) for i in range(count)]
        found = {name: compile_cold(optimizer, shapes) for name, (optimizer, _) in _optimizers().items()}
        seconds = {name: [compiled.seconds] for name, compiled in found.items()}
        for _ in range(repeats - 1):  # in turn, so that drift affects all alike
            for name, (optimizer, _) in _optimizers().items():
                seconds[name].append(compile_cold(optimizer, shapes).seconds)
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        for name, (_, alone) in _optimizers().items():
            ratio = f'{medians[name] / medians[alone]:.1f}' if alone else ''
            per_tensor = f'{found[name].instructions / count:.0f}'
            rows.append([f'{count:,}', name, f'{medians[name]:.2f}', ratio, per_tensor])
    columns = ['tensors', 'optimizer', 'CPU seconds', 'ratio to the optimizer alone (target: ≤ 2)']
    title = f'## Compile time\n\nMatrices and vectors in turn, median of {repeats}.\n\n'
    return title + timing.table([*columns, 'HLO instructions a tensor'], rows)


def compile_cold(optimizer: optax.GradientTransformation, params: PyTree) -> Compiled:
    """Compiles the stage for parameters of these shapes, with nothing cached."""
    jax.clear_caches()
    arguments = params, jax.eval_shape(optimizer.init, params)
    before = os.times()
    program = timing.compiled(functools.partial(update, optimizer), *arguments, params, donate=[0, 1])
    after = os.times()
    seconds = after.user + after.system - before.user - before.system
    return Compiled(
        program, seconds, len(re.findall(r'^ +(?:ROOT )?%\S+ = ', program.as_text(), re.MULTILINE))
    )
