"""What a compiled program sends, within workers and between them.

    python -m def_jax.communication step.txt --workers=0,0,0,0,1,1,1,1

reads the HLO of a program of your own, `step.lower(...).compile().as_text()`. The worker of each device, in
the mesh's order, tells data that stays within a worker from data that crosses between workers. Bytes are
the size of what a device contributes. With `--devices-per-node=8`, a column has what leaves a node of eight
neighbours in that order, with 1 what the link of a device carries: all-reduces, all-gathers and
reduce-scatters as rings in that order, all-to-alls straight from device to device.

    python -m def_jax.communication --config=configs/digits.py --config.ratio=256

compiles what the trainer would run, without training; it needs the extra `training`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from def_jax.tools import markdown
from def_jax.traffic.hlo import collectives
from def_jax.traffic.nodes import nodes_of

__all__ = ['main', 'summary']


def summary(hlo: str, workers: Sequence[int], devices_per_node: int | None = None) -> str:
    """A table of the collectives of a program: what a device passes to them in one execution.

    Args:
        hlo: optimised HLO.
        workers: the worker of each device.
        devices_per_node: how many neighbours share a link, for a column with the bytes that leave the node
            that sends most, see `def_jax.check`.

    Raises:
        ValueError: if a collective names a device that `workers` lacks, or cannot be read; if
            `devices_per_node` does not divide the devices.

    >>> print(summary('r = f32[8]{0} all-reduce(x), replica_groups={{0,2},{1,3}}', [0, 0, 1, 1]))
    | where | operation | collectives | elements | bytes |
    | --- | --- | --- | --- | --- |
    | between workers | all-reduce | 1 | 8 | 32 |
    """
    sums: dict[tuple[str, str], list[int]] = {}
    nodes = [] if devices_per_node is None else nodes_of(len(workers), devices_per_node)
    columns = ['collectives', 'elements', 'bytes', *(['bytes leaving a node'] if nodes else [])]
    for found in collectives(hlo):
        if (largest := max((max(group) for group in found.groups), default=0)) >= len(workers):
            raise ValueError(
                f'workers={list(workers)} has {len(workers)} devices, but the program has device {largest}. '
                'Give the worker of every device of the mesh.'
            )
        collective = found.passed(len(workers), nodes=nodes)
        where = 'between workers' if collective.crosses(workers) else 'within a worker'
        total = sums.setdefault((where, collective.operation), [0] * len(columns))
        figures = 1, collective.elements, collective.bytes, collective.node_bytes
        for i, figure in enumerate(figures[: len(columns)]):
            total[i] += collective.times * figure
    rows = [[*key, *(f'{figure:,}' for figure in sums[key])] for key in sorted(sums)]
    return markdown.table([['where', 'operation', *columns], *rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or one line about what is wrong."""
    parser = argparse.ArgumentParser(
        prog='python -m def_jax.communication',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('file', type=Path, help='optimised HLO, as text')
    parser.add_argument(
        '--workers', required=True, type=_integers, help="each device's worker, e.g. 0,0,0,0,1,1,1,1"
    )
    parser.add_argument(
        '--devices-per-node', type=int, help='how many neighbours share a link; adds what leaves a node'
    )
    given = parser.parse_args(arguments)
    try:
        print(summary(given.file.read_text(), given.workers, given.devices_per_node))
    except (OSError, ValueError) as error:
        print(f'communication: {error}', file=sys.stderr)
        return 2
    return 0


def _integers(text: str) -> list[int]:
    try:
        return [int(worker) for worker in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} must be integers, such as 0,0,1,1') from None
