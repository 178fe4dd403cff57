"""Figures of a run as they arise: metrics.jsonl, one record a line, and TensorBoard scalars."""

import json
import os
from pathlib import Path
from typing import Any

import tensorboardX

__all__ = ['MetricLog']


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard.

    A resumed run forgets the records after its checkpoint and writes them anew, so that the file is the
    same as if there had been no interruption.

    Args:
        workdir: the run's folder.
        resume_step: how many steps the run has done.
        writes: whether to write; otherwise, as in all processes but the first, records are only remembered.
    """

    def __init__(self, workdir: Path, resume_step: int, *, writes: bool = True):
        self._path = workdir / 'metrics.jsonl'
        self.records: list[dict[str, Any]] = [r for r in read(self._path) if _precedes(r, resume_step)]
        self._writes = writes
        if not writes:
            return
        partial = self._path.with_name(self._path.name + '.partial')
        partial.write_text(''.join(json.dumps(record) + '\n' for record in self.records))
        os.replace(partial, self._path)
        self._file = self._path.open('a')
        self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=resume_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds one record; `record['step']` counts the steps done."""
        self.records.append(record)
        if not self._writes:
            return
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()
        for name, value in record.items():
            if name not in ('step', 'pending'):
                self._board.add_scalar(name, value, record['step'])

    def check_reaches(self, step: int) -> None:
        """Raises ValueError where records up to the checkpoint of `step` are lost."""
        last = self.last('step', 0)
        if last < step:
            raise ValueError(
                f'{self._path} ends at step {last}, but the checkpoint to resume is of step {step}. '
                'Restore that file, or choose another --workdir to start anew.'
            )

    def pending(self, step: int) -> list[dict[str, Any]]:
        """What a run that was interrupted after `step` steps had measured but not yet recorded."""
        return next(
            (r['pending'] for r in reversed(self.records) if 'pending' in r and r['step'] == step), []
        )

    def last(self, name: str, default: float = 0.0) -> float:
        """The newest value of `name` in any record."""
        return next((record[name] for record in reversed(self.records) if name in record), default)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def _precedes(record: dict[str, Any], checkpoint_step: int) -> bool:
    """Whether a record was written before the checkpoint of that step; diagnostics of the step come after.

    What was pending at an earlier checkpoint has become part of a record since.
    """
    step = record['step']
    if step == checkpoint_step:
        return 'variance' not in record
    return step < checkpoint_step and 'pending' not in record


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that was cut short by a kill is dropped."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
