"""Shared by the benchmarks: compiled programs timed in turn, the limit set by memory bandwidth, and tables.

All stages of a table run in turn in one process, so that drift in the machine's speed affects all equally. A
figure is the median of the rounds after warm-up; only its ratio to another row of the table is meaningful.
The first call of a turn is not counted: after a stage that frees much memory, it takes up to twice as long.
"""

import math
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.tools import markdown

__all__ = [
    'TRIAD_PASSES',
    'Stage',
    'alternate',
    'commit',
    'compile_stage',
    'compiled',
    'copy_limit',
    'full_size_copies',
    'limit',
    'table',
    'triad',
    'write_page',
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


def alternate(stages: Iterable[Stage], *, rounds: int, calls: int | None = None, seconds: float = 60) -> None:
    """Runs all stages in turn, `rounds` times, or after three rounds until `seconds` have passed."""
    stages, start = list(stages), time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - start > seconds:
            break
        for stage in stages:
            stage.run(calls)


def compiled(function: Callable, *arguments: PyTree, donate: Sequence[int] = (), transform=jax.jit) -> Any:
    """The function, compiled for arguments like these, which may be shapes; donates those in `donate`."""
    # A donated argument may be no more than a buffer to fill.
    options = {'keep_unused': True} if transform is jax.jit else {}
    return transform(function, donate_argnums=tuple(donate), **options).lower(*arguments).compile()


def compile_stage(function: Callable, state: tuple, *given: PyTree, transform=jax.jit) -> Stage:
    """A stage of a single program, a function from the parts of the state and `given` to the new state."""
    program = compiled(function, *state, *given, donate=range(len(state)), transform=transform)
    return Stage(lambda state: program(*state, *given), state, programs=[program])


def triad(m: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    """The limit set by memory: three passes over it and next to no arithmetic."""
    return (0.9 * m + g,)


def limit(size: int) -> Stage:
    """`triad` on `size` float32 elements: its time, scaled by passes over memory, is the limit."""
    return compile_stage(triad, (jnp.zeros(size),), jnp.full(size, 1e-3))


def copy_limit(size: int) -> Stage:
    """z <- x + 0.3·r: the passes of a detached point, written to memory that the program does not read."""
    x, r = jnp.ones(size), jnp.full(size, 1e-3)

    def add(z, x, r):
        del z
        return (x + 0.3 * r,)

    return compile_stage(add, (jnp.zeros(size),), x, r)


def full_size_copies(program: Any, smallest: int) -> int:
    """Number of float arrays of at least `smallest` elements that a compiled program copies in memory."""
    count, fused = 0, False
    for line in program.as_text().splitlines():
        if line[:1] not in ('', ' ', '}'):  # a computation begins
            fused = line.startswith('%fused_computation')
        found = re.match(r'\s*(ROOT )?\S+ = f32\[([\d,]*)\]\S* copy\(', line)
        # Of a fusion, only its result is written to memory.
        if found and (found[1] or not fused):
            count += math.prod(int(n) for n in found[2].split(',') if n) >= smallest
    return count


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, as a section of a page."""
    return markdown.table([columns, *rows]) + '\n'


def write_page(output: str | None, command: str, sections: Sequence[str]) -> None:
    """Prints the sections and, if a file is given, writes them with the command, commit and machine.

    The command-line arguments follow `command`, except the path of this machine's PyTorch.
    """
    text = '\n'.join(sections)
    print(text)
    if output:
        path = Path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = [shlex.quote(a) for a in sys.argv[1:] if not a.startswith('--torch_python')]
        command = ' '.join([command, *shown])
        path.write_text(f'`{command}`\n\n{_machine()}\n\n{text}')


def _machine() -> str:
    return (
        f'{jax.default_backend().upper()}: {_device()}, {platform.machine()}; jax {jax.__version__}, Python '
        f'{platform.python_version()}; commit {commit()}.'
    )


def commit() -> str:
    """The current commit, and whether anything but results, where benchmarks write, differs from it."""
    name, changes = (
        subprocess.run(['git', *command], capture_output=True, text=True).stdout.strip()
        for command in (['describe', '--always'], ['status', '--porcelain', '--', ':!results'])
    )
    return f'{name or "unknown"}{"-dirty" if changes else ""}'


def _device() -> str:
    if jax.default_backend() != 'cpu':
        return f'{len(jax.devices())} × {jax.devices()[0].device_kind}'
    information = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', information.read_text()) if information.exists() else []
    return f'{os.cpu_count()} cores of {names[0] if names else platform.processor()}'
