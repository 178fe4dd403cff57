"""Runs an experiment, writes its page, or fills numbers on pages; see `python -m experiments --help`."""

import argparse
import functools
import importlib
import itertools
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    try:
        if arguments.command == 'numbers':
            return _numbers(arguments)
        if arguments.command == 'bytes':
            return _bytes(arguments)
        folder = Path(arguments.results, arguments.name)
        experiment = _experiment(arguments.name)
        if arguments.command == 'page':
            from experiments import pages

            pictures = (getattr(experiment, name, None) for name in ('CURVES', 'ALONG'))
            pages.write_experiment(experiment.SETTINGS, experiment.PAGE, folder, *pictures)
        else:
            from def_jax.trainer.launch import command_line

            run = functools.partial(_run, experiment, folder, arguments)
            return command_line.exit_code('experiments', run)
    except (ValueError, ModuleNotFoundError) as error:
        print(f'experiments: {error}', file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'python -m experiments', description='Runs experiments; writes their pages; fills numbers.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    run = commands.add_parser('run', help='train what has no record yet, or go on with it')
    page = commands.add_parser('page', help='write the page from the records')
    fill = commands.add_parser(
        'numbers',
        help='fill the marks on the pages of --results; with the default, also those of README.md and docs/',
    )
    trace = commands.add_parser('bytes', help='trace what finished methods send, where it is not on file')
    for command in (run, page, fill, trace):
        command.add_argument('--results', default='results', help='folder of the folders of records')
    for command in (run, page):
        command.add_argument('name', help='the module of the experiment, e.g. few_bits')
    run.add_argument('--only', default='', help='settings whose name contains this, e.g. digits')
    run.add_argument('--executor', choices=('lanes', 'trainer'), help="the experiment's own if not given")
    run.add_argument(
        '--allow_dirty',
        action='store_true',
        help='run although code is not committed; an interrupted run starts from scratch',
    )
    fill.add_argument(
        '--check', action='store_true', help='change nothing; exit code 1 if a number is stale or missing'
    )
    fill.add_argument('pages', nargs='*', type=Path, help='other pages than those')
    return parser


def _run(experiment, folder: Path, arguments: argparse.Namespace) -> None:
    from experiments import runner, spec

    settings = experiment.SETTINGS
    chosen = [setting for setting in settings if arguments.only in setting.name]
    if not chosen:
        names = ', '.join(repr(setting.name) for setting in settings)
        raise ValueError(f'--only={arguments.only!r} is in no name of {names}.')
    origin = spec.origin(allow_dirty=arguments.allow_dirty)
    executor = arguments.executor or getattr(experiment, 'EXECUTOR', 'lanes')
    if executor == 'lanes' and any(setting.at for setting in chosen):
        raise ValueError('lanes evaluate only after the last step: use --executor=trainer.')
    own = folder / 'runs.jsonl'
    others = [spec.Records(path) for path in sorted(folder.parent.glob('*/runs.jsonl')) if path != own]
    runner.train(chosen, runner.Runner(spec.Records(own), origin, executor, others))


def _bytes(arguments: argparse.Namespace) -> int:
    from experiments import runner, spec, wire

    for name in _names():
        records = spec.Records(Path(arguments.results, name, 'runs.jsonl'))
        cells = itertools.chain.from_iterable(runner.finished(_experiment(name).SETTINGS, records))
        wire.update(cell.spec for cell in cells)
    return 0


def _numbers(arguments: argparse.Namespace) -> int:
    from experiments import numbers, pages, runner, spec

    @functools.cache
    def found(name: str) -> numbers.Found:
        settings = _experiment(name).SETTINGS
        records = spec.Records(Path(arguments.results, name, 'runs.jsonl'))
        return settings, pages.rows(runner.finished(settings, records))

    listed = sorted(Path(arguments.results).rglob('*.md'))
    if Path(arguments.results).resolve() == _ROOT / 'results':
        listed += [_ROOT / 'README.md', *sorted((_ROOT / 'docs').rglob('*.md'))]
    wrong = False
    for path in arguments.pages or listed:
        text = path.read_text(encoding='utf-8')
        try:
            new = numbers.filled(text, found, Path(arguments.results))
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error
        if new != text:
            print(f'{path}: {"has a stale number" if arguments.check else "filled"}')
            if not arguments.check:
                path.write_text(new, encoding='utf-8')
        if lacks := numbers.lacks(new):
            print(f'{path}: has a mark without a number')
        wrong |= lacks or new != text
    return int(arguments.check and wrong)


def _experiment(name: str) -> types.ModuleType:
    """The module of an experiment; raises ValueError if it is none."""
    if name not in (names := _names()):
        raise ValueError(f'{name!r} is no experiment; there are {", ".join(names)}.')
    return importlib.import_module(f'experiments.{name}')


def _names() -> list[str]:
    paths = sorted(Path(__file__).parent.glob('*.py'))
    return [path.stem for path in paths if '\nSETTINGS' in path.read_text('utf-8')]


if __name__ == '__main__':
    sys.exit(main())
