"""Checkpoints of the whole state: each process writes its own rows, and the first everything else.

Orbax writes the arrays to `checkpoints/STEP.partial` while training continues; then the manifest is added,
and only then is the folder renamed, so a kill leaves at most one partial checkpoint, which the next save
removes.

Not orbax's CheckpointManager, which makes a step final once its arrays are written: the manifest, whose
checksums are of the files, would be late, and behind a damaged newest step its `save` declines.
"""

import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import SingleDeviceSharding

from def_jax.ground.random import is_typed
from def_jax.state.regrouping import regroup
from def_jax.trainer.checkpointing import manifest, regrouping
from def_jax.trainer.checkpointing.manifest import DamagedError
from def_jax.trainer.checkpointing.workdir import (
    CHECKPOINTS,
    bound_settings,
    describe_differences,
    saved_steps,
    sync,
)
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.errors import one_line
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.launch import processes
from def_jax.trainer.launch.exits import LostProcessError
from def_jax.trainer.metrics import Seal
from def_jax.trainer.state import TrainState

__all__ = ['Checkpoints']

_ARRAYS = 'state'
_PARTIAL, _REPLACED = '.partial', '.replaced'
_CENTURY = 100 * 365 * 24 * 3600  # orbax goes by the wall clock, which jumps when a machine wakes or is set


