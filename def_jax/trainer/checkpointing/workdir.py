"""The folder of one run: its configuration, locking and atomic writes."""

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ml_collections

from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.launch import processes

__all__ = [
    *('append_to', 'bound_settings', 'claim', 'describe_differences', 'locked'),
    *('record', 'recorded', 'saved_steps', 'sync', 'write_json'),
]

CHECKPOINTS = 'checkpoints'
_RECORD = 'config.json'
_PARTIAL, _PARTIAL_RECORD = '.partial', r'config\.json.*\.partial'
_STARTS = (_RECORD, 'lock', 'tensorboard')  # what every start writes


def claim(workdir: str | os.PathLike, config: ml_collections.ConfigDict, *, exists: bool = False) -> Path:
    """Creates the folder for a run of `config`, or reuses the one an earlier start created.

    With `exists`, another process of the run claims it, which may take a minute to be seen. Raises ValueError
    if it belongs to another user or to a run with another configuration, holds other files or links, or
    cannot be written to.
    """
    try:
        workdir = Path(workdir).expanduser().absolute()
    except RuntimeError as error:  # ~name of a user that there is not
        raise ValueError(f'workdir={str(workdir)!r} names the home of an unknown user ({error}).') from error
    what, path, ours = f'workdir={str(workdir)!r}', workdir / _RECORD, _settings(config)
    if found := sorted({'*', '?', '['} & set(str(workdir))):
        why = 'but orbax reads such a path as a pattern. Choose a --workdir without *, ? and [.'
        raise ValueError(f'{what} contains {" ".join(found)}, {why}')
    try:
        str(workdir).encode()
    except UnicodeEncodeError:
        why = 'is not text in UTF-8, as orbax needs it. Set PYTHONUTF8=1, or choose another'
        raise ValueError(f'{what} {why}.') from None
    end = time.monotonic() + processes.LATE_SECONDS
    while exists and not path.exists():
        if time.monotonic() > end:
            raise ValueError(f'{what} is not the folder of process 0. All need the same, on a shared disk.')
        time.sleep(0.1)
    # Listed before looking for the configuration: another start may be claiming the folder now. A record may
    # be a killed start's partial one, or listed by NFS before it is seen.
    listed = [file.name for file in workdir.iterdir()] if workdir.is_dir() else []
    if workdir.is_dir():
        _check_ours(workdir, listed)
    foreign = [name for name in listed if name != _RECORD and not re.fullmatch(_PARTIAL_RECORD, name)]
    if not path.exists():
        if foreign or (workdir.exists() and not workdir.is_dir()):
            raise ValueError(f'{what} holds files that are not a run, or is a file. Choose a new folder.')
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # claimed meanwhile, or earlier and not seen yet: NFS
                write_json(path, ours, new=True)
        except OSError as error:
            cure = 'Free some space, fix its permissions, or choose another'
            raise ValueError(f'{what} cannot be written to ({error}). {cure}.') from error
    theirs = recorded(workdir)
    bound = {'never'} if theirs.get('num_workers') != ours['num_workers'] else {'never', 'with_workers'}
    free = {
        name for name, key in KEYS.items() if key.change not in bound and not _shrinks(theirs, ours, name)
    }
    if changes := describe_differences(theirs, ours, free):
        cure = 'Choose another --workdir, or the same configuration to resume that run'
        raise ValueError(f'{what} holds a run with another configuration ({changes}). {cure}.')
    return workdir


def _check_ours(workdir: Path, listed: Collection[str]) -> None:
    """Raises ValueError if what is written to the folder could end up in, or come from, another place."""
    what = f'workdir={str(workdir)!r}'
    if (owner := workdir.stat().st_uid) not in (os.geteuid(), 0):  # a volume is often root's
        cure = 'Choose another, or make it yours with chown'
        raise ValueError(f'{what} belongs to the user {owner}, and this is {os.geteuid()}. {cure}.')
    if links := sorted(name for name in listed if (workdir / name).is_symlink()):
        why = 'and a run would overwrite the files that they lead to. Remove them, or choose another folder'
        raise ValueError(f'{what} holds the links {", ".join(links)}, {why}.')


