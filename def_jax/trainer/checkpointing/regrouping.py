"""Which workers a state has, and what it means to resume with others."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from def_jax.ground.types import PyTree
from def_jax.state.ownership import each
from def_jax.state.regrouping import num_stacked
from def_jax.trainer.configuration import parts
from def_jax.trainer.experiment import Experiment

__all__ = ['describe', 'shape_of', 'shapes']


def shape_of(experiment: Experiment, state: PyTree) -> tuple[int, ...]:
    """Leading axes of per-worker arrays: [K], or [devices, virtual]; in an elastic run, K may be another."""
    shape = experiment.workers.shape
    if not experiment.config.elastic:
        return shape
    stacked = each(lambda mine, leaf: mine, experiment.is_per_worker, state)
    return (num_stacked(state, stacked, shape[0]),)


def shapes(experiment: Experiment, like: PyTree, workers: tuple[int, ...]) -> PyTree:
    """The shapes and dtypes that `like`, a state of this run, would have with other workers."""

    def shape(mine, leaf):
        rest = leaf.shape[len(experiment.workers.shape) :] if mine else leaf.shape
        return jax.ShapeDtypeStruct((*workers, *rest) if mine else rest, leaf.dtype)

    return each(shape, experiment.is_per_worker, like)


def describe(saved: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """What restoring a checkpoint of this manifest changes: workers and batches; one line each."""
    workers, batch_size = tuple(saved['workers']), saved['batch_size']
    shards = saved.get('shards', 1)  # those of earlier versions are whole
    shape, devices = experiment.workers.shape, experiment.workers.devices_per_row
    old, new, batch, lines = math.prod(workers), math.prod(shape), experiment.config.batch_size, []
    if old != new:
        mean = f'each receives the mean of the {old} residuals, momenta and statistics; parameters unchanged'
        lines.append(f'workers: {old} before, {new} now; {mean}')
    elif workers != shape:
        places = ' x '.join(map(str, shape)) + (' devices x virtual' if len(shape) > 1 else '')
        lines.append(f'workers: the same {old}, now as {places} workers; the state is unchanged')
    inside, now = saved.get('inside', 1), experiment.config.inside
    if inside != now:
        lines.append(f'devices a worker: {inside} before, {now} now; each receives the mean of all residuals')
    if shards != devices:
        lines.append(f'devices a worker: {shards} before, {devices} now; blocks are cut from other shards')
    if batch_size != batch:
        lines.append(f'batch: {batch_size} examples before, {batch} now; epochs count by the new')
    if (steps := saved.get('num_steps', experiment.num_steps)) != experiment.num_steps:
        before = parts.make_schedule(experiment.config, steps)
        rates = [float(schedule(saved['step'])) for schedule in (before, experiment.schedule)]
        rate = 'the schedule is now that of the new length: learning rate {:g} before, {:g} now'.format(
            *rates
        )
        lines.append(f'steps: {steps:,} in all before, {experiment.num_steps:,} now; {rate}')
    return lines
