"""What a compiled program sends, read from its HLO."""

import bisect
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast, get_args

import numpy as np

from def_jax.traffic.nodes import Groups, Operation, crosses, leaving

__all__ = ['Collective', 'Operation', 'collectives', 'replica_groups']

_OPERATIONS = '|'.join(get_args(Operation))
_COLLECTIVE = re.compile(rf'^ *(?:ROOT )?(\S+) = (.*?) ({_OPERATIONS})(?:-start)?\((.*)', re.MULTILINE)
_DONE = re.compile(rf'= (.*?) (?:{_OPERATIONS})-done\((\S+?)[,)]')
_NAME = re.compile(r'op_name="([^"]*)"')
_HIDDEN = re.compile(r'channel_id=(\d+).*async_collective_fusion_config')
_PROMOTED = re.compile(r'to_apply=\S*_promoted')  # XLA for CPUs sums bfloat16 in float32
_RANGE = r'(\[[\d,]+\](?:T\([\d,]+\))?)'
_IN_ROWS = re.compile(rf'replica_groups=\[([\d,]+)\]<={_RANGE}(?:,\s|$)')
_MESH = re.compile(rf'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_RANGE}\))? \{{([^}}]*)\}}')
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$', re.MULTILINE)
_CALLED = re.compile(r'(?:body|condition|calls|to_apply|\w+_computations?)=\{?%?([^,)}]*(?:, ?%[^,)}]*)*)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
_BETWEEN_SLICES = re.compile(r'= (.*) recv\((.*_xla_megascale_.*)')
_SLICES = re.compile(r'megascale_target="\{1,(\d+)\}x\{0:(\d+)\}"')
_OF_SLICES = re.compile(r'megascale_target="?\{((?:\{[\d,]+\},?)+)\}')
_TRANSFER = re.compile(r'megascale_transfer_type="(\w+)"')
_SLICE = 100_000  # what the number of a slice's first device is a multiple of, from the first slice on
_TILE = 8 * 128  # elements of a TPU's registers


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    `elements` and `bytes` are of all results that a device gets. From `passed`, and so from `check`, they are
    of what it contributes; what leaves a node, or a device where that is a node, is `node_bytes`.
    """

    operation: Operation
    elements: int  # in all its results together
    bytes: int
    groups: Groups = ()
    name: str = ''  # what it computes, as JAX named it: of functions, or of an argument
    dtype: str = ''  # as HLO writes it, e.g. 'bf16'; several are joined by commas
    padding: int = 0  # how many of the bytes, at most, only fill up a tile, or widen 16 bits to 32
    times: int = 1  # how often it runs, in loops whose turns are known; see `steps` of `collectives`
    node_bytes: int = 0  # what leaves the node that sends most, where `passed` is told the nodes

    def crosses(self, workers: Sequence[int]) -> bool:
        """Whether data moves between workers, given each device's worker.

        >>> Collective('all-reduce', 7, 28, ((0, 2), (1, 3))).crosses([0, 0, 1, 1])
        True
        """
        return crosses(self.groups, workers)

    def passed(self, num_devices: int, *, to_others: bool = False, nodes: Sequence[int] = ()) -> 'Collective':
        """The same with what each of the devices passes to it, or `to_others`, instead of what each gets.

        With the node of each device, `node_bytes` is what leaves a node, see `nodes.leaving`.

        >>> Collective('all-gather', 8, 32).passed(4).elements
        2
        """
        size = len(self.groups[0]) if self.groups else num_devices
        times, parts = {'all-gather': (1, size), 'reduce-scatter': (size, 1)}.get(self.operation, (1, 1))
        node_bytes = leaving(self.operation, self.bytes * times // parts, self.groups, nodes) if nodes else 0
        if to_others and self.operation == 'all-to-all':  # of which a device keeps its own part
            times, parts = size - 1, size
        elements, size = self.elements * times // parts, self.bytes * times // parts
        return self._replace(elements=elements, bytes=size, node_bytes=node_bytes)


def collectives(hlo: str, steps: int = 1) -> list[Collective]:
    """The collectives of a compiled program, in order.

    Args:
        hlo: optimised HLO, as returned by `jax.jit(f).lower(...).compile().as_text()`.
        steps: what `times` is at least in a loop of unknown length.

    Returns:
        The collectives. One in a branch that is not always taken counts once, as does an asynchronous one. On
        TPUs, several fusions may hide one; one between slices is a pair of send and recv, of an array padded
        to whole tiles, and the devices of a slice are taken to be neighbours in the mesh.

    Raises:
        ValueError: if a result has a type of unknown size, or groups or slices are in an unknown form.

    >>> collectives('ROOT r = (f32[3,2]{1,0}, bf16[]) all-reduce(x, y), replica_groups={{0,1}}')[0][:6]
    ('all-reduce', 7, 26, ((0, 1),), '', 'f32,bf16')
    """
    found: list[Collective] = []
    done = {start: result for result, start in _DONE.findall(hlo)}
    channels, turns = set(), _turns(hlo, steps)
    for match in _COLLECTIVE.finditer(hlo):
        start, result, operation, rest = map(str, match.groups())
        if hidden := _HIDDEN.search(rest):
            if hidden[1] in channels:
                continue
            channels.add(hidden[1])
        named, kind = _NAME.search(rest), cast(Operation, operation)
        elements, size, dtype = _arrays(operation, done.get(start, result))
        groups, name = replica_groups(rest), named[1] if named else ''
        widened = size // 2 if _PROMOTED.search(rest) else 0
        found.append(Collective(kind, elements, size, groups, name, dtype, widened, turns(match.start())))
    return found + [_between_slices(result, rest) for result, rest in _BETWEEN_SLICES.findall(hlo)]


def _turns(hlo: str, steps: int) -> Callable[[int], int]:
    """How often what stands at a position runs, by the known turns of the loops around it.

    If the turns of one are unknown, that is `steps` at least.
    """
    starts = [(match.start(), match[1]) for match in _COMPUTATION.finditer(hlo)]
    callers: dict[str, tuple[str, int]] = {}  # of a computation: where it is called from, and how often, or 0
    for (begin, name), (end, _) in itertools.pairwise([*starts, (len(hlo), '')]):
        for line in hlo[begin:end].splitlines()[1:]:
            turns = _TRIPS.search(line)
            for called in _CALLED.findall(line):
                for part in re.findall(r'[\w.\-]+', called):
                    callers[part] = name, int(turns[1]) if turns else int(' while(' not in line)

    def times(position: int) -> int:
        place = bisect.bisect([begin for begin, _ in starts], position) - 1
        name, known, least = starts[place][1] if place >= 0 else '', 1, 1
        while name in callers:
            name, turns = callers[name]
            known, least = known * (turns or 1), least if turns else steps
        return max(known, least)

    return times


def _arrays(operation: str, result: str) -> tuple[int, int, str]:
    """Elements, bytes and dtypes of all arrays of a result."""
    elements = bits = 0
    arrays = _ARRAY.findall(result)
    for kind, dims in arrays:
        size = re.match(r'pred|[a-z]+(\d+)', kind)  # f32, bf16, f8e4m3fn, s4
        if not size:
            raise ValueError(f'{operation} of {kind} in the HLO: the size of this type is unknown.')
        count = math.prod(int(n) for n in dims.split(',') if n)
        elements, bits = elements + count, bits + count * int(size[1] or 8)
    return elements, bits // 8, ','.join(dict.fromkeys(kind for kind, _ in arrays))


def _between_slices(result: str, attributes: str) -> Collective:
    found = _TRANSFER.search(attributes)
    kind: Any = found and found[1].lower().replace('_', '-')
    groups = _slices(attributes)
    if not groups or kind not in get_args(Operation):
        raise ValueError(f'an exchange between slices in an unknown form: {attributes[:300]}')
    elements, size, dtype = _arrays(kind, result.partition(', u32[]')[0])
    padding = (_TILE - 1) * size // elements
    return Collective(kind, elements, size, groups, '', dtype, padding)


def _slices(attributes: str) -> Groups:
    """The groups of an exchange between slices: of all, or as a list; empty in another form.

    >>> _slices('megascale_target="{1,2}x{0:1}"')
    ((0, 2), (1, 3))
    >>> _slices('megascale_target={{100000,200000},{100001,200001}}')
    ((0, 2), (1, 3))
    """
    if match := _SLICES.search(attributes):
        slices, devices = int(match[1]), int(match[2]) + 1
        return tuple(tuple(range(i, slices * devices, devices)) for i in range(devices))
    if match := _OF_SLICES.search(attributes):
        groups = [_numbers(group) for group in re.findall(r'\{([\d,]+)\}', match[1])]
        devices = max(number % _SLICE for group in groups for number in group) + 1
        return tuple(
            tuple((number // _SLICE - 1) * devices + number % _SLICE for number in group) for group in groups
        )
    return ()


def replica_groups(attributes: str) -> Groups:
    """The groups of devices, from what follows a collective's operands in HLO; empty for one group of all.

    A list, a reshaped and transposed range, axes of a mesh or factors of axes, or pairs of source and target:

    >>> replica_groups('replica_groups={{0,2},{1,3}}')
    ((0, 2), (1, 3))
    >>> replica_groups('replica_groups=[2,2]<=[4]'), replica_groups('replica_groups=[2,2]<=[2,2]T(1,0)')
    (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    >>> replica_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}")
    ((0, 2), (1, 3))
    >>> replica_groups("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}")  # the second 2 of 4 = 2 x 2
    ((0, 1), (2, 3), (4, 5), (6, 7))
    >>> replica_groups('source_target_pairs={{0,1},{1,0}}')
    ((0, 1), (1, 0))
    """
    if match := re.search(r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}', attributes):
        return tuple(tuple(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', match[1]))
    if match := _IN_ROWS.search(attributes):
        return tuple(map(tuple, _range(match[2]).reshape(_numbers(match[1])).tolist()))
    if match := _MESH.search(attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", match[1])}
        parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", match[3])
        chosen = [(n, int(before or 1), int(size or sizes.get(n, 0))) for n, before, size in parts]
        if all(size and sizes.get(n, 0) % (before * size) == 0 for n, before, size in chosen):
            devices = _range(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
            return _along(devices, sizes, chosen)
    if 'replica_groups' in attributes or 'source_target_pairs' in attributes:
        form = re.sub('.*?(replica_groups|source_target_pairs)', r'\1', attributes, count=1)
        raise ValueError(f'groups of devices in an unknown form: {form[:500]}')
    return ()


def _along(devices: np.ndarray, sizes: dict[str, int], parts: Sequence[tuple[str, int, int]]) -> Groups:
    """The groups along parts of a mesh's axes, each its axis' factor of a size after one of another size."""
    places: Any = dict(zip(sizes, np.indices(tuple(sizes.values())).reshape(len(sizes), -1), strict=True))
    for name, before, size in parts:
        after = sizes[name] // (before * size)
        places[name] = places[name] - places[name] // after % size * after
    groups: dict[Any, list[int]] = {}
    for device, *place in zip(devices.flat, *places.values(), strict=True):
        groups.setdefault(tuple(place), []).append(int(device))
    return tuple(map(tuple, groups.values()))


def _range(text: str) -> np.ndarray:
    """[2,4]T(1,0): 0 … 7 in this shape, transposed."""
    shape, *axes = (_numbers(part) for part in re.findall(r'[\d,]+', text))
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(*axes) if axes else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',')]
