"""The folder of one run: its configuration, locking and atomic writes."""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import ml_collections

from def_jax.trainer.configuration.defaults import KEYS, get_defaults

__all__ = [
    'InUseError',
    'bound_settings',
    'claim',
    'describe_differences',
    'is_claimed',
    'locked',
    'record',
    'sync',
    'unclaim',
    'wait_for_claim',
    'write_json',
]

_RECORD = 'config.json'
_PARTIAL = '.partial'
_STARTS = (_RECORD, 'lock', 'tensorboard')  # what every start writes

_PATTERN = {'*', '?', '['}


class InUseError(ValueError):
    """Another process is using the folder."""


def claim(
    workdir: str | os.PathLike,
    config: ml_collections.ConfigDict,
    *,
    other_workers: bool = False,
    exists: bool = False,
) -> Path:
    """Creates the folder for a run of `config`, or reuses the one an earlier start created.

    With `other_workers`, a run may resume with another number of workers, or on other devices. With `exists`,
    another process of the run has claimed the folder. Raises ValueError if it belongs to a run with another
    configuration, holds other files, or cannot be written to.
    """
    try:
        workdir = Path(workdir).expanduser().absolute()
    except RuntimeError as error:  # ~name of a user that there is not
        raise ValueError(f'workdir={str(workdir)!r} names the home of an unknown user ({error}).') from error
    if found := sorted(_PATTERN & set(str(workdir))):
        raise ValueError(
            f'workdir={str(workdir)!r} contains {" ".join(found)}, but orbax, which writes the checkpoints, '
            'interprets such a path as a pattern. Choose a --workdir without *, ? and [.'
        )
    if exists and not (workdir / _RECORD).exists():
        raise ValueError(
            f'workdir={str(workdir)!r} is not the folder that process 0 created. All processes of a run '
            'need the same folder, on a shared file system.'
        )
    path = workdir / _RECORD
    ours = _settings(config)
    # Listed before looking for the configuration: another process of a sweep may be claiming the folder now.
    foreign = [file for file in workdir.iterdir() if not _is_early(file)] if workdir.is_dir() else []
    if not path.exists():
        if foreign:
            raise ValueError(
                f'workdir={str(workdir)!r} holds files that are not a run. Choose an empty or new folder.'
            )
        if workdir.exists() and not workdir.is_dir():
            raise ValueError(f'workdir={str(workdir)!r} is a file. Choose an empty or new folder.')
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # claimed meanwhile, or earlier and not seen yet: NFS
                write_json(path, ours, new=True)
        except OSError as error:
            raise ValueError(
                f'workdir={str(workdir)!r} cannot be written to ({error}). Free some space, fix its '
                'permissions, or choose another.'
            ) from error
    theirs = _read(path)
    free = _free_keys(theirs, ours, other_workers=other_workers)
    if changes := describe_differences(theirs, ours, free):
        raise ValueError(
            f'workdir={str(workdir)!r} holds a run with another configuration ({changes}). '
            'Choose another --workdir, or use the same configuration to resume that run.'
        )
    return workdir


def is_claimed(workdir: str | os.PathLike) -> bool:
    """Whether this process sees that the folder belongs to a run."""
    return Path(os.path.expanduser(workdir), _RECORD).exists()


def unclaim(workdir: Path) -> None:
    """Removes what a start wrote into a claimed folder, unless that holds anything of a run's."""
    try:
        if any(not _is_empty(file) for file in workdir.iterdir() if file.name not in _STARTS):
            return
        shutil.rmtree(workdir / 'tensorboard', ignore_errors=True)
        for file in workdir.iterdir():
            if file.name not in _STARTS:
                file.rmdir() if file.is_dir() else file.unlink()
        (workdir / 'lock').unlink(missing_ok=True)
        (workdir / _RECORD).unlink(missing_ok=True)  # last: without it, files are foreign
    except OSError:
        pass  # the error that led here says why


def _is_empty(file: Path) -> bool:
    return not any(file.iterdir()) if file.is_dir() else not file.stat().st_size


def wait_for_claim(workdir: str | os.PathLike, seconds: float = 60) -> None:
    """Waits until another process has claimed the folder, or it is clear that none does."""
    end = time.monotonic() + seconds
    while not is_claimed(workdir) and time.monotonic() < end:
        time.sleep(0.1)


