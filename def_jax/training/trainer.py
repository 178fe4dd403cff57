"""The training loop: train, evaluate x and y, checkpoint, report; the same for every method."""

import os
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console

from def_jax.training import console as console_lib
from def_jax.training import plots, results, steps, workdir
from def_jax.training.checkpoints import Checkpoints
from def_jax.training.evaluation import DivergedError, make_evaluate
from def_jax.training.experiment import Communication, Experiment, build
from def_jax.training.metrics import MetricLog

__all__ = ['DivergedError', 'train_and_evaluate']


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, or goes on where an earlier call in the same folder stopped.

    Args:
        config: a complete configuration, see `configs/digits.py`.
        folder: the run's folder; gets config.json, metrics.jsonl, tensorboard/, checkpoints/, curves.png
            and result.json.
        console: where to show the progress; by default the standard output of process 0.

    Returns:
        The content of result.json.

    Raises:
        ValueError: if the configuration, the folder or a checkpoint in it cannot be used; `InUseError`
            if another process is running in the folder.
        FileNotFoundError: if the data set is neither prepared nor to be downloaded.
        DivergedError: if a loss becomes NaN or infinite; result.json then says so.
    """
    experiment = build(config)
    console = console or console_lib.process_console()
    run = workdir.claim(folder, config)
    with workdir.locked(run):
        return _train_and_evaluate(experiment, run, console)


def _train_and_evaluate(experiment: Experiment, run: Path, console: rich.console.Console) -> dict[str, Any]:
    config = experiment.config
    checkpoints = Checkpoints(run, keep=config.keep_checkpoints)
    try:
        state = checkpoints.restore(steps.make_init(experiment)())
        communication = Communication.of(experiment, state.params)
        start = int(state.step)
        log = MetricLog(run, resume_step=start)
        try:
            log.check_reaches(start)
            console_lib.describe(console, experiment, communication)
            if start:
                console.print(f'resuming at step {start:,}')
            _run(experiment, communication, state, log, checkpoints, console)
        except DivergedError as error:
            results.write(run, experiment, communication, log, diverged=error)
            raise
        finally:
            log.close()
        # A run that had finished before keeps the result that tells of the machine and commit it ran on.
        result = results.read(run) if start == experiment.num_steps else None
        if result is None or result['status'] != 'finished':
            result = results.write(run, experiment, communication, log)
        plots.plot_curves(run / 'curves.png', log.records, result['title'], result['answers'])
        if config.diagnostics_every:
            plots.plot_diagnostics(run / 'diagnostics.png', log.records, result['title'])
    finally:
        checkpoints.close()
    console_lib.show_result(console, result)
    files = 'result.json, curves.png, metrics.jsonl, tensorboard, checkpoints'
    console.print(f'written to {run}: {files}', highlight=False, soft_wrap=True)
    return result


def _run(
    experiment: Experiment,
    communication: Communication,
    state: steps.TrainState,
    log: MetricLog,
    checkpoints: Checkpoints,
    console: rich.console.Console,
) -> None:
    config = experiment.config
    train_step, evaluate = steps.make_train_step(experiment), make_evaluate(experiment)
    diagnose = steps.make_diagnose(experiment) if config.diagnostics_every else None
    start = int(state.step)
    window = _Window(experiment, communication, log)
    with console_lib.Progress(console, experiment, start) as progress:
        for step, batch in zip(
            range(start, experiment.num_steps), experiment.train_batches(start), strict=False
        ):
            if diagnose and step % config.diagnostics_every == 0:
                log.write(_diagnostics_record(step, diagnose(state, batch)))
            state, metrics = train_step(state, batch)
            if config.fake_devices:
                # Collectives of free-running fake devices can starve each other on few cores.
                jax.block_until_ready(metrics)
            window.add(metrics)
            done = step + 1
            evaluation_due = done % (config.eval_every_epochs * experiment.steps_per_epoch) == 0
            evaluation_due |= done == experiment.num_steps
            if evaluation_due or done % config.log_every_steps == 0:
                record = window.flush(done)
                progress.update(done, record)
                if skipped := record.get('skipped', 0):
                    progress.note(
                        f'up to step {done:,}: {skipped} step(s) left out, an update was not finite'
                    )
            if evaluation_due:
                record = evaluate(state, done)
                log.write(record | window.position(done))
                checkpoints.save(state)
                progress.note(_line(record, window.position(done)))
                window.restart()


class _Window:
    """The training metrics since the last record, left on the devices until the record is due."""

    def __init__(self, experiment: Experiment, communication: Communication, log: MetricLog):
        self._experiment, self._communication, self._log = experiment, communication, log
        self._earlier_seconds, self._opened = log.last('seconds'), time.perf_counter()
        self.restart()

    def restart(self) -> None:
        self._pending: list[dict[str, jax.Array]] = []
        self._started = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._pending.append(metrics)

    def position(self, done: int) -> dict[str, Any]:
        """Where the run stands after `done` steps: epochs, megabytes sent by a worker, seconds."""
        return {
            'epoch': done / self._experiment.steps_per_epoch,
            'megabytes_sent': self._communication.megabytes_sent(done),
            'seconds': self._earlier_seconds + time.perf_counter() - self._opened,
        }

    def flush(self, done: int) -> dict[str, Any]:
        """Writes the mean of the pending metrics as the record of step `done`."""
        losses = np.stack([np.asarray(m['loss']).reshape(-1) for m in self._pending])  # [steps, K]
        taken = np.array([np.all(m.get('taken', True)) for m in self._pending])
        counted = taken if taken.any() else ~taken  # where every step was skipped, the run has diverged
        bad = np.argwhere(~np.isfinite(losses) & counted[:, None])
        if bad.size:
            row, worker = (int(i) for i in bad[0])
            raise DivergedError(done - len(losses) + row, worker, float(losses[row, worker]))
        images = len(losses) * self._experiment.config.batch_size
        record = {
            'step': done,
            'loss': float(losses[counted].mean()),
            'accuracy': float(np.mean([m['accuracy'] for m in self._pending])),
            'learning_rate': float(self._experiment.schedule(done - 1)),
            'images_per_second': images / (time.perf_counter() - self._started),
        } | self.position(done)
        if self._experiment.config.skip_nonfinite:
            record['skipped'] = int((~taken).sum())
        self._log.write(record)
        self.restart()
        return record


def _diagnostics_record(step: int, figures: dict[str, jax.Array]) -> dict[str, Any]:
    record = {name: float(np.mean(value)) for name, value in jax.device_get(figures).items()}
    if 'detach_optimum_own' in figures:
        record['detach_optimum_own_std'] = float(np.std(figures['detach_optimum_own']))
    return {'step': step} | record


def _line(record: dict[str, Any], position: dict[str, Any]) -> str:
    accuracy = '  '.join(
        f'{point} {100 * record[f"test_accuracy_{point}"]:.2f} %'
        for point in ('x', 'y', 'own')
        if f'test_accuracy_{point}' in record
    )
    return (
        f'epoch {position["epoch"]:6.1f}  step {record["step"]:7,}  test accuracy  {accuracy}  '
        f'{position["megabytes_sent"]:.1f} MB sent  {position["seconds"]:.0f} s'
    )
