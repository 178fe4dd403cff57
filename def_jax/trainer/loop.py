"""The training loop: train, evaluate x and y, checkpoint, report; the same for every method."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console

from def_jax.trainer import console as console_lib
from def_jax.trainer import elastic, metrics, plots, replica_check, results, steps, task_check
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.checkpointing.regrouping import Layout
from def_jax.trainer.data import prefetch
from def_jax.trainer.evaluation import DivergedError, make_evaluate
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.launch import interruption, processes
from def_jax.trainer.launch.interruption import InterruptedRunError
from def_jax.trainer.metrics import MetricLog
from def_jax.trainer.replica_check import ReplicasDifferError
from def_jax.trainer.tasks.base import GenerativeTask
from def_jax.trainer.window import Window

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
        if config.elastic and jax.process_count() == 1:
            raise ValueError(
                'config.elastic=True needs several processes, see python -m def_jax.launch --help.'
            )
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
        if config.elastic:  # nobody waits for a newcomer
            workdir.wait_for_record(folder)
        run = workdir.claim(folder, config, other_workers=True, exists=True)
    return run


def _train_and_evaluate(
    experiment: Experiment, run: Path, console: rich.console.Console, signals: interruption.Watch
) -> dict[str, Any]:
    config = experiment.config
    layout = (elastic.WholeLayout if config.elastic else Layout).of(experiment)
    settings = workdir.bound_settings(config)
    with Checkpoints(run, config.keep_checkpoints, layout, settings, alone=config.elastic) as checkpoints:
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
            run_all = elastic.train if config.elastic else _run
            state = run_all(experiment, state, log, checkpoints, console, signals)
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
        elif config.elastic:
            return {}
    processes.meet('the result is written')
    result = results.read(run) or {}
    console_lib.show_result(console, result)
    files = 'result.json, curves.png, metrics.jsonl, tensorboard, checkpoints'
    console.print(f'written to {run}: {files}', highlight=False, soft_wrap=True)
    return result


def _sample(experiment: Experiment, state: steps.TrainState) -> str | None:
    """What the trained model generates, at y if the method has it; None if the task generates nothing."""
    if not isinstance(experiment.task, GenerativeTask) or experiment.config.elastic:
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
    state = elastic.first_state(experiment) if experiment.config.elastic else steps.make_init(experiment)()
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
    window = Window(experiment, log, start)

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
        progress.note(console_lib.evaluation_line(experiment.measure, record, window.position(done)))
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


def _diagnostics_record(step: int, figures: dict, own: dict, experiment: Experiment) -> dict[str, Any]:
    record = {name: float(value) for name, value in jax.device_get(figures).items()}
    for name, value in own.items():
        every = experiment.workers.gather(value)
        record |= {name: float(np.mean(every)), f'{name}_std': float(np.std(every))}
    return {'step': step} | record
