"""What a compiled program sends, read from its HLO.

    python -m def_jax.communication --config=configs/digits.py --config.ratio=256

compiles what train.py would run, without training, and prints what each worker passes to the collectives of
every program. If workers are several devices (shards_per_worker), it
prints what a device passes, between workers and inside its own apart.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table
from absl import app, flags

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


def _show(console: rich.console.Console, experiment: Experiment) -> None:
    sharded = experiment.workers.devices_per_row > 1
    sender = 'a device' if sharded else 'a worker'
    table = rich.table.Table(title=f'{experiment.method.title}: what {sender} sends', title_justify='left')
    sent = ('elements between', 'bytes between', 'bytes inside') if sharded else ('elements', 'bytes')
    total = 'MB between per run' if sharded else 'MB per run'
    for heading in ('program', 'collectives', *sent, 'executions', total):
        table.add_column(heading, justify='left' if heading == 'program' else 'right')

    def add(name: str, count: int | None, elements: int, size: int, inside: int | None, executions: int):
        figures = (count, elements, size, *((inside,) if sharded else ()), executions)
        megabytes = f'{size * executions / 1e6:,.2f}'
        table.add_row(name, *('' if figure is None else f'{figure:,}' for figure in figures), megabytes)

    for program in programs(experiment):
        count = len(program.collectives) + len(program.inside)
        add(program.name, count, program.elements, program.bytes, program.bytes_inside, program.executions)
    params = experiment.workers.part(jax.eval_shape(experiment.steps.init).params)
    dense = sum(leaf.size for leaf in jax.tree.leaves(params))
    add('train step, SGD', None, dense, 4 * dense, None, experiment.num_steps)
    console.print(table)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return command_line.refuse('communication', f'unexpected arguments {argv[1:]}')
    config = flags.FLAGS.config
    command_line.set_environment(fake_devices=config.get('fake_devices', False))
    try:
        _show(rich.console.Console(), build(config))
    except (ValueError, FileNotFoundError) as error:
        return command_line.refuse('communication', error)
    return 0


def run() -> int:
    """Reads the command line; exits with 0, or with 2 and one line about what is wrong."""
    config_flag = command_line.define_config('As for train.py.')
    flags.mark_flag_as_required('config')
    return app.run(main, flags_parser=command_line.config_flags_parser('communication', config_flag))
