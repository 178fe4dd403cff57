"""Metrics of a run as they are measured: metrics.jsonl, one record per line, and TensorBoard scalars."""

import contextlib
import hashlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

import tensorboardX
from tensorboardX import summary
from tensorboardX.proto import event_pb2

__all__ = ['MetricLog', 'Seal', 'read']

_FLUSH_SECONDS = 30


class Seal(NamedTuple):
    """The extent of metrics.jsonl at a checkpoint, which stores it; a resumed run continues from there."""

    size: int  # bytes
    checksum: str  # SHA-256 of those bytes


class MetricLog:
    """Appends records to `metrics.jsonl` and to TensorBoard.

    A resumed run truncates the file to the part sealed by its checkpoint, so the final file is the same as
    without the interruption.

    Args:
        workdir: the run's folder.
        resume_step: the number of steps already done.
        seal: the checkpoint's seal; None for a new run.
        writes: whether to write; if not, as in all processes but the first, records are only kept in memory.

    Raises:
        ValueError: if a sealed record is missing or was changed, or if a file cannot be written.
    """

    def __init__(self, workdir: Path, resume_step: int, seal: Seal | None = None, *, writes: bool = True):
        self._path = workdir / 'metrics.jsonl'
        sealed = _sealed(self._path, seal, resume_step) if seal else b''
        self._digest = hashlib.sha256(sealed)
        self._size = len(sealed)
        self.records: list[dict[str, Any]] = _records(sealed)
        self._writes = writes
        if not writes:
            return
        try:
            self._file = self._path.open('ab')
            self._file.truncate(self._size)
            self._board = _Board(workdir / 'tensorboard', resume_step + 1)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record; `record['step']` is the number of steps done.

        Raises:
            ValueError: if it cannot be written, e.g. on a full disk.
        """
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
        self._digest.update(line)
        self._size += len(line)

    def seal(self) -> Seal | None:
        """Makes all records survive a power cut; returns the seal to store in a checkpoint."""
        if not self._writes:
            return None
        try:
            os.fsync(self._file.fileno())
            self._board.flush()
        except OSError as error:
            raise self._failed(error) from error
        return Seal(self._size, self._digest.hexdigest())

    def pending(self, step: int) -> list[dict[str, Any]]:
        """What a run interrupted after `step` steps had measured but not yet recorded."""
        return next(
            (r['pending'] for r in reversed(self.records) if 'pending' in r and r['step'] == step), []
        )

    def last(self, name: str, default: float = 0.0) -> float:
        """The latest value of `name` in any record."""
        return next((record[name] for record in reversed(self.records) if name in record), default)

    def close(self) -> None:
        """Closes the files.

        Raises:
            ValueError: if the last events cannot be written.
        """
        if not self._writes:
            return
        try:
            self._file.close()
            self._board.close()
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ValueError:
        """Stops writing and returns the error to raise."""
        self._writes = False
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()
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
        self._write(event_pb2.Event(file_version='brain.Event:2'), purge_step)
        self._write(event_pb2.Event(session_log=start), purge_step)
        self.flush()

    def write(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name not in ('step', 'pending'):
                self._write(event_pb2.Event(summary=summary.scalar(name, value)), record['step'])
        if time.monotonic() > self._flush_at:
            self.flush()

    def flush(self) -> None:
        self._writer.flush()
        self._flush_at = time.monotonic() + _FLUSH_SECONDS

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: event_pb2.Event, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._writer.write(event.SerializeToString())


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; invalid lines, such as one truncated by a kill, are dropped."""
    return _records(path.read_bytes()) if path.exists() else []


def _records(content: bytes) -> list[dict[str, Any]]:
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
