"""What a compiled program sends, read from its HLO.

    python -m def_jax.communication --config=configs/digits.py --config.ratio=256

compiles what train.py would run, without training, and prints what a device passes to the collectives of
every program, between workers and within one.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from absl import app, flags

from def_jax.tools import markdown
from def_jax.traffic.hlo import Collective, collectives
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.launch import command_line

__all__ = ['Program', 'main', 'programs', 'run']


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


def programs(experiment: Experiment) -> Iterator[Program]:
    """Compiles, one after the other, the train step, the points to evaluate and the sums over a test batch.

    Virtual workers share a device, so averages among them do not appear.
    """
    steps, workers, points = experiment.steps, experiment.workers, experiment.method.points
    state = workers.abstract(jax.eval_shape(steps.init), experiment.is_per_worker)
    batch = workers.place(next(experiment.train_batches(0)))
    variables = workers.abstract(jax.eval_shape(steps.outputs, state)[0]['x'], False)
    test_batches = list(experiment.test_batches(experiment.config.evaluate_on))
    evaluations = -(-experiment.num_steps // experiment.steps_per_evaluation)  # the last step's is one
    each = workers.devices_per_row
    worker_of = [device // each for device in range(len(workers.devices))]
    sums = len(test_batches) * evaluations * sum(point != 'own' for point in points)

    def program(name: str, step: Any, arguments: tuple, executions: int) -> Program:
        hlo = step.lower(*arguments).compile().as_text()
        found = [collective.passed(len(worker_of)) for collective in collectives(hlo)]
        between, inside = ([c for c in found if c.crosses(worker_of) == crosses] for crosses in (True, False))
        return Program(name, between, executions, inside)

    yield program('train step', steps.train, (state, batch), experiment.num_steps)
    name = 'y, BatchNorm' if jax.tree.leaves(state.batch_stats) else 'y'
    yield program(name, steps.outputs, (state,), evaluations)
    test_batch = workers.place(test_batches[0])
    yield program('test sums', steps.test_sums, (variables, test_batch), sums)


def _table(experiment: Experiment) -> str:
    rows: list[list[object]] = [
        ['program', 'where', 'collectives', 'elements', 'bytes', 'executions', 'MB per run']
    ]

    def add(name: str, where: str, found: list[Collective] | None, elements: int, size: int, executions: int):
        count, megabytes = '' if found is None else len(found), f'{size * executions / 1e6:,.2f}'
        rows.append([name, where, count, f'{elements:,}', f'{size:,}', f'{executions:,}', megabytes])

    for name, between, executions, inside in programs(experiment):
        for where, found in (('between workers', between), ('within a worker', inside)):
            if found or found is between:
                figures = sum(each.elements for each in found), sum(each.bytes for each in found)
                add(name, where, found, *figures, executions)
    params = experiment.workers.part(jax.eval_shape(experiment.steps.init).params)
    dense = sum(leaf.size for leaf in jax.tree.leaves(params))
    add('train step, SGD', 'between workers', None, dense, 4 * dense, experiment.num_steps)
    return markdown.table(rows)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return command_line.refuse('communication', f'unexpected arguments {argv[1:]}')
    config = flags.FLAGS.config
    command_line.set_environment(fake_devices=config.get('fake_devices', False))
    try:
        experiment = build(config)
        print(f'{experiment.method.title}, what a device sends:\n\n{_table(experiment)}')
    except (ValueError, FileNotFoundError) as error:
        return command_line.refuse('communication', error)
    return 0


def run() -> int:
    """Reads the command line; exits with 0, or with 2 and one line about what is wrong."""
    config_flag = command_line.define_config('As for train.py.')
    flags.mark_flag_as_required('config')
    return app.run(main, flags_parser=command_line.config_flags_parser('communication', config_flag))
