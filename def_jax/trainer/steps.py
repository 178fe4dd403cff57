"""The compiled steps, one program on every worker: initialise, train, evaluate."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from def_jax import diagnostics
from def_jax.beyond.skipping import step_taken
from def_jax.error_feedback import detached_params, output_params
from def_jax.mesh.collectives import pmean, psum
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.state import TrainState
from def_jax.trainer.tasks.base import Task
from def_jax.trainer.tasks.gradients import accumulated_value_and_grad
from def_jax.trainer.workers import AXIS, Workers
from def_jax.types import AxisName, PyTree

__all__ = [
    'TrainState',
    'make_batch_statistics',
    'make_diagnose',
    'make_eval_step',
    'make_init',
    'make_outputs',
    'make_own_eval_step',
    'make_train_step',
]


def make_init(experiment: Experiment) -> Callable[[], TrainState]:
    """Returns a function that creates the state at step 0, already on the workers' devices."""

    def init(seed) -> TrainState:
        params_key, augment_key = jax.random.split(jax.random.key(seed))
        variables = experiment.task.init(params_key)
        return TrainState(
            step=jnp.int32(0),
            key=jax.random.key_data(augment_key),
            params=variables['params'],
            batch_stats=variables['batch_stats'],
            opt_state=experiment.optimizer.init(variables['params']),
        )

    initialise = experiment.workers.map(init, (False,), experiment.own)
    return functools.partial(initialise, np.uint32(experiment.config.seed))


def make_train_step(experiment: Experiment) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """Returns the train step of Algorithm 1, lines 4 to 10; it donates the state.

    The step maps a state and a batch (arrays [K, b, ...]) to the new state and each worker's metrics: the
    loss and those of the task at the detached point, float32 [K], and with `skip_nonfinite` also taken, bool
    [K], False if all workers skipped the step. With virtual workers, [K] becomes [devices, virtual workers].
    """
    detaches, own = experiment.method.kind == 'error_feedback', experiment.own
    skips, workers = experiment.config.skip_nonfinite, experiment.workers
    optimizer = optax.with_extra_args_support(experiment.optimizer)

    value_and_grad = _value_and_grad(experiment.task, workers, experiment.config.accumulate)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        point = detached_params(state.params, state.opt_state) if detaches else state.params
        key = _step_key(state, workers.axis_name)
        (loss, (figures, batch_stats)), grads = value_and_grad(point, state.batch_stats, batch, key)
        grads = workers.lay_out(grads)
        if skips:  # a non-finite loss may have a finite gradient
            grads = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), grads)
        # Weight decay, too, is evaluated at the detached point.
        shards = workers.shards(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, point, shards=shards)
        params = optax.apply_updates(state.params, updates)
        metrics = {'loss': loss} | figures
        if skips:
            taken, _ = step_taken(state.opt_state, opt_state)
            batch_stats = optax.tree.where(taken, batch_stats, state.batch_stats)
            metrics['taken'] = taken
        return TrainState(state.step + 1, state.key, params, batch_stats, opt_state), metrics

    return workers.map(train_step, (own, True), (own, True), donate=0)


def make_diagnose(experiment: Experiment) -> Callable[[TrainState, dict], tuple[dict, dict]]:
    """Returns a function from a state and a training batch to the quantities of `def_jax.diagnostics`.

    The first of its two dicts holds those common to all workers, float32 []; the second holds each worker's
    own, `detach_optimum_own`, float32 [K]. Gradients are taken at x, on the batch.
    """

    workers, axis_name = experiment.workers, experiment.workers.axis_name
    value_and_grad = _value_and_grad(experiment.task, workers, experiment.config.accumulate)

    def diagnose(state: TrainState, batch: dict) -> tuple[dict, dict]:
        _, grads = value_and_grad(state.params, state.batch_stats, batch, _step_key(state, axis_name))
        figures = diagnostics.gradient_statistics(grads, axis_name)
        own = {}
        if experiment.method.kind == 'error_feedback':
            figures |= diagnostics.error_statistics(state.opt_state, axis_name)
            own['detach_optimum_own'] = figures.pop('detach_optimum_own')
        return figures, own

    return workers.map(diagnose, (experiment.own, True), (False, True))


