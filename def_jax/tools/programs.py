"""What a compiled program sends, within workers and between them.

    python -m def_jax.communication step.txt --workers=0,0,0,0,1,1,1,1

reads the HLO of a program of your own, `step.lower(...).compile().as_text()`. The worker of each device, in
the mesh's order, tells data that stays within a worker from data that crosses between workers.

    python -m def_jax.communication --config=configs/digits.py --config.ratio=256

compiles what the trainer would run, without training; it needs the extra `training`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from def_jax.tools import markdown
from def_jax.traffic.hlo import collectives

__all__ = ['main', 'summary']


def summary(hlo: str, workers: Sequence[int]) -> str:
    """A table of the collectives of a program: what a device passes to them in one execution.

    Args:
        hlo: optimised HLO.
        workers: the worker of each device.

    Raises:
        ValueError: if a collective names a device that `workers` lacks, or cannot be read.

    >>> print(summary('r = f32[8]{0} all-reduce(x), replica_groups={{0,2},{1,3}}', [0, 0, 1, 1]))
    | where | operation | collectives | elements | bytes |
    | --- | --- | --- | --- | --- |
    | between workers | all-reduce | 1 | 8 | 32 |
    """
    sums: dict[tuple[str, str], list[int]] = {}
    for collective in (found.passed(len(workers)) for found in collectives(hlo)):
        if (largest := max((max(group) for group in collective.groups), default=0)) >= len(workers):
            raise ValueError(
                f'workers={list(workers)} has {len(workers)} devices, but the program has device {largest}. '
                'Give the worker of every device of the mesh.'
            )
        where = 'between workers' if collective.crosses(workers) else 'within a worker'
        total = sums.setdefault((where, collective.operation), [0, 0, 0])
        for i, figure in enumerate((1, collective.elements, collective.bytes)):
            total[i] += collective.times * figure
    rows = [[*key, *(f'{figure:,}' for figure in sums[key])] for key in sorted(sums)]
    return markdown.table([['where', 'operation', 'collectives', 'elements', 'bytes'], *rows])


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
    given = parser.parse_args(arguments)
    try:
        print(summary(given.file.read_text(), given.workers))
    except (OSError, ValueError) as error:
        print(f'communication: {error}', file=sys.stderr)
        return 2
    return 0


def _integers(text: str) -> list[int]:
    try:
        return [int(worker) for worker in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} must be integers, such as 0,0,1,1') from None
