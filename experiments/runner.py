"""Trains the runs that have no record yet here or elsewhere, one record appended as soon as it is there."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments import lanes, methods, trained
from experiments.spec import Record, Records, Spec
from experiments.tuning import Cell, Setting, cell

__all__ = ['EXECUTORS', 'Runner', 'finished', 'recorded', 'train']

EXECUTORS: Mapping[str, Callable[..., Iterator[Record]]] = {'lanes': lanes.run, 'trainer': trained.run}


class Runner:
    """Gives the records of runs; trains those that are missing.

    Args:
        records: where they are kept.
        origin: for new records, see `spec.origin`.
        executor: a key of `EXECUTORS`.
        others: records of other experiments, which are taken over where they are of the same run.
    """

    def __init__(
        self,
        records: Records,
        origin: Mapping[str, Any],
        executor: str = 'lanes',
        others: Sequence[Records] = (),
    ):
        self._records, self._origin, self._run = records, origin, EXECUTORS[executor]
        self._others = others

    def __call__(self, specs: Sequence[Spec]) -> list[Record]:
        missing = []
        for spec in {spec.key: spec for spec in specs if self._records.get(spec) is None}.values():
            if found := next(filter(None, (other.get(spec) for other in self._others)), None):
                self._records.add(found)
            else:
                missing.append(spec)
        for spec in {spec.group: spec for spec in missing}.values():
            if spec.revision != (wanted := methods.revision(spec)):
                raise ValueError(
                    f'{spec} would be of revision {wanted!r}, see methods.revision: its own runs were made '
                    'before.'
                )
        for _, group in itertools.groupby(missing, key=lambda spec: spec.group):
            for record in self._run(list(group), self._origin):
                self._records.add(record)
                print(_line(record), file=sys.stderr, flush=True)
        return recorded(self._records)(specs)


def recorded(records: Records) -> Callable[[Sequence[Spec]], list[Record]]:
    """A function that gives the records of runs, or raises LookupError if one is missing."""

    def get(specs: Sequence[Spec]) -> list[Record]:
        found = [records.get(spec) for spec in specs]
        if None in found:
            raise LookupError(f'{found.count(None)} of {len(specs)} runs have no record.')
        return [record for record in found if record is not None]

    return get


def train(settings: Iterable[Setting], runner: Runner) -> None:
    """Trains all that settings ask for; says what each method reached, or that no rate is best."""
    for setting in settings:
        for contender in setting.contenders:
            try:
                done = cell(setting, contender, runner)
            except LookupError as error:  # no rate is best: the others go on
                print(f'{setting.name}: {contender.title}: {error}', file=sys.stderr, flush=True)
                continue
            rates = ', '.join(f'{setting.rate(contender, k):g}' for k in done.side.fresh)
            print(
                f'{setting.name}: {contender.title} {done.headline} at {rates}', file=sys.stderr, flush=True
            )


def finished(settings: Iterable[Setting], records: Records) -> list[list[Cell]]:
    """The cells that have all records, for each setting whose first method has."""
    get, found = recorded(records), []
    for setting in settings:
        cells = []
        for contender in setting.contenders:
            try:
                cells.append(cell(setting, contender, get))
            except LookupError:
                if contender is setting.contenders[0]:
                    break
        if cells:
            found.append(cells)
    return found


def _line(record: Record) -> str:
    spec, shown = record.spec, {k: v for k, v in record.metrics.items() if 'loss' in k or 'accuracy' in k}
    metrics = ', '.join(
        f'{name} {value}' for name, value in shown.items() if name.startswith(spec.evaluate_on)
    )
    return f'{spec.problem} {spec.method} rate {spec.rate:g} seed {spec.seed}: {metrics}; {record.seconds} s'
