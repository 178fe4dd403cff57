"""What many small tensors cost: the step of `def_adamw` beside AdamW's, and the time to compile it.

    python -m benchmarks.leaves --output=results/benchmarks/leaves.md

Tensors are of shape (8, 64). Compiled are whole steps under pmap over eight fake CPU devices, by CPU seconds
of this process, which other programs disturb little. Timed is the optimizer's stage of one device that acts
as one of eight workers, whose collectives copy (`benchmarks.copying`). Both by turns, medians of ratios.
"""

import contextlib
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import def_jax
from benchmarks import pages
from benchmarks.copying import as_one_of
from benchmarks.optimizers import update

_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks/leaves.md', 'The page, whose table is replaced.')
_LEAVES = flags.DEFINE_multi_integer('leaves', [3, 300, 1000], 'Numbers of tensors: a row each.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'How often every step is compiled.', lower_bound=1)

_WORKERS, _SHAPE, _RATE, _STEPS = 8, (8, 64), 1e-3, 40


def main(_) -> None:
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', _WORKERS)
    jax.config.update('jax_enable_compilation_cache', False)
    rows = []
    for leaves in _LEAVES.value:
        params = {f'{i:04d}': np.full(_SHAPE, 0.5, np.float32) for i in range(leaves)}
        compiling = [(_compiling(params, dense=True), _compiling(params)) for _ in range(_ROUNDS.value)]
        dense, own = map(statistics.median, zip(*compiling, strict=True))
        plain, steps, flat = _timed(params)
        row = {'tensors': leaves, 'AdamW compiles, s': f'{dense:.1f}', 'def_adamw, s': f'{own:.1f}'}
        row['over AdamW'] = f'{statistics.median(b / a for a, b in compiling):.2f}'
        row |= {'a step of AdamW, ms': f'{1e3 * statistics.median(plain):.2f}'}
        row |= {'of def_adamw, ms': f'{1e3 * statistics.median(steps):.2f}'}
        for column, seconds in (('step over AdamW', steps), ('in optax.flatten, over AdamW', flat)):
            row[column] = f'{statistics.median(b / a for a, b in zip(plain, seconds, strict=True)):.2f}'
        rows.append(row)
    pages.write(_OUTPUT.value, {'table': pages.table(rows), 'origin': pages.origin('benchmarks.leaves')})


def _compiling(params: Any, *, dense: bool = False) -> float:
    """CPU seconds to trace and compile a step under pmap."""
    optimizer = optax.adamw(_RATE) if dense else def_jax.def_adamw(_RATE, 64, 'workers')

    def step(params, opt_state, scale):
        point = params if dense else def_jax.detached_params(params, opt_state)
        grads = jax.grad(lambda x: sum(scale * jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(x)))(point)
        grads = jax.lax.pmean(grads, 'workers') if dense else grads
        return update(optimizer, params, opt_state, grads)

    arguments = params, jax.eval_shape(optimizer.init, params), np.float32(1)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((_WORKERS, *x.shape), x.dtype), arguments)
    jax.clear_caches()
    start = sum(os.times()[:2])
    jax.pmap(step, 'workers', donate_argnums=(0, 1)).lower(*stacked).compile()
    return sum(os.times()[:2]) - start


def _timed(params: Any) -> list[list[float]]:
    """Seconds of steps of AdamW, of def_adamw, and of that in `optax.flatten`, one after the other."""
    own = def_jax.def_adamw(_RATE, 64, None)
    stages = [
        _stage(params, optax.adamw(_RATE)),
        _stage(params, own, _WORKERS),
        _stage(params, optax.flatten(own), _WORKERS),
    ]
    seconds: list[list[float]] = [[] for _ in stages]
    for _ in range(_STEPS):
        for stage, found in zip(stages, seconds, strict=True):
            start = time.perf_counter()
            stage()
            found.append(time.perf_counter() - start)
    return [found[_STEPS // 4 :] for found in seconds]


def _stage(params: Any, optimizer: optax.GradientTransformation, workers: int = 1) -> Any:
    """A function that makes one step of the optimizer and waits for it."""
    with as_one_of(workers) if workers > 1 else contextlib.nullcontext():
        step = jax.jit(lambda p, s, g: update(optimizer, p, s, g), donate_argnums=(0, 1))
        grads = jax.tree.map(jnp.asarray, params)
        state = [jax.tree.map(jnp.array, params), optimizer.init(params)]
        compiled = step.lower(*state, grads).compile()

    def stage() -> None:
        state[:] = jax.block_until_ready(compiled(*state, grads))

    return stage


if __name__ == '__main__':
    app.run(main)
