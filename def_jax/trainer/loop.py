"""The training loop: train, evaluate x and y, checkpoint, report; the same for every method."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console

from def_jax.trainer import console as console_lib
from def_jax.trainer import metrics, plots, replica_check, results, steps, task_check
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.checkpointing.regrouping import Layout
from def_jax.trainer.data import prefetch
from def_jax.trainer.evaluation import DivergedError, make_evaluate
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.launch import interruption, processes
from def_jax.trainer.launch.interruption import InterruptedRunError
from def_jax.trainer.measure import Measure
from def_jax.trainer.metrics import MetricLog
from def_jax.trainer.replica_check import ReplicasDifferError
from def_jax.trainer.tasks.base import GenerativeTask

__all__ = ['DivergedError', 'InterruptedRunError', 'ReplicasDifferError', 'train_and_evaluate']


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, or continues where an earlier call in the same folder stopped.

    A run may continue with a different `num_workers` and a matching `batch_size`; see `regrouping`. With
    several processes (`processes.connect`), each calls this with the same arguments and a shared folder.

    Args:
        config: a complete configuration, see `configs/digits.py`.
        folder: the run's folder, which receives config.json, metrics.jsonl, tensorboard/, checkpoints/,
            curves.png and result.json.
        console: where to show progress; by default the standard output of process 0.

    Returns:
        The contents of result.json.

    Raises:
        ValueError: if the configuration, the folder or a checkpoint in it cannot be used; `InUseError`
            if another process is running in the folder.
        FileNotFoundError: if the data set is not prepared and cannot be downloaded.
        DivergedError: if a loss becomes NaN or infinite; result.json then says so.
        InterruptedRunError: on SIGTERM, SIGHUP or Ctrl-C, after the state has been saved in a checkpoint.
        ReplicasDifferError: if the check of `config.check_replicas_every` finds copies that differ.
        LostProcessError: if another process has died.
    """
    with processes.naming_the_lost():
        experiment = build(config)
        task_check.check(experiment)  # before anything is written
        console = console or console_lib.process_console()
        run = _claimed(folder, config)
        lock = workdir.locked(run) if processes.is_first() else contextlib.nullcontext()
        with lock, interruption.watch() as signals:  # until here nothing is lost by stopping at once
            return _train_and_evaluate(experiment, run, console, signals)


def _claimed(folder: str | os.PathLike, config: ml_collections.ConfigDict) -> Path:
    """The run's folder: the first process creates it, and the others find it, with the same configuration."""
    if processes.is_first():
        run = workdir.claim(folder, config, other_workers=True)
    processes.meet('the folder is claimed')
    if not processes.is_first():
        run = workdir.claim(folder, config, other_workers=True, exists=True)
    return run


def _train_and_evaluate(
    experiment: Experiment, run: Path, console: rich.console.Console, signals: interruption.Watch
) -> dict[str, Any]:
    config = experiment.config
    layout, settings = Layout.of(experiment), workdir.bound_settings(config)
    with Checkpoints(run, config.keep_checkpoints, layout, settings) as checkpoints:
        state = _restored(experiment, run, checkpoints)
        start = int(state.step)
        evaluated = experiment.measure.key('x')
        log = MetricLog(run, start, checkpoints.seal, evaluated=evaluated, writes=processes.is_first())
        try:
            if processes.is_first():
                workdir.record(run, experiment.config)
            console_lib.describe(console, experiment)
            for line in [f'resuming at step {start:,}', *checkpoints.notes] if start else []:
                console.print(line, highlight=False, soft_wrap=True)
            state = _run(experiment, state, log, checkpoints, console, signals)
            log.seal()
        except DivergedError as error:
            if processes.is_first():
                results.write(run, experiment, log, diverged=error)
            raise
        finally:
            log.close()
        sample = _sample(experiment, state)
        if processes.is_first():
            _conclude(run, experiment, log, start, sample)
    processes.meet('the result is written')
    result = results.read(run) or {}
    console_lib.show_result(console, result)
    files = 'result.json, curves.png, metrics.jsonl, tensorboard, checkpoints'
    console.print(f'written to {run}: {files}', highlight=False, soft_wrap=True)
    return result


def _sample(experiment: Experiment, state: steps.TrainState) -> str | None:
    """What the trained model generates, at y if the method has it; None if the task generates nothing."""
    if not isinstance(experiment.task, GenerativeTask):
        return None
    points, _ = steps.settled(experiment, steps.make_outputs(experiment)(state))
    params = experiment.workers.fetch(points.get('y', points['x'])['params'])
    return experiment.task.sample(params, jax.random.key(experiment.config.seed))


