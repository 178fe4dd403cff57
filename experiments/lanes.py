"""Runs side by side in one program: the trainer's own steps, mapped over workers and over rates and seeds.

Data, task, batches, keys and steps are the trainer's, so a run has the numbers that it has there, up to the
rounding of float32; what is missing is all that long runs need: devices, checkpoints and logs.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.baselines.methods import get_method
from def_jax.ground.types import PyTree
from def_jax.state.ownership import own_leaves
from def_jax.trainer import experiment as trainer
from def_jax.trainer.data.order import train_positions
from def_jax.trainer.evaluation import figures_of
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.state import TrainState, per_worker
from def_jax.trainer.steps import Steps
from def_jax.trainer.workers import AXIS, WholeWorkers
from def_jax.trainer.workers.whole import mapped_axes
from experiments import methods, problems
from experiments.spec import Record, Spec

__all__ = ['PARTS', 'course_of', 'finite', 'run']

PARTS = 20  # of a run; its course has the mean training loss of each
_EXAMPLES = 250  # of a batch in evaluation


class LaneWorkers(WholeWorkers):
    """The workers of one lane, mapped by `vmap` alone, so that lanes can be mapped as well.

    Args:
        count: how many there are.
        sequential: whether their gradients are computed one after another, see `WholeWorkers`.
    """

    def __init__(self, count: int, *, sequential: bool):
        super().__init__(jax.devices()[:1], count, sequential=sequential)
        self.shape, self.axis_name = (count,), AXIS

    def map(self, function: Callable, own_in: tuple[PyTree, ...], own_out: PyTree, donate=()) -> Callable:
        del donate  # the program of all lanes decides
        axes, axes_out = mapped_axes(own_in), mapped_axes(own_out)
        return jax.vmap(function, axes, axes_out, axis_name=AXIS, axis_size=self.shape[0])


@dataclasses.dataclass(frozen=True)
class _Lanes:
    """The compiled programs of runs that differ in rate and seed alone.

    Attributes:
        spec: of one of them.
        experiment: what the trainer makes of it.
    """

    spec: Spec
    experiment: Experiment

    @functools.cached_property
    def own(self) -> TrainState:
        """Which parts of a lane's state are per-worker."""
        return per_worker(self._optimizer(self.spec, 1.0), self.experiment.abstract_variables)

    @functools.cached_property
    def init(self) -> Callable[[np.uint32], TrainState]:
        """The trainer's state at step 0, of a seed."""
        bound: Any = self._steps(1.0).init  # to a seed, of which it is a function
        return jax.jit(bound.func)

    @functools.cached_property
    def train(self) -> Callable[[jax.Array, TrainState, dict], tuple[TrainState, jax.Array]]:
        """Rates [L], states and batches [L, T, K, b, …] to states and losses [L, T]."""

        def step(rate, state, batch):
            state, found = self._steps(rate).train(state, batch)
            return state, found['loss'].mean()

        def lane(rate, state, batches):
            return jax.lax.scan(functools.partial(step, rate), state, batches)

        if not self.experiment.config.sequential_workers:
            return _over_lanes(lane, donate=1)
        # Those are convolutions, and XLA for CPUs compiles them to slow code where they are inside a loop.
        one_step = _over_lanes(step, donate=1)

        def stepwise(rates, state, batches):
            losses = []
            for t in range(next(iter(batches.values())).shape[1]):
                state, loss = one_step(rates, state, {name: x[:, t] for name, x in batches.items()})
                losses.append(loss)
            return state, jnp.stack(losses, 1)

        return stepwise

    @functools.cached_property
    def outputs(self) -> Callable[[TrainState], dict]:
        """States to variables by point."""
        return _over_lanes(self._steps(1.0).outputs)

    @functools.cached_property
    def statistics(self) -> Callable[[TrainState, PyTree, dict], PyTree]:
        """States, parameters and a batch to BatchNorm's statistics."""
        steps = self._steps(1.0, sequential=False)  # compiles sooner, and few batches are seen
        return _over_lanes(steps.batch_statistics)

    @functools.cached_property
    def sums(self) -> Callable[[dict, dict], dict]:
        """Variables of all lanes and a batch that they share to the task's sums [L]."""
        return jax.jit(jax.vmap(self.experiment.task.test_sums, (0, None)))

    def first(self, spec: Spec) -> TrainState:
        """The state of a run at step 0; its own optimizer knows which blocks it draws."""
        made = self._optimizer(spec, 1.0)
        state = self.init(np.uint32(spec.seed))
        opt_state, own = made.init(state.params), own_leaves(made, state.params)
        count = self.experiment.config.num_workers

        def stacked(mine, x):
            return jnp.broadcast_to(x, (count, *x.shape)) if mine else x

        return dataclasses.replace(state, opt_state=jax.tree.map(stacked, own, opt_state))

    def _optimizer(self, spec: Spec, rate: Any) -> Any:
        unit = self.experiment.schedule
        return methods.optimizer(spec, lambda step: rate * unit(step), AXIS)

    def _steps(self, rate: Any, *, sequential: bool = True) -> Steps:
        config = self.experiment.config
        return dataclasses.replace(
            self.experiment.steps,
            optimizer=self._optimizer(self.spec, rate),
            workers=LaneWorkers(config.num_workers, sequential=sequential and config.sequential_workers),
            is_per_worker=self.own,
        )


