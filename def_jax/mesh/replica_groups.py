"""Which devices exchange data in a collective, read from its HLO."""

import re

import numpy as np

__all__ = ['replica_groups']

_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}')


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The groups of devices of a collective; empty for one group of all.

    Args:
        attributes: what follows the operands in an instruction of HLO.

    Raises:
        ValueError: if the groups are written in none of the forms below.

    A list, a reshaped and transposed range, axes of a mesh, or pairs of source and target:

    >>> replica_groups('replica_groups={{0,2},{1,3}}')
    ((0, 2), (1, 3))
    >>> replica_groups('replica_groups=[2,2]<=[4]'), replica_groups('replica_groups=[2,2]<=[2,2]T(1,0)')
    (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    >>> replica_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}")
    ((0, 2), (1, 3))
    >>> replica_groups('source_target_pairs={{0,1},{1,0}}')
    ((0, 1), (1, 0))
    """
    if match := re.search(r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}', attributes):
        return tuple(tuple(map(int, group.split(','))) for group in re.findall(r'\{([\d,]+)\}', match[1]))
    if match := re.search(r'replica_groups=\[([\d,]+)\]<=(\S*?)(?:,\s|$)', attributes):
        return _tuples(_range(match[2]).reshape(_numbers(match[1])))
    if match := _MESH.search(attributes):
        axes = re.findall(r"'([^']*)'=(\d+)", match[1])
        names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
        devices = _range(match[2]) if match[2] else np.arange(np.prod(sizes))
        chosen = re.findall(r"'([^']*)'", match[3])
        if set(chosen) <= set(names) and ':' not in match[3]:
            last = [names.index(name) for name in chosen]
            order = [i for i in range(len(names)) if i not in last] + last
            group_size = int(np.prod([sizes[i] for i in last]))
            return _tuples(devices.reshape(sizes).transpose(order).reshape(-1, group_size))
    if 'replica_groups' in attributes or 'source_target_pairs' in attributes:
        raise ValueError(f'groups of devices in an unknown form: {attributes[:200]}')
    return ()


def _range(text: str) -> np.ndarray:
    """[2,4]T(1,0): 0 … 7 in this shape, transposed."""
    match = re.match(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
    if not match:
        raise ValueError(f'groups of devices in an unknown form: {text[:200]}')
    devices = np.arange(np.prod(_numbers(match[1]))).reshape(_numbers(match[1]))
    return devices.transpose(_numbers(match[2])) if match[2] else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(',')]


def _tuples(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(device) for device in group) for group in groups)
