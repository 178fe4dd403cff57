"""What a run sends, verified: compiles each program that it executes and reads the collectives in its HLO."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from def_jax.mesh.hlo import Collective, collectives
from def_jax.trainer import evaluation, steps
from def_jax.trainer.experiment import Experiment

__all__ = ['Program', 'programs']


class Program(NamedTuple):
    """One of the programs that a run executes."""

    name: str
    collectives: list[Collective]  # between workers
    executions: int  # in a whole run
    inside: list[Collective]  # those among a worker's devices, if these are several

    @property
    def elements(self) -> int:
        """Elements that a device passes to the collectives between workers in one execution."""
        return sum(collective.elements for collective in self.collectives)

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return sum(collective.bytes for collective in self.collectives)

    @property
    def bytes_inside(self) -> int:
        """Bytes that a device passes to the collectives inside its worker in one execution."""
        return sum(collective.bytes for collective in self.inside)


def programs(experiment: Experiment) -> Iterator[Program]:
    """Compiles, one after the other, the train step, the points to evaluate and the sums over a test batch.

    Virtual workers share a device, so averages among them do not appear.
    """
    config, points = experiment.config, experiment.method.points
    workers = experiment.workers
    state = workers.abstract(jax.eval_shape(steps.make_init(experiment)), steps.worker_axes(experiment))
    batch = workers.place(next(experiment.train_batches(0)))
    outputs = steps.make_outputs(experiment)
    variables = workers.abstract(jax.eval_shape(outputs, state)[0]['x'], None)
    test_batches = list(evaluation.batches(experiment, config.evaluate_on))
    evaluations, each = experiment.num_evaluations, workers.devices_per_row
    worker_of = [device // each for device in range(len(workers.devices))]
    sums = len(test_batches) * evaluations * sum(point != 'own' for point in points)

    def program(name: str, step: Any, arguments: tuple, executions: int) -> Program:
        hlo = step.lower(*arguments).compile().as_text()
        found = [collective.passed(len(worker_of)) for collective in collectives(hlo)]
        between, inside = ([c for c in found if c.crosses(worker_of) == crosses] for crosses in (True, False))
        return Program(name, between, executions, inside)

    yield program('train step', steps.make_train_step(experiment), (state, batch), experiment.num_steps)
    name = 'y, BatchNorm' if jax.tree.leaves(state.batch_stats) else 'y'
    yield program(name, outputs, (state,), evaluations)
    test_batch = workers.place(test_batches[0])
    yield program('test sums', steps.make_eval_step(experiment), (variables, test_batch), sums)
