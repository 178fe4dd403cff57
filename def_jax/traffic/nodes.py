"""What leaves a node, on the link that its devices share."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from def_jax.ground.arguments import check_integer

Groups = tuple[tuple[int, ...], ...]  # of devices that exchange data; empty for one group of all
Operation = Literal[
    'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute', 'collective-broadcast'
]


def nodes_of(devices: int, devices_per_node: Any) -> list[int]:
    """The node of each device: neighbours in the program's order share one.

    >>> nodes_of(4, 2)
    [0, 0, 1, 1]
    """
    check_integer('devices_per_node', devices_per_node, 1, 'devices that share a link')
    if devices % devices_per_node:
        raise ValueError(f'{devices_per_node=} must divide the {devices} devices of the program.')
    return [device // devices_per_node for device in range(devices)]


def crosses(groups: Groups, places: Sequence[int]) -> bool:
    """Whether data moves between workers or nodes, given each device's."""
    return any(len({places[device] for device in group}) > 1 for group in _listed(groups, places))


def leaving(operation: Operation, size: int, groups: Groups, nodes: Sequence[int]) -> int:
    """Bytes that a collective sends from the node that sends most, when a device passes `size` bytes to it.

    As they run: all-reduce, all-gather and reduce-scatter in rings in the devices' order, where each device
    sends to the next, 2 (S - 1) / S, S - 1 and (S - 1) / S times `size` for S devices; an all-to-all sends
    each part straight to the device that it is for, a permutation everything to its target; a broadcast is
    passed on in the devices' order. The bytes between devices of one node are not counted.

    >>> leaving('all-reduce', 16, (), [0] * 8 + [1] * 8), leaving('all-gather', 1, (), [0] * 8 + [1] * 8)
    (30, 15)
    >>> leaving('all-to-all', 16, (), [0] * 8 + [1] * 8)
    64
    """
    sent = Counter[int]()
    for group in _listed(groups, nodes):
        devices = len(group)
        if operation == 'all-to-all':
            for node, inside in Counter(nodes[device] for device in group).items():
                sent[node] += -(-inside * (devices - inside) * size // devices)
            continue
        hops: Iterable[tuple[int, int]] = itertools.pairwise(group)
        if operation in _RINGS:
            ring = sorted(group)
            hops = itertools.pairwise([*ring, ring[0]])
        for source, target in hops:
            if nodes[source] != nodes[target]:
                sent[nodes[source]] += _RINGS.get(operation, lambda size, _: size)(size, devices)
    return max(sent.values(), default=0)


# What a device of a ring sends to the next, rounded up.
_RINGS = {
    'all-reduce': lambda size, devices: -(-2 * (devices - 1) * size // devices),
    'all-gather': lambda size, devices: (devices - 1) * size,
    'reduce-scatter': lambda size, devices: -(-(devices - 1) * size // devices),
}


def _listed(groups: Groups, places: Sequence[int]) -> Groups:
    return groups or (tuple(range(len(places))),)
