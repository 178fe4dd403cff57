"""Runs an experiment, or writes its page; see `python -m experiments --help`."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        'python -m experiments', description='Runs experiments; writes their pages.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='train the runs that have no record yet')
    page = commands.add_parser('page', help='write the page from the records')
    for command in (run, page):
        command.add_argument('name', help='the module of the experiment, e.g. few_bits')
        command.add_argument('--results', default='results', help='folder of the folders of records')
    run.add_argument('--only', default='', help='settings whose name contains this, e.g. digits')
    run.add_argument('--executor', default='lanes', choices=('lanes', 'trainer'))
    run.add_argument('--allow_dirty', action='store_true', help='run although the checkout differs from HEAD')
    arguments = parser.parse_args(argv)
    folder = Path(arguments.results, arguments.name)
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    try:
        experiment = importlib.import_module(f'experiments.{arguments.name}')
        if arguments.command == 'page':
            experiment.write(folder)
        else:
            _run(experiment.SETTINGS, folder, arguments)
    except (ValueError, ModuleNotFoundError) as error:
        print(f'experiments: {error}', file=sys.stderr)
        return 2
    return 0


def _run(settings: Sequence, folder: Path, arguments: argparse.Namespace) -> None:
    from experiments import runner, spec

    chosen = [setting for setting in settings if arguments.only in setting.name]
    if not chosen:
        names = ', '.join(repr(setting.name) for setting in settings)
        raise ValueError(f'--only={arguments.only!r} is in no name of {names}.')
    origin = spec.origin(allow_dirty=arguments.allow_dirty)
    runner.train(chosen, runner.Runner(spec.Records(folder / 'runs.jsonl'), origin, arguments.executor))


if __name__ == '__main__':
    sys.exit(main())
