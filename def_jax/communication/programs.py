"""What a run sends, verified: compiles each program that it executes and reads the collectives in its HLO."""

import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table
from absl import app, flags

from def_jax.communication import Collective, collectives
from def_jax.launch import command_line
from def_jax.training import evaluation, steps
from def_jax.training.experiment import Communication, Experiment, build

__all__ = ['Program', 'programs', 'run']


class Program(NamedTuple):
    """One of the programs that a run executes."""

    name: str
    collectives: list[Collective]
    executions: int  # in a whole run

    @property
    def elements(self) -> int:
        """Elements that a worker passes to the collectives in one execution."""
        return sum(collective.elements for collective in self.collectives)

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return sum(collective.bytes for collective in self.collectives)


def programs(experiment: Experiment) -> Iterator[Program]:
    """Compiles, one after the other, the train step, the points to evaluate and the sums over a test batch.

    Args:
        experiment: the run.

    Yields:
        The programs, with what they send and how often they run. Virtual workers share a device, so averages
        among them do not appear.
    """
    config, points = experiment.config, experiment.method.points
    state, batch = jax.eval_shape(steps.make_init(experiment)), next(experiment.train_batches(0))
    outputs = steps.make_outputs(experiment)
    variables = jax.eval_shape(outputs, state)[0]['x']
    test_batches = list(
        experiment.test_batches(config.evaluate_on, evaluation.EXAMPLES_PER_DEVICE, len(experiment.devices))
    )
    evaluations = experiment.num_evaluations
    sums = len(test_batches) * evaluations * sum(point != 'own' for point in points)

    def program(name: str, step: Any, arguments: tuple, executions: int) -> Program:
        hlo = step.lower(*arguments).compile().as_text()
        return Program(name, collectives(hlo), executions)

    yield program('train step', steps.make_train_step(experiment), (state, batch), experiment.num_steps)
    name = 'y, BatchNorm' if jax.tree.leaves(state.batch_stats) else 'y'
    yield program(name, outputs, (state,), evaluations)
    yield program('test sums', steps.make_eval_step(experiment), (variables, test_batches[0]), sums)


def _show(console: rich.console.Console, experiment: Experiment) -> None:
    table = rich.table.Table(title=f'{experiment.method.title}: what a worker sends', title_justify='left')
    for heading in ('program', 'collectives', 'elements', 'bytes', 'executions', 'MB per run'):
        table.add_column(heading, justify='left' if heading == 'program' else 'right')
    for program in programs(experiment):
        figures = (len(program.collectives), program.elements, program.bytes, program.executions)
        megabytes = program.bytes * program.executions / 1e6
        table.add_row(program.name, *(f'{figure:,}' for figure in figures), f'{megabytes:,.2f}')
    dense = Communication.of(experiment, jax.eval_shape(steps.make_init(experiment)).params)
    total = f'{dense.dense_bytes_per_step * experiment.num_steps / 1e6:,.2f}'
    counts = (dense.num_params, dense.dense_bytes_per_step, experiment.num_steps)
    table.add_row('train step, SGD', '', *(f'{count:,}' for count in counts), total)
    console.print(table)


def _main(argv: list[str]) -> int:
    if len(argv) > 1:
        return command_line.refuse('communication', f'unexpected arguments {argv[1:]}')
    config = flags.FLAGS.config
    with tempfile.TemporaryDirectory() as folder:
        command_line.set_environment(folder, fake_devices=config.get('fake_devices', False))
        try:
            _show(rich.console.Console(), build(config))
        except (ValueError, FileNotFoundError) as error:
            return command_line.refuse('communication', error)
    return 0


def run() -> None:
    """The program `python -m def_jax.communication`."""
    config_flag = command_line.define_config('As for train.py.')
    flags.mark_flag_as_required('config')
    app.run(_main, flags_parser=command_line.config_flags_parser('communication', config_flag))