def run(specs: Sequence[Spec], origin: Mapping[str, Any]) -> Iterator[Record]:
    """Trains runs that differ in rate and seed alone, as many at once as suit the problem.

    Args:
        specs: the runs.
        origin: for their records.

    Yields:
        Their records, in order.

    Raises:
        ValueError: if the runs differ in anything else, their method evaluates the model of one worker, which
            lanes do not, or a split shares an example with the training split.
    """
    if len({spec.group for spec in specs}) > 1:
        raise ValueError('runs side by side must differ in rate and seed alone; group them by Spec.group.')
    if 'own' in get_method(specs[0].method).points:
        raise ValueError(f'{specs[0].method!r} evaluates the model of one worker: use --executor=trainer.')
    lanes, side_by_side = _lanes(specs[0]), problems.PROBLEMS[specs[0].problem].lanes
    for i in range(0, len(specs), side_by_side):
        here, begin = specs[i : i + side_by_side], time.monotonic()
        # The program is compiled for a number of lanes: more than one are always as many.
        padded = list(itertools.islice(itertools.cycle(here), side_by_side))
        state, losses = _trained(lanes, padded)
        metrics = _evaluated(lanes, padded, state)
        seconds = round((time.monotonic() - begin) / len(here), 2)
        for lane, spec in enumerate(here):
            found = {name: finite(value[lane]) for name, value in metrics.items()}
            yield Record(spec, found, course_of(losses[lane]), seconds, 'lanes', origin)


def course_of(losses: Sequence[float] | np.ndarray) -> tuple[float | None, ...]:
    """Means over equal parts of a run, to four digits."""
    if not len(losses):  # the first was not finite
        return ()
    parts = np.array_split(losses, min(PARTS, len(losses)))
    return tuple(finite(part.mean(), 4) for part in parts)


def finite(value: Any, digits: int = 7) -> float | None:
    """A number as JSON has it; None if it is not finite."""
    return float(f'{value:.{digits}g}') if np.isfinite(value) else None


_made: dict[str, _Lanes] = {}  # the last group's, whatever it is evaluated on


def _lanes(spec: Spec) -> _Lanes:
    """The programs of a group; only one's are kept."""
    key = dataclasses.replace(spec, evaluate_on='test').group
    if key not in _made:
        _made.clear()
        jax.clear_caches()
        # The schedule is a unit, which each lane's rate multiplies.
        experiment = trainer.build(methods.configured(dataclasses.replace(spec, rate=1.0)))
        problems.check_disjoint(experiment.dataset)
        _made[key] = _Lanes(spec, experiment)
    return _made[key]


