"""What a compiled program holds, read from its HLO and from the compiler's own analyses."""

import math
import os
import re
from collections.abc import Set
from typing import Any

from def_jax.traffic.hlo import collectives

__all__ = ['copies', 'hidden', 'read']

_LARGE = 1_000_000  # bytes
_SIZES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's8': 1, 'u8': 1, 'pred': 1}
_ON_CHIP = r'T\(\S*\)S\(1\)'  # in a TPU's layouts
_NO_WORK = {'bitcast', 'get-tuple-element', 'tuple', 'parameter', 'constant', 'copy'}


def read(lowered: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Compiles a lowered step and returns its figures, as JSON holds them."""
    start = _cpu_seconds()
    compiled = lowered.compile(compiler_options=options)
    seconds, hlo = _cpu_seconds() - start, compiled.as_text()
    found = collectives(hlo)
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        'collectives': [[c.operation, c.dtype, c.elements, c.groups] for c in found],
        'hidden': hidden(hlo),
        'copies': copies(hlo, besides={c.elements for c in found}),
        'temporary': memory.temp_size_in_bytes,
        'bytes accessed': costs.get('bytes accessed'),
        'seconds': round(seconds, 1),
    }


def _cpu_seconds() -> float:
    """CPU time of this process and of its children: a compiler may start an assembler."""
    return sum(os.times()[:4])


def hidden(hlo: str) -> list[int]:
    """For each asynchronous collective, the operations of the gradient between its start and its done.

    JAX names what it differentiates `jvp` in the metadata of instructions. The program must be scheduled. An
    exchange between slices of TPUs starts with recv.
    """
    started: dict[str, int] = {}
    counts = []
    for line in hlo.splitlines():
        match = re.match(r'\s*(?:ROOT )?(%\S+) = .*? ([a-z][\w-]*)\((%[^,)\s]*)?', line)
        if not match:
            continue
        name, operation, operand = match.groups()
        if operation == 'recv' or (operation.endswith('-start') and operation != 'copy-start'):
            started[name] = 0
        elif operation.endswith('-done') and operand in started:
            counts.append(started.pop(operand))
        elif 'jvp(' in line and operation not in _NO_WORK:
            started = {start: count + 1 for start, count in started.items()}
    return counts


def copies(hlo: str, besides: Set[int] = frozenset(), smallest: int = _LARGE) -> dict[str, int]:
    """The arrays of at least `smallest` bytes that a program copies in memory: how often, by type and shape.

    What a TPU brings on the chip or back to its memory is read or written once, and counts as no copy.

    Args:
        hlo: of the compiled program.
        besides: numbers of elements that do not count: of messages.
        smallest: in bytes.
    """
    counts: dict[str, int] = {}
    on_chip: set[str] = set()
    fused = False
    for line in hlo.splitlines():
        if line[:1] not in ('', ' ', '}'):  # a computation begins; within a fusion only its result is written
            fused = line.startswith('%fused')
        if result := re.match(rf'\s*(?:ROOT )?(%\S+) = \S*{_ON_CHIP}', line):
            on_chip.add(result[1])
        found = re.match(r'\s*(ROOT )?\S+ = (\w+)\[([\d,]*)\]\S* copy\((%[^,)\s]*)', line)
        if found and (found[1] or not fused) and bool(result) == (found[4] in on_chip):
            elements = math.prod(int(n) for n in found[3].split(',') if n)
            if elements * _SIZES.get(found[2], 8) >= smallest and elements not in besides:
                shape = f'{found[2]}[{found[3]}]'
                counts[shape] = counts.get(shape, 0) + 1
    return counts