def _conclude(
    run: Path,
    experiment: Experiment,
    log: MetricLog,
    start: int,
    sample: str | None,
) -> None:
    """Writes the result and the plots of a run that has reached its end."""
    # A run that had already finished keeps its result, which names the machine and commit it ran on.
    result = results.read(run) if start == experiment.num_steps else None
    if result is None or result['status'] != 'finished':
        result = results.write(run, experiment, log, sample=sample)
    plots.plot_curves(run / 'curves.png', log.records, result['title'], result['answers'], experiment.measure)
    if experiment.config.diagnostics_every:
        plots.plot_diagnostics(run / 'diagnostics.png', log.records, result['title'])


def _restored(experiment: Experiment, run: Path, checkpoints: Checkpoints) -> steps.TrainState:
    """The state to continue from, or a new one; raises ValueError if the folder's files allow neither."""
    state = steps.make_init(experiment)()
    checkpoints.check_room(state)
    state = checkpoints.restore(state)
    start = int(state.step)
    # An evaluation's checkpoint is complete before the next evaluation begins.
    evaluated = experiment.measure.key('x')
    evaluations = sum(evaluated in record for record in metrics.read(run / 'metrics.jsonl'))
    if not start and evaluations > 1:
        raise ValueError(
            f'the checkpoints of {run} are missing, but it has the records of {evaluations} evaluations. '
            'Restore the folder checkpoints, or choose another --workdir to start over.'
        )
    if start > experiment.num_steps:
        raise ValueError(
            f'the latest checkpoint of {run} is from step {start}, but with config.batch_size='
            f'{experiment.config.batch_size} the run has only {experiment.num_steps} steps. Choose a smaller '
            'batch, or more --config.num_epochs or --config.num_steps, in another --workdir.'
        )
    return state


def _run(
    experiment: Experiment,
    state: steps.TrainState,
    log: MetricLog,
    checkpoints: Checkpoints,
    console: rich.console.Console,
    signals: interruption.Watch,
) -> steps.TrainState:
    """Trains, evaluates and saves until the run's last step; returns the state after it."""
    config = experiment.config
    train_step, evaluate = steps.make_train_step(experiment), make_evaluate(experiment)
    diagnose = steps.make_diagnose(experiment) if config.diagnostics_every else None
    check_replicas = replica_check.make_check(experiment) if config.check_replicas_every else None
    start = int(state.step)
    window = _Window(experiment, log, start)

    def is_due(done: int) -> bool:
        return done % experiment.steps_per_evaluation == 0 or done == experiment.num_steps

    def evaluated(state: steps.TrainState, done: int) -> None:
        """Records the evaluation of a state that has been saved: one that fails loses no step."""
        try:
            record = evaluate(state, done)
        except DivergedError:
            checkpoints.discard()
            raise
        log.write(record | window.position(done))
        progress.note(_line(experiment.measure, record, window.position(done)))
        window.restart()
        checkpoints.wait()

    with (
        prefetch.ahead(experiment.train_batches(start), experiment.workers.place) as batches,
        console_lib.Progress(console, experiment, start) as progress,
    ):
        if start and is_due(start) and processes.agree(not log.is_evaluated(start)):
            evaluated(state, start)
        for step, batch in zip(range(start, experiment.num_steps), batches, strict=False):
            if diagnose and step % config.diagnostics_every == 0:
                _show(window.report(), progress)  # to keep the records in order
                log.write(_diagnostics_record(step, *diagnose(state, batch), experiment))
            state, measured = train_step(state, batch)
            steps.settled(experiment, measured)
            # Fetch the record of the previous step while the devices compute this one.
            _show(window.report(), progress)
            window.add(measured)
            done = step + 1
            evaluation_due = is_due(done)
            if check_replicas and (evaluation_due or done % config.check_replicas_every == 0):
                check_replicas(state, done)
            if record_due := evaluation_due or done % config.log_every_steps == 0:
                window.end(done)
            if evaluation_due:
                _show(window.report(), progress)
                checkpoints.save(state, log.seal())
                evaluated(state, done)
            # Several processes must stop at the same step, so they ask each other when a record is due.
            meets = done < experiment.num_steps and (record_due or jax.process_count() == 1)
            if meets and processes.anywhere(signals.name is not None):
                _show(window.report(), progress)
                window.suspend(done)
                checkpoints.save(state, log.seal())
                checkpoints.wait()
                raise InterruptedRunError(signals.name or 'a signal to another process', done)
    return state


def _show(record: dict[str, Any] | None, progress: console_lib.Progress) -> None:
    if record is None:
        return
    progress.update(record['step'], record)
    if skipped := record.get('skipped', 0):
        progress.note(f'up to step {record["step"]:,}: {skipped} step(s) skipped, an update was not finite')