def record(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Records `config` as that of a claimed folder's run, unless it is already; call once it is locked."""
    path, ours = workdir / _RECORD, _settings(config)
    with contextlib.suppress(ValueError):
        if _read(path) == ours:
            return
    write_json(path, ours)


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))  # tuples become lists, as when read back


def bound_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings that a run's state depends on: all that may not change on resumption."""
    return {name: value for name, value in _settings(config).items() if KEYS[name].change == 'never'}


def describe_differences(theirs: dict[str, Any], ours: dict[str, Any], free: Collection[str] = ()) -> str:
    """Which settings differ, and how; an empty string if none do."""
    theirs = _todays(theirs, ours)
    keys = sorted(k for k in ours.keys() | theirs.keys() if k not in free and ours.get(k) != theirs.get(k))
    return ', '.join(f'{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here' for key in keys)


def _todays(settings: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The settings with today's keys, if an earlier version wrote them.

    Raises:
        ValueError: if today's messages cannot go on with the run.
    """
    if not {'auto_detach', 'wire_dtype'} & settings.keys():
        return settings
    kept = dict(settings)
    wire, granularity = kept.pop('wire_dtype', 'float32'), kept.pop('granularity', 'tensor')
    if wire not in ('float32', 'bfloat16') or granularity == 'model':
        raise ValueError(
            f'wire_dtype={wire!r} and granularity={granularity!r} of an earlier version are gone, and its '
            'state cannot go on without them. Finish the run with that version, or start it again in another '
            '--workdir with --config.bits=8.'
        )
    if kept.pop('auto_detach', False):
        kept['detach'] = 'auto'
    defaults = _settings(get_defaults())  # of keys that came later
    return {name: defaults[name] for name in ours} | {'bits': 32 if wire == 'float32' else 16} | kept


def _free_keys(theirs: dict[str, Any], ours: dict[str, Any], *, other_workers: bool) -> set[str]:
    """The keys that may differ when a run resumes with a different configuration."""
    changes = {'always'}
    if other_workers:
        same_number = theirs.get('num_workers') == ours.get('num_workers')
        changes |= {'regroups'} if same_number else {'regroups', 'with_workers'}
    return {name for name, key in KEYS.items() if key.change in changes}


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a claimed folder; the lock is released however the process exits.

    Raises:
        InUseError: if another process holds the folder.
        ValueError: if its file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((workdir / 'lock').open('a'))
            folder = os.open(workdir, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f'workdir={str(workdir)!r} cannot be written to ({error}).') from error
        stack.callback(os.close, folder)
        try:  # not filelock: without flock, its fallback lock outlives a killed process
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of one machine, also if `lock` is deleted
        except BlockingIOError:
            raise InUseError(
                f'workdir={str(workdir)!r} is in use by another process. Wait for it, or choose another '
                '--workdir.'
            ) from None
        except OSError as error:  # NFS or Lustre, as they are sometimes mounted
            raise ValueError(
                f'workdir={str(workdir)!r} is on a file system without locks ({error}), where two runs could '
                'write into one folder. Choose another --workdir, or mount it with locks (Lustre: -o flock).'
            ) from error
        yield


def write_json(path: Path, content: Any, *, new: bool = False) -> None:
    """Writes `content` as JSON atomically: a reader sees the old file or the new one.

    With `new`, raises FileExistsError if there is an old one, as the file system knows, not this machine's
    cache of it; on one without hard links, the last to write wins.
    """
    # A name of its own, since processes of a sweep write the same files.
    partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}{_PARTIAL}')
    try:
        partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        sync(partial)  # otherwise a power cut may leave an empty file under the new name
        if not new or not _linked(partial, path):
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _linked(partial: Path, path: Path) -> bool:
    """Whether the file has the new name as well; False where the file system has no hard links."""
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    return True


def sync(path: Path) -> None:
    """Makes a file's contents, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_early(file: Path) -> bool:
    """Whether a file may be there where no configuration is seen.

    It is a killed start's, or the configuration itself, listed by NFS already.
    """
    unfinished = file.name.startswith(_RECORD) and file.name.endswith(_PARTIAL)
    return unfinished or file.name == _RECORD


def _read(record: Path) -> dict[str, Any]:
    try:
        settings = json.loads(record.read_text(encoding='utf-8'))
        if not isinstance(settings, dict):
            raise ValueError('it contains no settings')
        return settings
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{record} cannot be read ({error}), so it is unknown which run this folder holds. '
            'Restore that file or choose another --workdir.'
        ) from error
