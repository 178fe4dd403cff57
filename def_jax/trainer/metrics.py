"""Metrics of a run as they are measured: metrics.jsonl, one record per line, and TensorBoard scalars."""

import contextlib
import functools
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

__all__ = ['MetricLog', 'Seal', 'read']


class Seal(NamedTuple):
    """The extent of metrics.jsonl at a checkpoint, which stores it."""

    size: int  # bytes
    checksum: str  # SHA-256 of those bytes


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard.

    A resumed run truncates the file to the part sealed by its checkpoint and the evaluation of that step,
    which follows it, so the final file is the same as without the interruption. If `metrics.jsonl` is
    deleted, replaced or cut during the run, the next seal writes it again.

    Args:
        workdir: the run's folder.
        resume_step: the number of steps already done.
        seal: the checkpoint's seal; None for a new run.
        evaluated: a figure that only the record of an evaluation has.
        writes: whether to write; if not, as in all processes but the first, records are only kept in memory.

    Raises:
        ValueError: if a sealed record is missing or was changed, or if a file cannot be written.
    """

    def __init__(
        self,
        workdir: Path,
        resume_step: int,
        seal: Seal | None = None,
        *,
        evaluated: str = '',
        writes: bool = True,
    ):
        self._path, self._evaluated = workdir / 'metrics.jsonl', evaluated
        self._content = bytearray(_sealed(self._path, seal, resume_step) if seal else b'')
        self.records: list[dict[str, Any]] = _records(self._content)
        if seal:
            self._take_evaluation(resume_step)
        self._writes = writes
        if not writes:
            return
        try:
            # Relative to the open folder, which may be renamed.
            self._folder = os.open(workdir, os.O_RDONLY)
            self._file = self._open('ab')
            self._file.truncate(len(self._content))
            self._board = _Board(workdir / 'tensorboard', resume_step + 1)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; raises ValueError if it cannot be written, e.g. on a full disk."""
        self.records.append(record)
        if not self._writes:
            return
        line = json.dumps(record).encode() + b'\n'
        try:
            self._file.write(line)
            self._file.flush()
            self._board.write(record)
        except OSError as error:
            raise self._failed(error) from error
        self._content += line

    def seal(self) -> Seal | None:
        """Makes all records survive a power cut; returns the seal to store in a checkpoint."""
        if not self._writes:
            return None
        try:
            if not self._is_in_place():
                self._file.close()
                self._file = self._open('wb')
                self._file.write(self._content)
                self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        return Seal(len(self._content), hashlib.sha256(self._content).hexdigest())

    def is_evaluated(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is on record."""
        return any(self._evaluated in record and record['step'] == step for record in self.records)

    def pending(self, step: int) -> list[dict[str, Any]]:
        """What a run interrupted after `step` steps had measured but not yet recorded."""
        return next(
            (r['pending'] for r in reversed(self.records) if 'pending' in r and r['step'] == step), []
        )

    def last(self, name: str) -> float:
        """The latest value of `name` in any record; 0 if there is none."""
        return next((record[name] for record in reversed(self.records) if name in record), 0.0)

    def close(self) -> None:
        """Closes the files; raises ValueError if the last events cannot be written."""
        if not self._writes:
            return
        try:
            self._file.close()
            self._board.close()
        except OSError as error:
            raise self._failed(error) from error
        self._writes = False
        os.close(self._folder)

    def _take_evaluation(self, step: int) -> None:
        """Keeps the first record after the seal if it is complete and that of the evaluation of this step."""
        with self._path.open('rb') as file:
            file.seek(len(self._content))
            line = file.readline()
        for record in _records(line):
            if line.endswith(b'\n') and record['step'] == step and self._evaluated in record:
                self._content += line
                self.records.append(record)

    def _open(self, mode: str) -> BinaryIO:
        return open(self._path.name, mode, opener=functools.partial(os.open, dir_fd=self._folder))  # type: ignore[return-value]

    def _is_in_place(self) -> bool:
        """Whether the file's name still leads to what was written, or the whole folder was deleted."""
        if not os.fstat(self._folder).st_nlink:
            return True
        ours = os.fstat(self._file.fileno())
        try:
            found = os.stat(self._path.name, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        return os.path.samestat(ours, found) and found.st_size == len(self._content)

    def _failed(self, error: OSError) -> ValueError:
        """Stops writing and returns the error to raise."""
        self._writes = False
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()
        os.close(self._folder)
        return _unwritable(self._path, error)


class _Board:
    """TensorBoard's event file.

    Not a SummaryWriter: on a full disk its thread dies silently, and closing it then hangs.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(exist_ok=True)
        name = f'events.out.tfevents.{time.time_ns() / 1e9:.6f}.{socket.gethostname()}'
        self._writer = tensorboardX.RecordWriter(str(folder / name))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # hides later steps of earlier files
        self._write(purge_step, file_version='brain.Event:2')
        self._write(purge_step, session_log=start)

    def write(self, record: dict[str, Any]) -> None:
        shown = {name: value for name, value in record.items() if name not in ('step', 'pending')}
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._write(record['step'], summary=summary_pb2.Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; invalid lines, such as one truncated by a kill, are dropped."""
    return _records(path.read_bytes()) if path.exists() else []


def _records(content: bytes | bytearray) -> list[dict[str, Any]]:
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get('step'), int):
            records.append(record)
    return records


def _sealed(path: Path, seal: Seal, step: int) -> bytes:
    """The sealed bytes; raises ValueError if they are missing or were changed."""
    try:
        with path.open('rb') as file:
            content = file.read(seal.size)
    except OSError as error:
        raise _lost(path, f'cannot be read ({error.strerror or error})', step) from error
    if len(content) < seal.size:
        raise _lost(path, f'ends after {len(content)} of {seal.size} bytes', step)
    if hashlib.sha256(content).hexdigest() != seal.checksum:
        raise _lost(path, 'was changed', step)
    return content


def _lost(path: Path, what: str, step: int) -> ValueError:
    return ValueError(
        f'{path} {what}, so records before the checkpoint of step {step} are lost. Restore that file, '
        'or choose another --workdir to start from scratch.'
    )


def _unwritable(path: Path, error: OSError) -> ValueError:
    return ValueError(
        f'{path} or the tensorboard folder beside it cannot be written ({error.strerror or error}). '
        'Checkpoints are kept; free some space or fix the permissions, then run the same command again to '
        'resume.'
    )
