"""Trains every run of a table, in one or several processes that share a folder.

    python -m paper.sweep --config=configs/tables/table1.py:digits --workdir=runs/table1_digits

Finished runs are skipped and interrupted ones resumed, so the same command continues after a kill. A run
belongs to one process at a time: --processes=8 starts eight, each with its own GPU, and other machines join
with the same command and a folder on a shared file system. Machines without one take a part of the table
each, --shard=1/3, 2/3 and 3/3; then copy the run folders of all into the workdir of one.
`def_jax.trainer.launch.exits` lists the exit codes. A run that diverges counts as a result, and the sweep
continues.
"""

import contextlib
import copy
import functools
import json
import operator
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import ml_collections
import rich.console
import rich.progress
from absl import app, flags

from def_jax.checks import nearest
from def_jax.trainer import results, workers
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.configuration import arguments
from def_jax.trainer.configuration.rules import check_config
from def_jax.trainer.launch import command_line, devices, interruption, supervision
from def_jax.trainer.launch.exits import EndedError, ExitCode
from def_jax.trainer.measure import Measure
from paper import finished_runs
from paper.needed_runs import (
    Run,
    candidates,
    check_table,
    final_runs,
    missing_runs,
    shard,
    tuning_runs,
)

__all__ = ['InterruptedSweepError', 'check_spec', 'check_sweep', 'configs', 'divided_gpus', 'sweep']

_POLL_SECONDS = 5


class InterruptedSweepError(EndedError):
    """A signal came too late to interrupt a run, and ended the sweep after it."""

    exit_code = ExitCode.STOPPED

    def __init__(self, name: str):
        super().__init__(f'stopped by {name} between two runs. Run the same command again to go on.')