class _Window:
    """The training metrics since the last record, kept on the devices until the next record is due."""

    def __init__(self, experiment: Experiment, log: MetricLog, start: int):
        self._experiment, self._log = experiment, log
        self._earlier_seconds, self._opened = log.last('seconds'), time.perf_counter()
        self._pending: list[dict[str, Any]] = []
        self._end: int | None = None
        self.restart()
        # Values left by an interruption: float32, exact in JSON. With another number of workers they cannot
        # enter the mean.
        own = experiment.config.num_workers
        self._pending = [values for values in log.pending(start) if np.size(values['loss']) == own]
        self._carried = len(self._pending)

    def restart(self) -> None:
        self._pending = []
        self._carried = 0  # how many of them an earlier process measured
        self._started = time.perf_counter()

    def add(self, measured: dict[str, jax.Array]) -> None:
        self._pending.append(measured)

    def end(self, done: int) -> None:
        """Makes the record up to step `done`, the last one added, due; `report` it before the next step."""
        self._end = done

    def suspend(self, done: int) -> None:
        """Records what is pending after `done` steps, so that a resumed run can complete the record."""
        self._finite_losses(done)
        values = [{name: self._local(x).tolist() for name, x in m.items()} for m in self._pending]
        if values:
            self._log.write({'step': done, 'pending': values} | self.position(done))

    def position(self, done: int) -> dict[str, Any]:
        """Where the run stands after `done` steps: epochs, megabytes sent per worker, seconds."""
        return {
            'epoch': done / self._experiment.steps_per_epoch,
            'megabytes_sent': self._experiment.communication.megabytes_sent(done),
            'seconds': self._earlier_seconds + time.perf_counter() - self._opened,
        }

    def report(self) -> dict[str, Any] | None:
        """If a record is due, fetches the pending metrics, writes their means and returns the record."""
        if self._end is None:
            return None
        done, self._end = self._end, None
        losses, taken = self._finite_losses(done)
        counted = taken if taken.any() else ~taken
        dataset = self._experiment.dataset
        units = (len(losses) - self._carried) * self._experiment.config.batch_size * dataset.units_per_example
        record = {
            'step': done,
            'loss': float(losses[counted].mean()),
            **{name: float(self._values(name).mean()) for name in self._figures()},
            'learning_rate': float(self._experiment.schedule(done - 1)),
            f'{dataset.unit}_per_second': units / (time.perf_counter() - self._started),
        } | self.position(done)
        if self._experiment.config.skip_nonfinite:
            record['skipped'] = int((~taken).sum())
        self._log.write(record)
        self.restart()
        return record

    def _finite_losses(self, done: int) -> tuple[np.ndarray, np.ndarray]:
        """The pending losses, float32 [steps, K], and which steps were taken, bool [steps].

        Raises DivergedError if the loss of a taken step is not finite or, if all were skipped, of any step.
        """
        losses = self._values('loss')
        taken = np.array([np.all(m.get('taken', True)) for m in self._pending], bool)
        counted = taken if taken.any() else ~taken
        bad = np.argwhere(~np.isfinite(losses) & counted[:, None])
        if bad.size:
            row, worker = (int(i) for i in bad[0])
            raise DivergedError(done - len(losses) + row, worker, float(losses[row, worker]))
        return losses, taken

    def _figures(self) -> list[str]:
        """The task's own metrics of the training batches."""
        return [name for name in self._pending[0] if name not in ('loss', 'taken')]

    def _values(self, name: str) -> np.ndarray:
        """Float32 [steps, K]. Carried-over values are from all workers, new ones from this process's."""
        carried, measured = self._pending[: self._carried], self._pending[self._carried :]
        rows = [np.asarray(values[name], np.float32).reshape(-1) for values in carried]
        if measured:
            own = np.stack([self._local(values[name]) for values in measured], axis=1)
            every = processes.gather(own, self._experiment.workers.heads)  # [rows, steps, ...]
            rows.extend(np.moveaxis(every, 1, 0).reshape(len(measured), -1))
        return np.stack(rows) if rows else np.zeros((0, 1), np.float32)

    def _local(self, x: Any) -> np.ndarray:
        """This process's rows of a metric; carried-over values are from all workers, and lists."""
        local = self._experiment.workers.local(x) if isinstance(x, jax.Array) else x
        return np.asarray(local, np.float32)


def _diagnostics_record(step: int, figures: dict, own: dict, experiment: Experiment) -> dict[str, Any]:
    record = {name: float(value) for name, value in jax.device_get(figures).items()}
    for name, value in own.items():
        every = experiment.workers.gather(value)
        record |= {name: float(np.mean(every)), f'{name}_std': float(np.std(every))}
    return {'step': step} | record


def _line(measure: Measure, record: dict[str, Any], position: dict[str, Any]) -> str:
    figures = '  '.join(
        f'{point} {measure.text(record[measure.key(point)])}'
        for point in ('x', 'y', 'own')
        if measure.key(point) in record
    )
    return (
        f'epoch {position["epoch"]:6.1f}  step {record["step"]:7,}  {measure.title}  {figures}  '
        f'{position["megabytes_sent"]:.1f} MB sent  {position["seconds"]:.0f} s'
    )
