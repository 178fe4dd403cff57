"""Checkpoints of the whole state: every worker's residual, momentum and BatchNorm statistics.

The data position needs no record of its own: batches, permutations and augmentation are functions of
the step and the seed.

Hand-written rather than orbax's CheckpointManager, which gives a step its final name before a manifest with
the checksums of its files can be inside. Orbax writes the arrays into `checkpoints/STEP.partial` while
training goes on; then the manifest is added, and only then the folder gets its name. A kill at any moment
leaves the earlier checkpoints as they were and at most a partial one, which the next save removes.

Of several processes each writes its own rows, and the first does the rest; all see the same folder.
"""

import contextlib
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from def_jax.launch import processes
from def_jax.launch.exits import LostProcessError
from def_jax.training.checkpointing import manifest, regrouping
from def_jax.training.checkpointing.manifest import DamagedError
from def_jax.training.checkpointing.regrouping import Layout
from def_jax.training.checkpointing.workdir import describe_differences, sync
from def_jax.training.metrics import Seal
from def_jax.training.steps import TrainState

__all__ = ['Checkpoints']

_ARRAYS = 'state'
_PARTIAL, _REPLACED = '.partial', '.replaced'


class Checkpoints:
    """The checkpoints of one run; the newest `keep` stay.

    Args:
        workdir: the run's folder.
        keep: how many stay.
        layout: how the run's workers lie in its state.
        settings: the configuration that the state depends on, see `workdir.bound_settings`.
    """

    def __init__(self, workdir: Path, keep: int, layout: Layout, settings: dict[str, Any]):
        self._folder, self._keep, self._layout = workdir / 'checkpoints', keep, layout
        self._settings = settings
        self._identity = _identity(workdir)
        self._checkpointer = ocp.StandardCheckpointer()
        self._commit: threading.Thread | None = None
        self._failure: Exception | None = None
        self._newest: int | None = None  # the newest one that is known to be good
        self.notes: list[str] = []  # what `restore` did to the state; a line for each
        self.seal: Seal | None = None  # of the metrics that belong to the restored state

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not _is_loss(error):  # then the last save would wait for a process that is gone
            self.close()

    def steps(self) -> list[int]:
        """The steps of the checkpoints, damaged ones among them, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name) for path in self._folder.iterdir() if _is_step(path.name))

    def check_room(self, state: TrainState) -> None:
        """Raises ValueError where the disk has no room for one more checkpoint."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        folder = self._folder if self._folder.exists() else self._folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise ValueError(
                f'{folder} has {free / 1e6:,.1f} MB free, and a checkpoint of this run takes '
                f'{needed / 1e6:,.1f} MB. Make room, or choose a --workdir on another disk.'
            )

    def save(self, state: TrainState, seal: Seal | None = None) -> None:
        """Writes the state. Complete when the next save starts, or on `wait` or `close`.

        Args:
            state: the state.
            seal: of the metrics up to it, where there are any.

        Raises:
            ValueError: if this or the save before it could not be written; earlier checkpoints are kept.
        """
        step, state = int(state.step), self._layout.spread(state)
        content = {
            'step': step,
            'workers': list(self._layout.workers),
            'batch_size': self._layout.batch_size,
            'settings': self._settings,
            'metrics': list(seal) if seal else None,
            'leaves': manifest.leaves_of(state),
        }
        if processes.agree(step == self._newest or self._is_there(content)):
            return
        self.wait()
        try:
            if not self._is_in_place():  # or orbax would make another folder of that name
                raise FileNotFoundError('the folder is gone')
            if processes.is_first():
                self._remove_remains()
            self._checkpointer.save(self._partial(step) / _ARRAYS, state)  # returns when it has a copy
        except Exception as error:  # orbax and tensorstore raise many types for a full disk
            self._fail(step, error)
            self.wait()
        self._newest = step
        self._commit = threading.Thread(target=self._finish, args=(step, content), name='checkpoint')
        self._commit.start()

    def restore(self, like: TrainState) -> TrainState:
        """The newest good checkpoint; a damaged one is passed over with a warning that names both.

        Args:
            like: a state of the same experiment; gives shapes, dtypes and placement.

        Returns:
            The state, on the devices of `like`: bit for bit as it was saved, or, if other workers saved it,
            regrouped as `notes` tells. `like` if there is no checkpoint.

        Raises:
            ValueError: if there are checkpoints, and none can be used.
        """
        damages = []
        for step in reversed(self.steps()):
            path = self._folder / str(step)
            try:
                state = self._read(path, step, like)
            except DamagedError as error:
                damages.append(f'checkpoint {path} cannot be used ({error})')
                continue
            for damage in damages:
                logging.warning('%s; going on from %s, step %s', damage, path, step)
            self._newest = step
            return state
        if damages:
            raise ValueError(
                '; '.join(damages) + '. No other checkpoint is there. Put a good one back, or choose another '
                '--workdir to start anew.'
            )
        return like

    def wait(self) -> None:
        """Waits for the last save.

        Raises:
            ValueError: if it could not be written.
            LostProcessError: if another process has not written its part.
        """
        if self._commit is not None:
            self._commit.join()
            self._commit = None
        if self._failure is not None:
            failure, self._failure, self._newest = self._failure, None, None
            if _is_loss(failure):
                raise LostProcessError(_reason(failure)) from failure
            remedy = 'make room' if self._is_in_place() else 'give the folder its name back'
            raise ValueError(
                f'no checkpoint could be written to {self._folder} ({_reason(failure)}). The earlier ones '
                f'are kept; {remedy}, then run the same command again to resume.'
            ) from failure

    def close(self) -> None:
        """Waits for the last save and frees what is held.

        Raises:
            ValueError: if the last save could not be written.
        """
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _finish(self, step: int, content: manifest.Manifest) -> None:
        """Completes a save, in its own thread: waits for the arrays, adds the manifest, gives the name."""
        partial, final = self._partial(step), self._folder / str(step)
        try:
            self._checkpointer.wait_until_finished()
            if not processes.is_first():
                return
            if self._checkpointer.metadata(partial / _ARRAYS).item_metadata is None:
                raise ValueError(
                    'orbax has left parts out'
                )  # it skips steps where it does not find its files
            manifest.write(partial, content)
            replaced = final.with_name(final.name + _REPLACED)
            if final.exists():  # damaged, or it would have been restored
                os.replace(final, replaced)
            os.replace(partial, final)
            sync(self._folder)
            shutil.rmtree(replaced, ignore_errors=True)
            for old in [s for s in self.steps() if s <= step][: -self._keep]:
                shutil.rmtree(self._folder / str(old))
        except Exception as error:
            self._fail(step, error)

    def _is_in_place(self) -> bool:
        """Whether the run's folder is still the one that the run began in: not renamed, not removed."""
        return _identity(self._folder.parent) == self._identity

    def _fail(self, step: int, error: Exception) -> None:
        self._failure = error
        if processes.is_first():
            shutil.rmtree(self._partial(step), ignore_errors=True)  # a full disk needs the room
            if not self._is_in_place():
                with contextlib.suppress(OSError):  # what orbax has made anew where the folder was
                    self._folder.rmdir()
                    self._folder.parent.rmdir()

    def _read(self, path: Path, step: int, like: TrainState) -> TrainState:
        content, shapes = self._verified(path, step, like)
        workers = tuple(content['workers'])
        if in_place := workers == self._layout.workers:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._layout.spread(like))
        else:  # NumPy arrays, of which every process reads all rows; as a target they take no memory
            target = jax.tree.map(lambda s: np.broadcast_to(np.zeros((), s.dtype), s.shape), shapes)
        try:
            state = self._checkpointer.restore(path / _ARRAYS, target)
        except Exception as error:  # orbax and tensorstore raise many types for a damaged file
            raise DamagedError(f'its arrays cannot be read: {_reason(error)}') from error
        self.seal = Seal(*content['metrics']) if content['metrics'] else None
        self.notes = regrouping.describe(workers, content['batch_size'], self._layout)
        if not in_place:
            state = regrouping.regrouped(state, workers, self._layout)
        return self._layout.own_rows(state, like)

    def _verified(self, path: Path, step: int, like: TrainState) -> tuple[manifest.Manifest, TrainState]:
        """The manifest of a checkpoint that all processes find good, and the shapes of its arrays."""
        content, shapes, damage = {}, like, None
        try:
            content = manifest.read_verified(path, step)
            if changes := describe_differences(content['settings'], self._settings):
                raise DamagedError(f'it is of a run of another configuration: {changes}')
            shapes = self._layout.shapes(like, tuple(content['workers']))
            _check_leaves(content['leaves'], manifest.leaves_of(shapes))
        except DamagedError as error:
            damage = error
        if processes.anywhere(damage is not None):
            raise damage or DamagedError('another process cannot read it')
        return content, shapes

    def _is_there(self, content: manifest.Manifest) -> bool:
        """Whether there is a good checkpoint that says of itself what `content` does."""
        step = content['step']
        try:
            found = manifest.read_verified(self._folder / str(step), step)
        except DamagedError:
            return False
        return found | content == found

    def _partial(self, step: int) -> Path:
        return self._folder / f'{step}{_PARTIAL}'

    def _remove_remains(self) -> None:
        """Makes the folder, and frees it of what a kill has left."""
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.endswith((_PARTIAL, _REPLACED)):
                shutil.rmtree(path)


def _is_loss(error: BaseException | None) -> bool:
    """Whether an error tells of another process: orbax waits for all, so long."""
    told = LostProcessError, jax.errors.JaxRuntimeError, TimeoutError
    return jax.process_count() > 1 and isinstance(error, told)


def _check_leaves(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises DamagedError where a checkpoint's arrays are not those of the run."""
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            there, here = (_shape(leaves.get(name)) for leaves in (saved, wanted))
            raise DamagedError(f'it is of another model or method: {name} is {there} there, {here} here')


def _shape(leaf: list | None) -> str:
    return 'missing' if leaf is None else f'{leaf[0]}{leaf[1]}'


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from any other, whatever its name; None where it is not there."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
