"""The compiled steps, one program on every worker: initialise, train, evaluate."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from def_jax import diagnostics
from def_jax.baselines.methods import Point
from def_jax.error_feedback import detached_params, feedback_states, output_params
from def_jax.ground.collectives import axis_index, divided, pmax, pmean, psum
from def_jax.ground.types import PyTree
from def_jax.options.skipping import is_taken
from def_jax.state.link import sharded
from def_jax.trainer.state import TrainState
from def_jax.trainer.tasks.base import Batch, Task
from def_jax.trainer.workers import WholeWorkers, Workers
from def_jax.trainer.workers.whole import mapped_axes

__all__ = ['Steps', 'accumulated_value_and_grad']

_TIMED = 16  # all-reduces, of which the first quarter does not count


@dataclasses.dataclass(frozen=True)
class Steps:
    """The compiled steps of a run; each is made when it is first asked for."""

    task: Task
    optimizer: optax.GradientTransformation
    workers: Workers
    is_per_worker: TrainState  # which parts of the state are, see `per_worker`
    seed: int  # of the first parameters and of augmentation
    points: tuple[Point, ...]
    detaches: bool  # whether gradients are taken at the detached point
    inside: int = 1  # the devices of a worker
    accumulate: int = 1  # the parts of its batch of which a worker takes gradients in turn
    skips: bool = False  # whether all workers skip a step in which a loss or an update is not finite

    @functools.cached_property
    def init(self) -> Callable[[], TrainState]:
        """A function that creates the state at step 0, already on the workers' devices."""

        def init(seed) -> TrainState:
            params_key, augment_key = jax.random.split(jax.random.key(seed))
            variables = self.task.init(params_key)
            return TrainState(
                step=jnp.int32(0),
                key=jax.random.key_data(augment_key),
                params=variables['params'],
                batch_stats=variables['batch_stats'],
                opt_state=self.optimizer.init(variables['params']),
            )

        return functools.partial(self.workers.map(init, (False,), self.is_per_worker), np.uint32(self.seed))

    @functools.cached_property
    def train(self) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
        """The train step of Algorithm 1, lines 4 to 10; it donates the state.

        It maps a state and a batch (arrays [K, b, ...]) to the new state and each worker's metrics at the
        detached point, float32 [K], and with `skips` also `taken`, bool [K]. With virtual workers, [K] is
        [devices, virtual workers].
        """

        def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
            point = detached_params(state.params, state.opt_state) if self.detaches else state.params
            grads, metrics, batch_stats = self._gradient(point, state, batch)  # of this worker, at its point
            with sharded(self.workers.shards(state.params)):  # nothing, if a worker is one device
                updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            new = TrainState(state.step + 1, state.key, params, batch_stats, opt_state)
            return _unless_skipped(state, new, metrics) if self.skips else (new, metrics)

        workers, own = self.workers, (self.is_per_worker, True)
        if type(workers) is not WholeWorkers:  # of several devices each, or lanes of an experiment
            return workers.map(train_step, own, own, donate=0)
        axes = {'in_axes': mapped_axes(own), 'out_axes': mapped_axes(own)}
        train_step = workers.on_one_device(train_step, own, own)  # of its virtual workers, if it has several
        return jax.pmap(train_step, 'workers', devices=workers.devices, donate_argnums=0, **axes)

    @functools.cached_property
    def diagnose(self) -> Callable[[TrainState, dict], dict]:
        """A function from a state and a training batch to the quantities of `def_jax.diagnostics`, at x.

        `detach_optimum_own` is a mean over workers, with a standard deviation.
        """
        axis_name = self.workers.axis_name

        def diagnose(state: TrainState, batch: dict) -> dict:
            _, grads = self._value_and_grad(state.params, state.batch_stats, batch, self._key(state))
            across, within = divided(axis_name, self.inside)
            figures = diagnostics.gradient_statistics(pmean(grads, within), across)
            if self.detaches:
                figures |= diagnostics.error_statistics(state.opt_state, axis_name)
                own, name = figures['detach_optimum_own'], 'detach_optimum_own'
                figures[name] = pmean(own, axis_name)
                figures[f'{name}_std'] = jnp.sqrt(pmean(jnp.square(own - figures[name]), axis_name))
            return figures

        return self.workers.map(diagnose, (self.is_per_worker, True), False)

    def exchange_seconds(self, size: int) -> float:
        """Median seconds of an all-reduce of `size` bytes of a worker, alone; all processes must call it."""
        axis_name = self.workers.axis_name
        numbers = -(-size // (4 * self.inside))  # of a device

        def exchange() -> jax.Array:
            across, _ = divided(axis_name, self.inside)
            own = jnp.arange(numbers, dtype=jnp.float32) + axis_index(axis_name)  # what is alike is not sent
            return jnp.max(pmean(own, across))

        run, seconds = self.workers.map(exchange, (), False), []
        for _ in range(_TIMED):
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[_TIMED // 4 :])

    @functools.cached_property
    def outputs(self) -> Callable[[TrainState], dict]:
        """A function from a state to the variables at 'x' and 'y'.

        BatchNorm's running statistics are updated linearly: averaging them here equals doing so every step.
        """
        axis_name = self.workers.axis_name

        def joined(x: jax.Array) -> jax.Array:
            # A count stays an integer: the largest, as of workers that are regrouped.
            join = pmean if jnp.issubdtype(x.dtype, jnp.inexact) else pmax
            return join(x, axis_name)

        def outputs(state: TrainState) -> dict:
            params = {'x': state.params}
            if 'y' in self.points:
                params['y'] = output_params(state.params, state.opt_state, axis_name)
            batch_stats = jax.tree.map(joined, state.batch_stats)
            return {point: {'params': p, 'batch_stats': batch_stats} for point, p in params.items()}

        return self.workers.map(outputs, (self.is_per_worker,), False)

    @functools.cached_property
    def own_params(self) -> Callable[[TrainState, np.int32], PyTree]:
        """A function from a state and the number of a worker to its own model x + r_k, on all workers."""
        axis_name = self.workers.axis_name

        def own_params(state: TrainState, worker: jax.Array) -> PyTree:
            mine = lax.axis_index(axis_name) == worker
            own = detached_params(state.params, state.opt_state)  # λ = 1
            return psum(jax.tree.map(lambda x: jnp.where(mine, x, 0), own), axis_name)

        return self.workers.map(own_params, (self.is_per_worker, False), False)

    @functools.cached_property
    def batch_statistics(self) -> Callable[[TrainState, PyTree, dict], PyTree]:
        """A function from a state, parameters and a training batch to BatchNorm's mean statistics of it."""

        def measured(params: PyTree, batch_stats: PyTree, batch: dict, key: jax.Array) -> PyTree:
            def updated(running: PyTree) -> PyTree:
                return self.task.loss(params, running, batch, key)[1][1]

            # Running statistics become m·running + (1 - m)·measured, and their derivative is m.
            nothing, one = (jax.tree.map(make, batch_stats) for make in (jnp.zeros_like, jnp.ones_like))
            decayed, momentum = jax.jvp(updated, (nothing,), (one,))
            return jax.tree.map(lambda s, m: s / (1 - m), decayed, momentum)

        of_worker = self.workers.one_worker(measured)

        def statistics(state: TrainState, params: PyTree, batch: dict) -> PyTree:
            found = of_worker(params, state.batch_stats, batch, self._key(state))
            return pmean(found, self.workers.axis_name)

        return self.workers.map(statistics, (self.is_per_worker, False, True), False)

    @functools.cached_property
    def test_sums(self) -> Callable[[dict, dict], dict]:
        """A function from variables and a test batch, arrays [K, b, ...], to sums over it."""

        def sums(variables: PyTree, batch: dict) -> dict:
            return psum(self.task.test_sums(variables, batch), self.workers.axis_name)

        return self.workers.map(sums, (False, True), False)

    def _gradient(self, point: PyTree, state: TrainState, batch: dict) -> tuple[PyTree, dict, PyTree]:
        """One worker's gradient at a point, with its metrics there and the new statistics."""
        found = self._value_and_grad(point, state.batch_stats, batch, self._key(state))
        (loss, (figures, statistics)), grads = found
        grads = self.workers.lay_out(grads)
        if self.skips:  # a non-finite loss may have a finite gradient
            grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), grads)
        return grads, {'loss': loss} | figures, statistics

    @functools.cached_property
    def _value_and_grad(self) -> Callable:
        lay_out = self.workers.lay_out_examples
        return self.workers.one_worker(accumulated_value_and_grad(self.task.loss, self.accumulate, lay_out))

    def _key(self, state: TrainState) -> jax.Array:
        """A key for this step and worker."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        return jax.random.fold_in(key, lax.axis_index(self.workers.axis_name))


def _unless_skipped(old: TrainState, new: TrainState, metrics: dict) -> tuple[TrainState, dict]:
    """The new state and whether the step is `taken`; without the statistics of one that is skipped."""
    taken = _is_taken(old.opt_state, new.opt_state)
    batch_stats = optax.tree.where(taken, new.batch_stats, old.batch_stats)
    return dataclasses.replace(new, batch_stats=batch_stats), metrics | {'taken': taken}


def _is_taken(before: PyTree, after: PyTree) -> jax.Array:
    """Whether a step counts, bool []: for all workers, or with `overlap`, for this one."""
    (old,), (new,) = (feedback_states(state, 'skip_nonfinite') for state in (before, after))
    return is_taken(old, new)


def accumulated_value_and_grad(
    loss: Callable[..., Any], accumulate: int = 1, lay_out: Callable[[Batch], Batch] = lambda part: part
) -> Callable[..., Any]:
    """A function like `jax.value_and_grad(loss, has_aux=True)`, over one part of a batch at a time.

    Loss, metrics and gradient are means over the parts; BatchNorm's statistics pass from part to part.
    `lay_out` divides a part among the devices of a worker that has several.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return value_and_grad

    def accumulated(params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        def part(carry: PyTree, inputs: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
            totals, batch_stats = carry
            examples, key = inputs
            found = value_and_grad(params, batch_stats, lay_out(examples), key)
            (value, (figures, batch_stats)), grads = found
            return (jax.tree.map(jnp.add, totals, (value, figures, grads)), batch_stats), None

        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_grad, params, batch_stats, first, key)
        (value, (figures, _)), grads = shapes
        zeros = jax.tree.map(lambda each: jnp.zeros_like(each, jnp.float32), (value, figures, grads))
        (totals, batch_stats), _ = jax.lax.scan(part, (zeros, batch_stats), (parts, keys))
        means = jax.tree.map(lambda total: total / accumulate, totals)
        value, figures, grads = optax.tree.cast_like(means, (value, figures, grads))
        return (value, (figures, batch_stats)), grads

    return accumulated
