"""`--config.elastic=True`: a run of several processes that goes on while some of them die and return.

Its workers are a `def_jax.elastic.Team`; process 0 holds JAX's coordination service and writes the files.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax import lax

from def_jax import elastic
from def_jax.ground.types import PyTree
from def_jax.sharding import Spmd
from def_jax.state.ownership import each
from def_jax.state.regrouping import num_stacked
from def_jax.trainer.checkpointing.workdir import shared_settings
from def_jax.trainer.data.dataset import Split
from def_jax.trainer.evaluation import DivergedError, record_of
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.launch import interruption, processes
from def_jax.trainer.launch.exits import EndedError, ExitCode, LostProcessError
from def_jax.trainer.state import PerWorker, TrainState
from def_jax.trainer.steps import Steps
from def_jax.trainer.workers import AXIS, ShardedWorkers, WholeWorkers
from def_jax.trainer.workers.sharded import shard_spec

__all__ = ['ElasticWorkers', 'TeamDiffersError', 'first_state', 'variables']

_STEP, _STOPS = '_step', '_stops'  # beside the examples of a batch


class TeamDiffersError(EndedError):
    """Elastic workers hold different copies of replicated values."""

    exit_code = ExitCode.REPLICAS_DIFFER


def first_state(steps: Steps) -> TrainState:
    """The state at step 0, as NumPy arrays; computed on one device of this process."""
    shape, here = steps.workers.shape, WholeWorkers(jax.local_devices()[:1])
    state = jax.device_get(dataclasses.replace(steps, workers=here).init())

    def stacked(mine: bool, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(x[0], (*shape, *x.shape[1:])) if mine else x

    return each(stacked, steps.is_per_worker, state)


def variables(experiment: Experiment, state: TrainState) -> dict[str, dict]:
    """The variables at x and y of a state of NumPy arrays; computed on one device of this process."""
    own = experiment.is_per_worker
    stacked = each(lambda mine, leaf: mine, own, state)
    here = WholeWorkers(jax.local_devices()[:1], num_stacked(state, stacked, experiment.config.num_workers))

    def on_device(mine: bool, x: np.ndarray) -> np.ndarray:
        return x.reshape(*here.shape, *x.shape[1:]) if mine else x

    steps = dataclasses.replace(experiment.steps, workers=here)
    return here.fetch(steps.outputs(each(on_device, own, state)))


class ElasticWorkers:
    """The live workers, for the loop; a step is repeated without those that die in it.

    `state`, where to continue, and the results are NumPy arrays; `note` shows a line about who comes or dies.
    """

    def __init__(
        self, experiment: Experiment, state: TrainState, note: Callable, signals: interruption.Watch
    ):
        config = experiment.config
        self._experiment, self._key, self._stops = experiment, state.key, False
        # BatchNorm's statistics are in front of the optimizer's state.
        carry = optax.GradientTransformation(
            lambda params: PerWorker(experiment.abstract_variables['batch_stats']),
            lambda updates, state, params=None: (updates, state),
        )
        shards = config.shards_per_worker
        self.team = elastic.Team(
            optax.chain(carry, experiment.optimizer),
            state.params,
            (PerWorker(state.batch_stats), state.opt_state),
            step=int(state.step),
            workers=config.num_workers // processes.count(),
            shards=shards,
            param_specs=jax.tree.map(lambda x: shard_spec(np.shape(x), shards), state.params),
            axis_name=AXIS,
            min_workers=config.min_workers,
            patience=config.patience,
            identity=f'{shared_settings(config)} {experiment.dataset.fingerprint()}',
            note=note,
        )
        self._batch = functools.partial(_batch, experiment.dataset.train, config, signals)
        self._train = functools.partial(_train, experiment.steps, state.key)
        self._sums = functools.partial(_sums, experiment.steps, state.key)

    @property
    def step(self) -> int:
        return self.team.step

    def train(self) -> dict[str, np.ndarray]:
        measured, self._stops = self.team.run(self._train, self._batch)
        finite = np.isfinite(measured['loss'])
        if not finite.all():
            raise DivergedError(self.step - 1, int(np.argmin(finite)), float(measured['loss'][~finite][0]))
        # Of all workers, whose number may change within a record.
        return {name: np.mean(values, keepdims=True) for name, values in measured.items()}

    def evaluate(self) -> dict[str, Any]:
        totals = {split: self._totals(split) for split in self._experiment.evaluated}
        sums = {(split, point, point): total for split in totals for point, total in totals[split].items()}
        return record_of(self._experiment.task, self.step, sums) | {'workers': self.team.num_workers}

    def state(self) -> TrainState:
        """Whole, as NumPy arrays; every process must call this, and none gets one on which they differ."""
        params, (statistics, opt_state) = self.team.fetch()
        return TrainState(np.int32(self.step), self._key, params, statistics.state, opt_state)

    def stops(self, signalled: bool, *, reports: bool) -> bool:
        del signalled, reports  # all were told with the step
        return bool(self._stops)

    def sample(self) -> None:
        return None

    @contextlib.contextmanager
    def together(self, leave: Callable[['ElasticWorkers'], None]) -> Iterator[None]:
        """Within the block, processes train. If too few are left, they `leave`: LostProcessError."""
        try:
            yield
        except elastic.TooFewError as error:
            if self.team.num_workers:  # else no step has been made
                self.team.min_workers = 1  # what the few who are left have
                try:
                    leave(self)
                finally:
                    self.team.close()
            raise LostProcessError(str(error)) from error
        except elastic.GivenUpError as error:
            raise LostProcessError(str(error)) from error
        except elastic.DifferError as error:  # in all processes, as the next
            self.team.close()
            raise TeamDiffersError(str(error)) from error
        except EndedError:
            self.team.close()
            raise
        self.team.close()

    def _totals(self, split: str) -> dict[str, dict[str, np.ndarray]]:
        """By point, sums over a split; begun again if a worker dies meanwhile, since it had its share."""
        whole = self._experiment.evaluated[split]
        size = self._experiment.examples_per_device * self._experiment.config.shards_per_worker
        while True:
            count, totals = self.team.num_workers, []
            for start in range(0, len(whole), count * size):
                batch = functools.partial(_test_batch, whole, start, size)
                totals.append(self.team.look(self._sums, batch))
            if self.team.num_workers == count:
                return jax.tree.map(lambda *parts: np.sum(parts, axis=0).reshape(-1), *totals)


def _batch(
    split: Split,
    config: Mapping[str, Any],
    signals: interruption.Watch,
    step: int,
    workers: list[int],
    count: int,
) -> dict[str, np.ndarray]:
    """The training batch of this process's workers, among `count`."""
    # Of whole batches: the place in an epoch must not depend on the number of workers.
    options = {'seed': config['seed'], 'batch_size': config['batch_size'], 'num_workers': count}
    batch = next(split.train_batches(first_step=step, workers=workers, **options))
    part = config['accumulate'] * config['shards_per_worker']
    stops = np.full(len(workers), signals.name is not None)
    marks = {_STEP: np.full(len(workers), step, np.int32), _STOPS: stops}
    return _flat({name: x[:, : x.shape[1] // part * part] for name, x in batch.items()}) | marks


def _test_batch(
    whole: Split, start: int, size: int, step: int, workers: list[int], count: int
) -> dict[str, np.ndarray]:
    """The examples from `start` on: `size` of them for each of `count` workers, at most."""
    part = whole.part(start, min(start + count * size, len(whole)))
    return _flat(next(part.test_batches(batch_size=count * size, num_workers=count, workers=workers)))


def _flat(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The examples of one worker after those of the other."""
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}


def _train(
    steps: Steps, key: PyTree, dist: Spmd, params: PyTree, opt_state: PyTree, batch: dict
) -> tuple[PyTree, PyTree, PyTree]:
    """The run's train step, for `Team.run`."""
    examples = _by_worker(dist, batch)
    step, stops = examples.pop(_STEP)[0, 0], examples.pop(_STOPS).any()
    state, metrics = _among(steps, dist).train(_state(step, key, params, opt_state), examples)
    opt_state = PerWorker(state.batch_stats), state.opt_state
    # The team moves it to other devices later: what is not like a parameter must lie where it expects that.
    opt_state = lax.with_sharding_constraint(opt_state, dist.state_shardings(params))
    return state.params, opt_state, (metrics, stops)


def _sums(
    steps: Steps, key: PyTree, dist: Spmd, params: PyTree, opt_state: PyTree, batch: dict
) -> dict[str, dict[str, jax.Array]]:
    """By point, the sums of `Task.test_sums` over a test batch, for `Team.look`."""
    alive, examples = _among(steps, dist), _by_worker(dist, batch)
    points = alive.outputs(_state(np.int32(0), key, params, opt_state))
    return {point: alive.test_sums(variables, examples) for point, variables in points.items()}


def _among(steps: Steps, dist: Spmd) -> Steps:
    """The steps of those who live."""
    devices, shards = list(dist.mesh.devices.flat), dist.mesh.shape[elastic.SHARD_AXIS]
    return dataclasses.replace(steps, workers=ShardedWorkers(devices, shards))


def _state(step: PyTree, key: PyTree, params: PyTree, opt_state: PyTree) -> TrainState:
    statistics, opt_state = opt_state
    return TrainState(step, key, params, statistics.state, opt_state)


def _by_worker(dist: Spmd, batch: dict) -> dict:
    """The inverse of `_flat`, for all workers: [K, b, ...]."""
    return {name: x.reshape(dist.num_workers, -1, *x.shape[1:]) for name, x in batch.items()}