def make_outputs(experiment: Experiment) -> Callable[[TrainState], tuple[dict, dict]]:
    """Returns a function from a state to the variables at each of the method's points.

    The first of its two dicts holds the variables at 'x' and 'y'; the second, with the worker axis, the
    parameters at 'own', each worker's own model. BatchNorm's running statistics do not affect training and
    are updated linearly, so averaging them over workers here equals averaging them at every step, without the
    traffic.
    """
    points, workers = experiment.method.points, experiment.workers

    def outputs(state: TrainState) -> tuple[dict, dict]:
        params, own = {'x': state.params}, {}
        if 'y' in points:
            params['y'] = output_params(state.params, state.opt_state, workers.axis_name)
        if 'own' in points:
            own['own'] = detached_params(state.params, state.opt_state)  # λ = 1: x + r_k
        batch_stats = pmean(state.batch_stats, workers.axis_name)
        return {point: {'params': p, 'batch_stats': batch_stats} for point, p in params.items()}, own

    return workers.map(outputs, (experiment.own,), (False, True))


def make_batch_statistics(
    experiment: Experiment, *, own: bool = False
) -> Callable[[TrainState, PyTree, dict], PyTree]:
    """Returns a function from a state, parameters and a training batch to the batch's BatchNorm statistics.

    The batch is augmented as in training, each worker normalises its own share, and the statistics are
    averaged over workers. With `own`, the parameters have the worker axis.
    """
    task, workers = experiment.task, experiment.workers

    def measured(params: PyTree, batch_stats: PyTree, batch: dict, key: jax.Array) -> PyTree:
        def updated(running: PyTree) -> PyTree:
            return task.loss(params, running, batch, key)[1][1]

        # running statistics become m·running + (1 - m)·measured; the derivative is m, whatever the model's is
        nothing, one = (jax.tree.map(make, batch_stats) for make in (jnp.zeros_like, jnp.ones_like))
        decayed, momentum = jax.jvp(updated, (nothing,), (one,))
        return jax.tree.map(lambda s, m: s / (1 - m), decayed, momentum)

    of_worker = workers.one_worker(measured)

    def statistics(state: TrainState, params: PyTree, batch: dict) -> PyTree:
        key = _step_key(state, workers.axis_name)
        return pmean(of_worker(params, state.batch_stats, batch, key), workers.axis_name)

    return workers.map(statistics, (experiment.own, own, True), False)


def make_eval_step(experiment: Experiment) -> Callable[[dict, dict], dict]:
    """Returns a function from variables and a test batch to sums over its examples on all devices.

    The batch has arrays [D, b, ...] and mask [D, b], 0 on padding, for D devices, or workers of several
    devices; the sums are those of `Task.test_sums`, float32 [].
    """

    def sums(variables: PyTree, batch: dict) -> dict:
        return psum(experiment.task.test_sums(variables, batch), AXIS)

    return experiment.workers.map_rows(sums, (False, True), False)


def make_own_eval_step(experiment: Experiment) -> Callable[[dict, dict], dict]:
    """Like `make_eval_step`, for variables with the worker axis: each worker's model sees the whole batch.

    The batch has arrays [b, ...]; the sums are float32 [K].
    """
    own = {'params': True, 'batch_stats': False}
    test_sums = experiment.workers.one_worker(experiment.task.test_sums)
    return experiment.workers.map(test_sums, (own, False), True)


def _value_and_grad(task: Task, workers: Workers, accumulate: int) -> Callable:
    gradient = accumulated_value_and_grad(task.loss, accumulate, workers.lay_out_examples)
    return workers.one_worker(gradient)


def _step_key(state: TrainState, axis_name: AxisName) -> jax.Array:
    """A key for this step and worker."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.random.fold_in(key, lax.axis_index(axis_name))
