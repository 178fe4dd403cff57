"""Compiled programs timed in turn, and the limit that memory bandwidth sets.

All stages of a table run in turn in one process, so that drift in the machine's speed affects all equally. A
figure is the median of the rounds after warm-up; only its ratio to another row of the table is meaningful.
The first call of a turn is not counted: after a stage that frees much memory, it takes up to twice as long.
"""

import contextlib
import ctypes
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from benchmarks.optimizers import update

__all__ = [
    'TRIAD_PASSES',
    'Stage',
    'alternate',
    'compiled',
    'copy_limit',
    'keep_memory',
    'limit',
    'stage',
    'stage_with_point',
]

TRIAD_PASSES = 3  # reads m and g, writes m
_SHORTEST = 5e-3  # seconds per measurement, long enough to hide the launch of a program
_WARM_UP = 0.2  # fraction of the rounds

PyTree = Any


class Stage:
    """One variant of a computation, as a function from state to state, and the seconds it took."""

    def __init__(
        self,
        step: Callable[[PyTree], PyTree],
        state: PyTree,
        *,
        programs: Sequence[Any] = (),
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._step, self._state, self._clock = step, state, clock
        self.programs = programs  # the compiled programs that make up the step
        self._calls: int | None = None
        self.seconds: list[float] = []

    def run(self, calls: int | None = None) -> None:
        """Times `calls` steps, waiting once at the end; by default as many as a measurement needs."""
        if calls is None and self._calls is None:
            self._wait(1)
            self._calls = min(100, math.ceil(_SHORTEST / self._wait(1)))
        calls = calls or self._calls or 1
        self._wait(1)
        self.seconds.append(self._wait(calls) / calls)

    def _wait(self, calls: int) -> float:
        start = self._clock()
        for _ in range(calls):
            self._state = self._step(self._state)
        jax.block_until_ready(self._state)
        return self._clock() - start

    @property
    def median(self) -> float:
        return float(np.median(self.seconds[int(len(self.seconds) * _WARM_UP) :]))


def keep_memory() -> None:
    """Lets malloc keep what is freed, as JAX's allocator for GPUs does; does nothing where there is no glibc.

    Above 32 MB glibc returns memory to the system, and a program's temporaries are mapped page by page again
    at every call, which may take longer than its arithmetic.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
        for option in trim_threshold, top_pad, mmap_threshold:
            set_option(option, 2**28)


def alternate(stages: Iterable[Stage], *, rounds: int, calls: int | None = None, seconds: float = 60) -> None:
    """Runs all stages in turn, `rounds` times, or after three rounds until `seconds` have passed."""
    stages, start = list(stages), time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > seconds:
            break
        for stage in stages:
            stage.run(calls)


def compiled(function: Callable, *arguments: PyTree, donate: Sequence[int] = ()) -> Any:
    """The function, compiled for arguments like these, which may be shapes; donates those in `donate`."""
    # A donated argument may be no more than a buffer to fill, hence `keep_unused`.
    jitted = jax.jit(function, donate_argnums=tuple(donate), keep_unused=True)
    return jitted.lower(*arguments).compile()


def stage(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree, **clock: Any) -> Stage:
    """The optimizer stage for given gradients."""
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    return _one_program(functools.partial(update, optimizer), state, grads, **clock)


def stage_with_point(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree) -> Stage:
    """The stage, after a program that overwrites the detached point of the previous step."""
    point, params, opt_state = *(jax.tree.map(jnp.copy, params) for _ in range(2)), optimizer.init(params)

    def detached(point, params, opt_state):
        del point
        return def_jax.detached_params(params, opt_state)

    detach = compiled(detached, point, params, opt_state, donate=[0])
    plain = compiled(functools.partial(update, optimizer), params, opt_state, grads, donate=[0, 1])

    def step(state):
        point, params, opt_state = state
        return detach(point, params, opt_state), *plain(params, opt_state, grads)

    return Stage(step, (point, params, opt_state), programs=[detach, plain])


def limit(size: int) -> Stage:
    """m <- 0.9·m + g on `size` float32 elements: `TRIAD_PASSES` over memory and next to no arithmetic."""
    return _one_program(lambda m, g: (0.9 * m + g,), (jnp.zeros(size),), jnp.full(size, 1e-3))


def copy_limit(size: int) -> Stage:
    """z <- x + 0.3·r: the passes of a detached point, written to memory that the program does not read."""

    def add(z, x, r):
        del z
        return (x + 0.3 * r,)

    return _one_program(add, (jnp.zeros(size),), jnp.ones(size), jnp.full(size, 1e-3))


def _one_program(function: Callable, state: tuple, *given: PyTree, **clock: Any) -> Stage:
    """A stage of a function from the parts of the state and `given` to the new state."""
    program = compiled(function, *state, *given, donate=range(len(state)))
    return Stage(lambda state: program(*state, *given), state, programs=[program], **clock)
