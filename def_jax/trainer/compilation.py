"""What the programs of a run send.

    python -m def_jax.communication --config=configs/digits.py --config.ratio=256

compiles what train.py would run, without training, and prints what a device contributes to the collectives
of its programs, between workers and within one; with --devices_per_node=8, also what leaves a node, and with
1 what the link of a device carries, such as K - 1 times the bytes of an all-gather by K devices.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from def_jax.tools.programs import summary
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.launch import command_line

__all__ = ['Program', 'main', 'programs', 'run']


class Program(NamedTuple):
    """One of the programs that a run executes."""

    name: str
    hlo: str  # optimised
    executions: int  # in a whole run, by steps and evaluations; the model written at the end is not counted


def programs(experiment: Experiment) -> Iterator[Program]:
    """Compiles, one by one, what steps and evaluations compute; not diagnostics, nor what the end adds.

    Virtual workers share a device, so averages among them do not appear.
    """
    steps, workers, config = experiment.steps, experiment.workers, experiment.config
    state = workers.abstract(jax.eval_shape(steps.init), experiment.is_per_worker)
    batch = workers.place(next(experiment.train_batches(0)))
    variables = workers.abstract(jax.eval_shape(steps.outputs, state)['x'], False)
    test_batch = next(experiment.test_batches(experiment.evaluated[config.evaluate_on]))
    count = sum(-(-len(split) // test_batch['mask'].size) for split in experiment.evaluated.values())
    evaluations = -(-experiment.num_steps // experiment.steps_per_evaluation)  # the last step's is one
    points, calibrations = experiment.method.points, config.recalibrate_batches
    models = evaluations * (len(points) + ('own' in points) * (config.num_workers - 1))

    def program(name: str, step: Any, arguments: tuple, executions: int) -> Program:
        return Program(name, step.lower(*arguments).compile().as_text(), executions)

    yield program('train step', steps.train, (state, batch), experiment.num_steps)
    name = 'y, BatchNorm' if jax.tree.leaves(state.batch_stats) else 'y'
    yield program(name, steps.outputs, (state,), evaluations)
    if 'own' in points:
        own = state, np.int32(0)
        yield program("a worker's own parameters", steps.own_params, own, evaluations * config.num_workers)
    if calibrations:
        arguments = state, variables['params'], batch
        yield program('batch statistics', steps.batch_statistics, arguments, models * calibrations)
    sums = count * models * (2 if calibrations else 1)
    yield program('test sums', steps.test_sums, (variables, workers.place(test_batch)), sums)


def main(argv: list[str]) -> int:
    del argv
    config = flags.FLAGS.config
    command_line.set_environment(fake_devices=config.get('fake_devices', False))
    try:
        experiment = build(config)
        workers, sent = experiment.workers, experiment.communication
        node = flags.FLAGS.devices_per_node
        together = workers.devices_per_row * experiment.config.inside  # a worker's devices
        worker_of = [device // together for device in range(len(workers.devices))]
        print(f'{experiment.title}, what a device contributes to collectives:')
        for name, hlo, executions in programs(experiment):
            print(f'\n{name}, {executions:,} times by steps and evaluations:\n')
            print(summary(hlo, worker_of, node))
        print(f'\nDense SGD would send {sent.num_params:,} elements per step and worker.')
    except (ValueError, FileNotFoundError) as error:
        return command_line.refuse('communication', error)
    return 0


def run() -> int:
    """Reads the command line; exits with 0, or with 2 and one line about what is wrong."""
    config_flag = command_line.define_config('As for train.py.')
    flags.mark_flag_as_required('config')
    flags.DEFINE_integer('devices_per_node', None, 'How many neighbours among the devices share a link.')
    return app.run(main, flags_parser=command_line.config_flags_parser('communication', config_flag))