class Checkpoints:
    """The checkpoints of one run, of which the newest few are kept.

    In an elastic run, this process holds all of the state, as NumPy arrays, and asks no other.
    """

    def __init__(self, workdir: Path, experiment: Experiment):
        self._folder, self._run, config = workdir / CHECKPOINTS, experiment, experiment.config
        self._keep, self._whole = config.keep_checkpoints, config.elastic
        self._settings, self._identity = bound_settings(config), _identity(workdir)
        self._data = experiment.dataset.fingerprint()
        me = jax.process_index()
        alone = {'primary_host': me, 'active_processes': {me}, 'barrier_sync_key_prefix': str(me)}
        self._checkpointer = ocp.StandardCheckpointer(
            async_options=ocp.options.AsyncOptions(timeout_secs=_CENTURY),
            multiprocessing_options=ocp.options.MultiprocessingOptions(**(alone if self._whole else {})),
        )
        self._pool = ThreadPoolExecutor(1, 'checkpoint')
        self._commit: tuple[int, Future] | None = None  # the last save, of a step
        self._newest: int | None = None  # the newest checkpoint known to be good
        self.notes: list[str] = []  # what `restore` changed in the state, one line each
        self.seal: Seal | None = None  # of the metrics that belong to the restored state

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not processes.is_loss(error):  # on a loss, the last save would wait for a dead process
            self.close()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, including damaged ones, in ascending order."""
        return saved_steps(self._folder.parent)

    def _last(self) -> int:
        """The greatest of process 0's steps, or -1: on a network file system, others may not see it yet."""
        return processes.broadcast(max(self.steps(), default=-1))

    def check_room(self, state: TrainState) -> None:
        """Raises ValueError if the disk has no room for one more checkpoint."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        folder = self._folder if self._folder.exists() else self._folder.parent
        free = shutil.disk_usage(folder).free
        if free < needed:
            sizes = f'{free / 1e6:,.1f} MB free, and a checkpoint of this run takes {needed / 1e6:,.1f} MB'
            raise ValueError(f'{folder} has {sizes}. Free some space, or choose another --workdir.')

    def save(self, state: TrainState, seal: Seal | None = None) -> None:
        """Starts saving the state, with the seal of the metrics up to it; `wait` and the next save finish it.

        Raises ValueError if this or the previous checkpoint cannot be written; earlier ones are kept.
        """
        if self._whole and not processes.is_first():
            return
        step = int(state.step)
        if step == self._newest:
            return
        run, shape = self._run, regrouping.shape_of(self._run, state)
        state = state if self._whole else run.workers.spread(state, run.is_per_worker)
        content = {
            'step': step,
            'workers': list(shape),
            'shards': run.workers.devices_per_row,
            'inside': run.config.inside,
            'batch_size': run.config.batch_size,
            'num_steps': run.num_steps,
            'data': self._data,
            'settings': self._settings,
            'metrics': list(seal) if seal else None,
            'leaves': manifest.leaves_of(state),
        }
        self.wait()
        try:
            if _identity(self._folder.parent) != self._identity:  # or orbax would create one of that name
                raise FileNotFoundError('the folder is gone: rename it back')
            if processes.is_first():
                self._folder.mkdir(exist_ok=True)
                for remains in [*self._folder.glob(f'*{_PARTIAL}'), *self._folder.glob(f'*{_REPLACED}')]:
                    shutil.rmtree(remains)  # left by a kill
            self._checkpointer.save(self._partial(step) / _ARRAYS, state)  # returns once it has a copy
        except Exception as error:  # orbax and tensorstore raise many types on a full disk
            raise self._failed(step, error) from error
        self._newest, self._commit = step, (step, self._pool.submit(self._finish, step, content))

    def restore(self, like: TrainState) -> TrainState:
        """Restores the newest good checkpoint, placed like `like`, which it returns if there is none.

        Skips damaged ones with a warning that names both; ValueError if there are no others. A state of other
        workers is regrouped, as `notes` say.
        """
        damages, step, newest = [], sys.maxsize, self._last()
        # Process 0 says which: on a network file system, others may not see the newest yet.
        while (step := processes.broadcast(max((s for s in self.steps() if s < step), default=-1))) >= 0:
            path = self._folder / str(step)
            try:
                state = self._read(path, step, like)
            except DamagedError as error:
                damages.append(f'checkpoint {path} cannot be used ({error})')
                continue
            for damage in damages:
                logging.warning('%s; continuing from %s, step %s', damage, path, step)
            self._newest = step
            return state
        if damages and self._last() > newest:  # saved meanwhile, by a process that trains
            return self.restore(like)
        if damages:
            cure = 'Restore a good one, or choose another --workdir to start from scratch'
            raise ValueError(f'{"; ".join(damages)}. There is no other checkpoint. {cure}.')
        return like

    def discard(self, step: int) -> None:
        """Removes the checkpoint of this step, if it is the last, whose state turned out to be useless."""
        self._join()
        if self._newest == step:
            if processes.is_first():
                shutil.rmtree(self._folder / str(step))
            self._newest = None

    def wait(self) -> None:
        """Waits for the last save, and raises its error; then removes the checkpoints no longer kept.

        Without a save it removes none: `evaluate_only` restores without the folder's lock, and its
        `keep_checkpoints` may be smaller than the run's.
        """
        if self._join() and self._newest is not None and processes.is_first():
            for old in [step for step in self.steps() if step <= self._newest][: -self._keep]:
                shutil.rmtree(self._folder / str(old), ignore_errors=True)  # the next save tries again

    def tidy(self) -> None:
        """Does what `wait` does if the last save has finished; one that has not goes on beside training."""
        if self._commit is None or self._commit[1].done():
            self.wait()

    def close(self) -> None:
        """Waits for the last save and releases all resources."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            self._pool.shutdown()

    def _join(self) -> bool:
        """Waits for the last save, and raises its error; returns whether there was one to wait for."""
        if self._commit is None:
            return False
        (step, commit), self._commit = self._commit, None
        if error := commit.exception():
            raise self._failed(step, error) from error
        return True

    def _failed(self, step: int, error: BaseException) -> Exception:
        """What to raise where a save failed; frees its space on a full disk."""
        self._newest = None
        if processes.is_first():
            shutil.rmtree(self._partial(step), ignore_errors=True)
        if processes.is_loss(error):
            return LostProcessError(one_line(error))
        what = f'no checkpoint could be written to {self._folder} ({one_line(error)})'
        cure = 'The earlier ones are kept; free space on a full disk, then run the same command again'
        return ValueError(f'{what}. {cure}.')

    def _finish(self, step: int, content: manifest.Manifest) -> None:
        """Completes a save in its own thread: waits for the arrays, adds the manifest, renames the folder."""
        partial, final = self._partial(step), self._folder / str(step)
        self._checkpointer.wait_until_finished()
        if not processes.is_first():
            return
        # Orbax silently skips steps whose files it does not find.
        if self._checkpointer.metadata(partial / _ARRAYS).item_metadata is None:
            raise ValueError('orbax wrote an incomplete checkpoint')
        manifest.write(partial, content)
        replaced = final.with_name(final.name + _REPLACED)
        if final.exists():  # damaged, or a network file system showed it late
            os.replace(final, replaced)
        os.replace(partial, final)
        sync(self._folder)
        shutil.rmtree(replaced, ignore_errors=True)

    def _read(self, path: Path, step: int, like: TrainState) -> TrainState:
        content, shapes = self._verified(path, step, like)
        saved, workers, own = tuple(content['workers']), self._run.workers, self._run.is_per_worker
        together = content.get('inside', 1) == self._run.config.inside  # as many devices make up a worker
        if in_place := together and saved == workers.shape and not self._whole:
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, workers.spread(like, own))
        else:  # every process reads all rows as NumPy arrays; broadcast targets take no memory
            target = jax.tree.map(_whole, shapes)
        damage = None
        try:
            state = self._checkpointer.restore(path / _ARRAYS, target)
        except Exception as error:  # orbax and tensorstore raise many types on a damaged file
            damage = DamagedError(f'its arrays cannot be read: {one_line(error)}')
            damage.__cause__ = error
        _agree(damage)
        self.seal = Seal(*content['metrics']) if content['metrics'] else None
        self.notes = regrouping.describe(content, self._run)
        if content.get('data', self._data) != self._data:
            self.notes.append('data: other examples than before')
        if not in_place:
            if not together:  # devices that are one worker now may have been of several
                state, saved = regroup(state, own, saved, (1,)), (1,)
            state = regroup(state, own, saved, workers.shape)
        return state if self._whole else workers.own_rows(state, like, own)

    def _verified(self, path: Path, step: int, like: TrainState) -> tuple[manifest.Manifest, TrainState]:
        """The manifest of a checkpoint that all processes verified, and the shapes of its arrays."""

        def look():
            try:
                content = manifest.read_verified(path, step)
                # Which settings may change is this version's to say, not that of the one that wrote them.
                saved = {k: v for k, v in content['settings'].items() if k in self._settings or k not in KEYS}
                if changes := describe_differences(saved, self._settings):
                    raise DamagedError(f'it belongs to a run with another configuration: {changes}')
                shapes = regrouping.shapes(self._run, like, tuple(content['workers']))
                _check_leaves(content['leaves'], manifest.leaves_of(shapes))
            except DamagedError as error:
                return {}, like, error
            return content, shapes, None

        content, shapes, damage = processes.retry_until_visible(look, lambda found: found[2] is None)
        _agree(damage)
        return content, shapes

    def _partial(self, step: int) -> Path:
        return self._folder / f'{step}{_PARTIAL}'


def _agree(damage: DamagedError | None) -> None:
    """Raises DamagedError in all processes if one of them found damage; every process must call this."""
    if processes.any_process(damage is not None):
        raise damage or DamagedError('another process cannot read it')


def _whole(shape: jax.ShapeDtypeStruct) -> np.ndarray | jax.ShapeDtypeStruct:
    """What orbax restores as an array in NumPy; typed keys, which NumPy can't hold, on a device."""
    if is_typed(shape):
        here = SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=here)
    return np.broadcast_to(np.zeros((), shape.dtype), shape.shape)


def _check_leaves(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises DamagedError if a checkpoint's arrays do not match those of the run."""
    for name in [*wanted, *saved]:
        if saved.get(name) != wanted.get(name):
            there, here = (leaves.get(name, 'missing') for leaves in (saved, wanted))
            raise DamagedError(f'it belongs to another model or method: {name} is {there} there, {here} here')


def _identity(folder: Path) -> tuple[int, int] | None:
    """Identifies a folder regardless of its name; None if it does not exist."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
