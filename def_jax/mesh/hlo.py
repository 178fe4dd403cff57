"""What a compiled program sends, read from its HLO."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from def_jax.mesh.replica_groups import replica_groups

__all__ = ['Collective', 'collectives']

_BITS = dict.fromkeys(('pred', 's8', 'u8'), 8)
_BITS |= dict.fromkeys(('bf16', 'f16', 's16', 'u16'), 16)
_BITS |= dict.fromkeys(('f32', 's32', 'u32'), 32)
_BITS |= dict.fromkeys(('f64', 's64', 'u64', 'c64'), 64)
_OPERATIONS = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
_COLLECTIVE = re.compile(rf'(\S+) = (.*?) ({_OPERATIONS})(?:-start)?\((.*)')
_DONE = re.compile(rf'= (.*?) (?:{_OPERATIONS})-done\((\S+?)[,)]')
_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')


class Collective(NamedTuple):
    """One collective operation of a compiled program."""

    operation: str  # its name in HLO, e.g. 'all-reduce'
    elements: int  # in all its results together
    bytes: int
    groups: tuple[tuple[int, ...], ...] = ()  # of devices that exchange data; empty for one group of all
    name: str = ''  # what it computes, as JAX named it: of functions, or of an argument
    dtype: str = ''  # as HLO writes it, e.g. 'bf16'; several are joined by commas

    def crosses(self, workers: Sequence[int]) -> bool:
        """Whether data moves between workers, given each device's worker.

        >>> Collective('all-reduce', 7, 28, ((0, 2), (1, 3))).crosses([0, 0, 1, 1])
        True
        """
        groups = self.groups or (tuple(range(len(workers))),)
        return any(len({workers[device] for device in group}) > 1 for group in groups)

    def passed(self, num_devices: int) -> 'Collective':
        """The same with what each of the devices passes to it instead of what each gets.

        >>> Collective('all-gather', 8, 32).passed(4).elements
        2
        """
        size = len(self.groups[0]) if self.groups else num_devices
        if self.operation == 'all-gather':
            return self._replace(elements=self.elements // size, bytes=self.bytes // size)
        if self.operation == 'reduce-scatter':
            return self._replace(elements=self.elements * size, bytes=self.bytes * size)
        return self


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, in order.

    Args:
        hlo: optimised HLO, as returned by `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
        The collectives. One inside a loop, or in a branch that is not always taken, counts once, as does an
        asynchronous one, the result of whose start may hold its operands, too.

    Raises:
        ValueError: if a result has a type of unknown size, or groups are written in an unknown form.

    >>> collectives('ROOT r = (f32[3,2]{1,0}, bf16[]) all-reduce(x, y), replica_groups={{0,1}}')
    [Collective(operation='all-reduce', elements=7, bytes=26, groups=((0, 1),), name='', dtype='f32,bf16')]
    """
    found, done = [], {start: result for result, start in _DONE.findall(hlo)}
    for start, result, operation, rest in _COLLECTIVE.findall(hlo):
        elements = bits = 0
        arrays = _ARRAY.findall(done.get(start, result))
        for kind, dims in arrays:
            if kind not in _BITS:
                raise ValueError(f'{operation} of {kind} in the HLO: the size of this type is unknown.')
            count = math.prod(int(n) for n in dims.split(',') if n)
            elements, bits = elements + count, bits + count * _BITS[kind]
        named = _NAME.search(rest)
        name, dtype = named[1] if named else '', ','.join(dict.fromkeys(kind for kind, _ in arrays))
        found.append(Collective(operation, elements, bits // 8, replica_groups(rest), name, dtype))
    return found