def check_spec(spec: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless every run of the table has a valid configuration."""
    if set(spec.tuning_seeds) & set(spec.seeds):
        raise ValueError(
            f'config.tuning_seeds={spec.tuning_seeds} and config.seeds={spec.seeds} must have no seed in '
            'common.'
        )
    if not spec.seeds or not spec.cells or not spec.tuning_seeds:
        raise ValueError('config.seeds, config.cells and config.tuning_seeds must not be empty.')
    if any(cell.get('tuned') and not candidates(spec, cell) for cell in spec.cells):
        raise ValueError(
            "a cell's tuned settings need learning rates to be tried with: give config.learning_rates, or "
            "'learning_rate' in tuned."
        )
    settings_of_cells = [cell['settings'] | cell.get('tuned', {}) for cell in spec.cells]
    for place, settings in [
        ('tuning', spec.get('tuning', {})),
        *(('a cell', settings) for settings in settings_of_cells),
    ]:
        for key in settings:
            root, dot, _ = key.partition('.')
            if root not in spec.base or (dot and not root.endswith('_options')):
                raise ValueError(f'{key!r}, in {place}, is not a known key.{nearest(key, spec.base)}')
    for config in configs(spec):
        check_config(config)


def sweep(
    spec: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    console: rich.console.Console,
    part: str = '1/1',
) -> None:
    """Trains the missing runs of a table.

    Args:
        spec: the table, see `configs/tables/tables.py`.
        folder: receives config.json (the base configuration), sweep.json (the table) and a folder per run.
        console: where to show progress.
        part: which `shard` of the table to train.

    Raises:
        ValueError: if the table, the folder or a run in it cannot be used. Finished runs are kept.
        EndedError: if a run or the sweep is interrupted, or workers disagree.
    """
    needed = check_sweep(spec, part)
    if jax.default_backend() == 'gpu' and (here := jax.local_device_count()) >= 2 * needed:
        console.print(
            f'{needed} of {here} GPUs are used; --processes, or more of them, trains runs side by side'
        )
    with _hints_of_a_sweep(spec):
        _sweep(spec, shard(spec, part), folder, console)


def check_sweep(spec: ml_collections.ConfigDict, part: str) -> int:
    """Checks a part of a table, and returns how many devices a run of the table needs at most.

    Raises:
        ValueError: before a folder is claimed, if the table or a device that it needs is not there.
    """
    with _hints_of_a_sweep(spec):
        check_spec(shard(spec, part))
        # Start with the largest number: JAX cannot add fake devices later.
        most = max(configs(spec), key=workers.num_devices)
        return len(devices.worker_devices(workers.num_devices(most), fake=most.fake_devices))


def _check_data(spec: ml_collections.ConfigDict) -> None:
    """Raises ValueError if a data set is missing; downloads and prepares it where it can be."""
    from def_jax.trainer import experiment  # imports TensorFlow, so the environment must be set first

    one_each = {f'{config.dataset} {config.dataset_options}': config for config in configs(spec)}
    with _hints_of_a_sweep(spec):
        for config in one_each.values():
            experiment.build(config)


@contextlib.contextmanager
def _hints_of_a_sweep(spec: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes errors of a run name the keys of the sweep, which holds the configuration in config.base."""

    def of_the_sweep(key: re.Match) -> str:
        return f'config.base.{key[1]}' if key[1] in spec.base else key[0]

    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(re.sub(r'\bconfig\.(\w+)', of_the_sweep, str(error))) from error


def _sweep(
    spec: ml_collections.ConfigDict,
    ours: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    console: rich.console.Console,
) -> None:
    root = workdir.claim(folder, spec.base)
    workdir.write_json(root / 'sweep.json', json.loads(spec.to_json()))
    elsewhere: set[str] = set()  # runs that another process of this sweep is training
    with _progress(console) as bar:
        task = bar.add_task('')
        while missing := missing_runs(ours, done := finished_runs.read_folders(root)):
            bar.update(task, completed=len(done), total=len(done) + len(missing))
            name, run = next(((n, r) for n, r in missing.items() if n not in elsewhere), (None, {}))
            if name is None:
                elsewhere.clear()
                time.sleep(_POLL_SECONDS)
                continue
            bar.update(task, description=name)
            started = time.monotonic()
            try:
                with _held(root, name):
                    if results.read(root / name):
                        continue  # another process has finished it since
                    outcome = _outcome(_config(spec, run), root / name)
            except workdir.InUseError:
                elsewhere.add(name)
                continue
            jax.clear_caches()  # keeps memory bounded; seeds share compiled programs through the disk cache
            bar.console.print(
                f'{len(done) + 1}/{len(done) + len(missing)}  {name}: {outcome} '
                f'({time.monotonic() - started:.0f} s)',
                highlight=False,
                soft_wrap=True,
            )
            if signal := interruption.unheeded():
                raise InterruptedSweepError(signal)


def _held(root: Path, name: str) -> contextlib.AbstractContextManager[None]:
    """Keeps a run to this process, from asking whether it is finished until its result is written.

    The lock of the run's own folder is taken later, when the data is loaded.
    """
    lock = root / 'locks' / name
    lock.mkdir(parents=True, exist_ok=True)
    return workdir.locked(lock)


def _outcome(config: ml_collections.ConfigDict, folder: Path) -> str:
    """Trains a run; returns what its line says of it."""
    from def_jax.trainer import loop  # imports TensorFlow, so the environment must be set first

    try:
        result = loop.train_and_evaluate(config, folder, rich.console.Console(quiet=True))
    except loop.DivergedError as error:
        return f'diverged at step {error.step}'
    measure, metrics = Measure.of(result), result['metrics']
    return '  '.join(f'{p} {measure.text(metrics[measure.key(p)])}' for p in result['points'])


def configs(spec: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
    """The configurations of all runs whose learning rate is known."""
    return [
        _config(spec, run)
        for cell in spec.cells
        for run in tuning_runs(spec, cell) + final_runs(spec, cell, {})
    ]


def _config(spec: ml_collections.ConfigDict, run: Run) -> ml_collections.ConfigDict:
    config = copy.deepcopy(spec.base).unlock()
    for key, value in run.items():
        *parents, name = key.split('.')  # 'optimizer_options.b2'
        functools.reduce(operator.getitem, parents, config)[name] = value
    return arguments.lock(config)


def _progress(console: rich.console.Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(),
        rich.progress.TextColumn('{task.description}'),
        rich.progress.TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def main(argv: list[str]) -> int:
    del argv
    spec, folder, part = flags.FLAGS.config, flags.FLAGS.workdir, flags.FLAGS.shard
    count = flags.FLAGS.processes
    try:
        check_table(spec, '--config')
        shard(spec, part)
        environments = [{}] * count if spec.base.fake_devices else divided_gpus(count)
    except ValueError as error:
        return _refuse(error)
    command_line.set_environment(fake_devices=spec.base.fake_devices)

    def start(work: Callable[[], None], environment: dict[str, str]) -> int:
        os.environ.update(environment)
        return command_line.exit_code('sweep', work)

    def train(console: rich.console.Console) -> None:
        sweep(spec, folder, console, part)

    if count == 1:
        code = start(functools.partial(train, rich.console.Console()), environments[0])
    else:

        def check() -> None:
            check_sweep(spec, part)
            _check_data(shard(spec, part))

        quiet = functools.partial(
            train, rich.console.Console(force_terminal=False)
        )  # one bar each is too many
        # One process reports what is wrong with the table, the GPUs or the data, before all of them would.
        code = supervision.supervised('sweep', lambda: start(check, environments[0]))
        code = code or supervision.side_by_side(
            'sweep', [functools.partial(start, quiet, environment) for environment in environments]
        )
    return code or command_line.exit_code('sweep', lambda: _conclude(folder, part))


def divided_gpus(num_processes: int) -> list[dict[str, str]]:
    """Environment variables that give each of several independent processes GPUs of its own.

    JAX uses all GPUs that it sees, and reserves most of their memory. Raises ValueError if there are fewer
    GPUs than processes.
    """
    gpus = devices.visible_gpus()
    if not gpus:
        return [{} for _ in range(num_processes)]
    if num_processes > len(gpus):
        raise ValueError(
            f'--processes={num_processes} is more than the {len(gpus)} GPUs of this machine; each process '
            'needs one.'
        )
    share = len(gpus) // num_processes
    return [
        {'CUDA_VISIBLE_DEVICES': ','.join(gpus[share * process : share * (process + 1)])}
        for process in range(num_processes)
    ]


def _conclude(folder: str, part: str) -> None:
    if part == '1/1':
        print(f'all runs are done; next, run python -m paper.report --workdir={folder}')
    else:
        print(
            f'all runs of part {part} are done; next, copy the run folders of the other parts into {folder} '
            'and run this command there without --shard'
        )


def _refuse(reason: object) -> int:
    return command_line.refuse('sweep', reason)


if __name__ == '__main__':
    config_flag = command_line.define_config('A table, e.g. configs/tables/table1.py.')
    flags.DEFINE_string('workdir', None, 'Folder of the sweep, with one subfolder per run.')
    flags.DEFINE_integer('processes', 1, 'Processes here, which divide the GPUs and the runs.', lower_bound=1)
    flags.DEFINE_string('shard', '1/1', 'The part of the table to train, e.g. 2/3.')
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main, flags_parser=command_line.config_flags_parser('sweep', config_flag))