def _unclaim(workdir: Path) -> None:
    """Removes what a start wrote into a claimed folder, unless that holds anything of a run's."""
    with contextlib.suppress(OSError):  # the error that led here says why
        others = [file for file in workdir.iterdir() if file.name not in _STARTS]
        if any(any(file.iterdir()) if file.is_dir() else file.stat().st_size for file in others):
            return
        for file in [*others, *(workdir / name for name in reversed(_STARTS))]:  # last, what claims it
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def record(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Records `config` as that of a claimed folder's run, unless it is already; call once it is locked."""
    ours = _settings(config)
    with contextlib.suppress(ValueError):
        if recorded(workdir) == ours:
            return
    write_json(workdir / _RECORD, ours)


def _settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(config.to_dict()))  # tuples become lists, as when read back


def shared_settings(config: ml_collections.ConfigDict) -> str:
    """What all processes of a run must have alike: all but where each has its data."""
    return json.dumps(_settings(config) | {'data_dir': ''}, sort_keys=True)


def _shrinks(theirs: dict[str, Any], ours: dict[str, Any], name: str) -> bool:
    """Whether a length that may only grow would become shorter, or be given in another unit."""
    old, new = theirs.get(name), ours[name]
    return KEYS[name].change == 'grows' and (not isinstance(old, int) or new < old or (not old and bool(new)))


def bound_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The settings that a run's state depends on: all that may not change on resumption."""
    return {name: value for name, value in _settings(config).items() if KEYS[name].change == 'never'}


def describe_differences(theirs: dict[str, Any], ours: dict[str, Any], free: Collection[str] = ()) -> str:
    """Which settings differ, and how; an empty string if none do."""
    keys = sorted(k for k in ours.keys() | theirs.keys() if k not in free and ours.get(k) != theirs.get(k))
    return ', '.join(f'{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here' for key in keys)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a claimed folder, which an error before the first record unclaims.

    The lock is released however the process exits.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(append_to(workdir / 'lock'))
            folder = os.open(workdir, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f'workdir={str(workdir)!r} cannot be written to ({error}).') from error
        stack.callback(os.close, folder)
        try:  # not filelock: without flock, its fallback lock outlives a killed process
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of one machine, also if `lock` is deleted
        except BlockingIOError:
            cure = 'Wait for it, or choose another --workdir'
            raise ValueError(f'workdir={str(workdir)!r} is in use by another process. {cure}.') from None
        except OSError as error:  # NFS or Lustre, as they are sometimes mounted
            raise ValueError(
                f'workdir={str(workdir)!r} is on a file system without locks ({error}), where two runs could '
                'write into one folder. Choose another --workdir, or mount it with locks (Lustre: -o flock).'
            ) from error
        try:
            yield
        except Exception:
            _unclaim(workdir)
            raise


def write_json(path: Path, content: Any, *, new: bool = False) -> None:
    """Writes `content` as JSON atomically: a reader sees the old file or the new one.

    With `new`, raises FileExistsError if there is an old one, though this machine's cache may not show it.
    """
    # A name of its own, since two processes may write the same file.
    partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}{_PARTIAL}')
    try:
        partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        sync(partial)  # otherwise a power cut may leave an empty file under the new name
        if new:
            try:
                os.link(partial, path)
                return
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):  # of those without them
                    raise
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def append_to(path: Path) -> BinaryIO:
    """Opens a file for appending, or creates it; OSError if it is a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), 'ab')


def saved_steps(workdir: Path) -> list[int]:
    """The steps of all checkpoints of a run, including damaged ones, in ascending order."""
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch('[0-9]+', path.name))


def sync(path: Path) -> None:
    """Makes a file's contents, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def length(folder: str | os.PathLike) -> dict[str, int]:
    """`num_epochs` and `num_steps` of the run in a folder, which may have been prolonged."""
    workdir = Path(folder).expanduser()
    if not (workdir / _RECORD).exists():
        raise ValueError(f'workdir={str(folder)!r} holds no run. Give the folder of one.')
    settings = recorded(workdir)
    return {key: settings[key] for key in ('num_epochs', 'num_steps')}


def recorded(workdir: Path) -> dict[str, Any]:
    """The settings that the last start of a claimed folder's run recorded."""
    record = workdir / _RECORD
    try:
        settings = json.loads(record.read_text(encoding='utf-8'))
        if not isinstance(settings, dict):
            raise ValueError('it contains no settings')
        return settings
    except (OSError, ValueError, RecursionError) as error:
        cure = 'Restore that file or choose another --workdir'
        raise ValueError(
            f'{record}, which says what run this is, cannot be read ({error}). {cure}.'
        ) from error
