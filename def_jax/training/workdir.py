"""The folder of one run: its configuration, and files that are written whole or not at all."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

__all__ = ['InUseError', 'claim', 'locked', 'write_json']

# Keys that a run may change between two starts: they shape its output, not its trajectory.
_FREE_KEYS = ('data_dir', 'diagnostics_every', 'fake_devices', 'keep_checkpoints', 'log_every_steps')


class InUseError(ValueError):
    """Another process is running in the folder."""


def claim(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> Path:
    """Makes the folder for a run of `config`, or finds the one that an earlier start made.

    Args:
        workdir: the folder.
        config: a checked configuration.

    Returns:
        The folder's path.

    Raises:
        ValueError: if the folder belongs to a run of another configuration, or holds other files.
    """
    workdir = Path(workdir).absolute()
    record = workdir / 'config.json'
    ours = json.loads(json.dumps(config.to_dict()))  # tuples become lists, as they will be when read
    if record.exists():
        theirs = _read(record)
        keys = sorted(
            k for k in ours.keys() | theirs.keys() if k not in _FREE_KEYS and ours.get(k) != theirs.get(k)
        )
        if keys:
            changes = ', '.join(f'{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here' for key in keys)
            raise ValueError(
                f'workdir={str(workdir)!r} holds a run of another configuration ({changes}). '
                'Choose another --workdir, or the same configuration to resume that run.'
            )
    elif workdir.is_dir() and any(path.name != _partial(record).name for path in workdir.iterdir()):
        raise ValueError(
            f'workdir={str(workdir)!r} holds files that are not a run. Choose an empty or new folder.'
        )
    elif workdir.exists() and not workdir.is_dir():
        raise ValueError(f'workdir={str(workdir)!r} is a file. Choose an empty or new folder.')
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f'workdir={str(workdir)!r} cannot be made ({error}). Choose another.') from error
    write_json(record, ours)
    return workdir


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a claimed folder; the lock ends with the process, however it ends.

    Raises:
        InUseError: if another process holds the folder.
    """
    with (workdir / 'lock').open('a') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f'workdir={str(workdir)!r} is in use by another process. Wait for it, or choose another '
                '--workdir.'
            ) from None
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON; a reader sees the old file or the new one, never half of it."""
    partial = _partial(path)
    partial.write_text(json.dumps(content, indent=2) + '\n')
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + '.partial')


def _read(record: Path) -> dict[str, Any]:
    try:
        settings = json.loads(record.read_text())
        if not isinstance(settings, dict):
            raise ValueError('it holds no settings')
        return settings
    except ValueError as error:
        raise ValueError(
            f'{record} cannot be read ({error}), so it is unknown which run this folder holds. '
            'Restore that file or choose another --workdir.'
        ) from error
