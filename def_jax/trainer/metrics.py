"""Metrics of a run as they are measured: metrics.jsonl, one record per line, and TensorBoard scalars."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

from def_jax.trainer.checkpointing.workdir import append_to

__all__ = ['MetricLog', 'Seal', 'read']


class Seal(NamedTuple):
    """The extent of metrics.jsonl at a checkpoint, which stores it."""

    size: int  # bytes
    checksum: str  # SHA-256 of those bytes


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard; all processes but the first only keep them.

    A resumed run truncates the file to what its checkpoint sealed, plus the evaluations of that step whose
    records follow; `evaluated` has the keys that mark an evaluation, that of the current split first. So the
    file ends as it would have without the interruption. Raises ValueError if a sealed record is missing or
    was changed, or if a file cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        resume_step: int,
        seal: Seal | None,
        *,
        evaluated: Sequence[str] = (),
        writes: bool = True,
    ):
        self._path, self._evaluated, self._writes = workdir / 'metrics.jsonl', evaluated, writes
        content = self._sealed(seal, resume_step) if seal else b''
        self.records = _records(content)
        self._size, self._digest = len(content), hashlib.sha256(content)
        if writes:
            with self._reporting():
                self._file = append_to(self._path)
                self._file.truncate(self._size)
                self._board = _Board(workdir / 'tensorboard', resume_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record."""
        self.records.append(record)
        if self._writes:
            line = json.dumps(record).encode() + b'\n'
            with self._reporting():
                self._file.write(line)
                self._file.flush()
                self._board.write(record)
            self._size += len(line)
            self._digest.update(line)

    def seal(self) -> Seal | None:
        """Makes all records survive a power cut; returns the seal to store in a checkpoint."""
        if not self._writes:
            return None
        with self._reporting():
            os.fsync(self._file.fileno())
        return Seal(self._size, self._digest.hexdigest())

    def is_evaluated(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is on record."""
        return any(
            record['step'] == step and not record.keys().isdisjoint(self._evaluated[:1])
            for record in self.records
        )

    def pending(self, step: int) -> list[dict[str, Any]]:
        """What a run interrupted after `step` steps had measured but not yet recorded."""
        found = (r['pending'] for r in reversed(self.records) if 'pending' in r and r['step'] == step)
        return next(found, [])

    def last(self, name: str) -> float:
        """The latest value of `name` in any record; 0 if there is none."""
        return next((record[name] for record in reversed(self.records) if name in record), 0.0)

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            with self._reporting():
                self._file.close()
                self._board.close()
            self._writes = False

    def _sealed(self, seal: Seal, step: int) -> bytes:
        """The sealed bytes, and those of the next lines that are complete and evaluations of this step."""

        def is_evaluation(line: bytes) -> bool:
            found = _records(line) if line.endswith(b'\n') else []
            return any(r['step'] == step and not r.keys().isdisjoint(self._evaluated) for r in found)

        try:
            with self._path.open('rb') as file:
                content, following = file.read(seal.size), file.readlines()
            problem = '' if len(content) == seal.size else f'ends after {len(content)} of {seal.size} bytes'
            if not problem and hashlib.sha256(content).hexdigest() != seal.checksum:
                problem = 'was changed'
        except OSError as error:
            problem = f'cannot be read ({error.strerror or error})'
        if problem:
            lost = f'{problem}, so records before the checkpoint of step {step} are lost'
            raise ValueError(f'{self._path} {lost}. Restore that file, or choose another --workdir.')
        evaluations = [*itertools.takewhile(is_evaluation, following)]
        return content + b''.join(evaluations)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Within the block, an error of the file system stops the writing and becomes a ValueError."""
        try:
            yield
        except OSError as error:
            self._writes = False
            for opened in ('_file', '_board'):
                with contextlib.suppress(OSError, AttributeError):
                    getattr(self, opened).close()
            what = f'{self._path} or the tensorboard folder beside it cannot be written'
            cure = 'Checkpoints are kept; free some space or fix the permissions, then run again to resume'
            raise ValueError(f'{what} ({error.strerror or error}). {cure}.') from error


class _Board:
    """TensorBoard's event file. Not a SummaryWriter: on a full disk its thread dies, and closing it hangs."""

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(exist_ok=True)
        # TensorBoard reads files by name: this one last, also where the clock was set back meanwhile.
        earlier = (
            re.match(r'events\.out\.tfevents\.(\d{10}\.\d{6})\.', path.name) for path in folder.iterdir()
        )
        after = max((float(found[1]) + 1e-3 for found in earlier if found), default=0)
        name = f'events.out.tfevents.{max(time.time(), after):.6f}.{socket.gethostname()}'
        self._writer = tensorboardX.RecordWriter(str(folder / name))
        self.close = self._writer.close
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides later steps of earlier files
        self._write(purge_step, file_version='brain.Event:2')
        self._write(purge_step, session_log=start)

    def write(self, record: dict[str, Any]) -> None:
        shown = {name: value for name, value in record.items() if name not in ('step', 'pending')}
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._write(record['step'], summary=summary_pb2.Summary(value=values))

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; invalid lines, such as one truncated by a kill, are dropped."""
    return _records(path.read_bytes()) if path.exists() else []


def _records(content: bytes) -> list[dict[str, Any]]:
    records = []
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            records.append(json.loads(line))
    return [r for r in records if isinstance(r, dict) and isinstance(r.get('step'), int)]