def _trained(lanes: _Lanes, specs: Sequence[Spec]) -> tuple[TrainState, np.ndarray]:
    """The last states of all lanes, and their losses, float32 [L, T]."""
    states = [lanes.first(spec) for spec in specs]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    rates = jnp.array([spec.rate for spec in specs], jnp.float32)
    losses = []
    for steps in np.array_split(np.arange(lanes.experiment.num_steps), PARTS):
        if len(steps):
            batches = _batches(lanes.experiment, [spec.seed for spec in specs], steps)
            state, found = lanes.train(rates, state, batches)
            losses.append(np.asarray(found))
    return state, np.concatenate(losses, 1)


def _batches(experiment: Experiment, seeds: Sequence[int], steps: Iterable[int]) -> dict[str, np.ndarray]:
    """The trainer's batches of these steps for each lane: arrays [L, T, K, b, …]."""
    split: Any = experiment.dataset.train
    sizes = {'batch_size': experiment.config.batch_size, 'num_workers': experiment.config.num_workers}

    def of(seed):
        return np.stack([train_positions(len(split), seed=seed, step=int(t), **sizes)[1] for t in steps])

    by_seed = {seed: split.take(of(seed)) for seed in dict.fromkeys(seeds)}
    return {name: np.stack([by_seed[seed][name] for seed in seeds]) for name in by_seed[seeds[0]]}


def _evaluated(lanes: _Lanes, specs: Sequence[Spec], state: TrainState) -> dict[str, np.ndarray]:
    """The trainer's metrics at each point, [L]."""
    experiment = lanes.experiment
    found: dict[str, np.ndarray] = {}
    points, evaluate_on = lanes.outputs(state), specs[0].evaluate_on
    splits: dict[str, Any] = {evaluate_on: experiment.dataset.evaluated(evaluate_on)}
    if count := experiment.config.evaluate_train_examples:
        splits['train'] = experiment.dataset.train.part(0, count)
    for point, variables in _recalibrated(lanes, specs, state, points).items():
        for name, split in splits.items():
            totals = [
                jax.device_get(lanes.sums(variables, {key: x[0] for key, x in batch.items()}))
                for batch in split.test_batches(batch_size=_EXAMPLES, num_workers=1, workers=None)
            ]
            summed = {key: np.sum([total[key] for total in totals], axis=0) for key in totals[0]}
            of_lanes = [{key: x[i] for key, x in summed.items()} for i in range(len(specs))]
            figures = [figures_of(experiment.task, name, point, point, each) for each in of_lanes]
            found |= {key: np.array([each[key] for each in figures]) for key in figures[0]}
    return found


def _recalibrated(
    lanes: _Lanes, specs: Sequence[Spec], state: TrainState, points: dict[str, dict]
) -> dict[str, dict]:
    """The variables by point, with BatchNorm's statistics over the next training batches, if asked for."""
    experiment = lanes.experiment
    if not (count := experiment.config.recalibrate_batches):
        return points
    steps = np.arange(experiment.num_steps, experiment.num_steps + count)
    batches, found = _batches(experiment, [spec.seed for spec in specs], steps), {}
    for point, variables in points.items():
        measured = [
            lanes.statistics(state, variables['params'], {name: x[:, i] for name, x in batches.items()})
            for i in range(count)
        ]
        means = jax.tree.map(lambda *each: sum(each) / count, *measured)
        found[point] = variables | {'batch_stats': means}
    return found


def _over_lanes(function: Callable, donate: int | tuple = ()) -> Callable:
    """Compiles a function of one lane for several; one alone is not mapped, so convolutions stay plain."""

    def mapped(*args):
        if len(jax.tree.leaves(args)[0]) > 1:
            return jax.vmap(function)(*args)
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], args)))

    return jax.jit(mapped, donate_argnums=donate)
