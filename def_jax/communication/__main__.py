"""The program `python -m def_jax.communication`."""

import tempfile

import jax
import rich.console
import rich.table
from absl import app, flags

from def_jax import communication
from def_jax.communication.programs import programs
from def_jax.launch import command_line
from def_jax.training import steps
from def_jax.training.experiment import Experiment, build

__doc__ = communication.__doc__  # --help prints it


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
    params = experiment.workers.part(jax.eval_shape(steps.make_init(experiment)).params)
    dense = sum(leaf.size for leaf in jax.tree.leaves(params))
    add('train step, SGD', None, dense, 4 * dense, None, experiment.num_steps)
    console.print(table)


def main(argv: list[str]) -> int:
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


if __name__ == '__main__':
    config_flag = command_line.define_config('As for train.py.')
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=command_line.config_flags_parser('communication', config_flag))
