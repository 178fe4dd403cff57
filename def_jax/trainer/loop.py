"""The training loop: train, evaluate x and y, checkpoint, report; the same for every method.

`evaluate_only` evaluates the newest checkpoint of a run on any split.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import rich.console

from def_jax.trainer import console as console_lib
from def_jax.trainer import elastic_run, metrics, results, trained
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.data import prefetch
from def_jax.trainer.evaluation import DivergedError, evaluate, trained_variables
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.launch import interruption, processes
from def_jax.trainer.launch.interruption import InterruptedRunError
from def_jax.trainer.metrics import MetricLog
from def_jax.trainer.state import TrainState
from def_jax.trainer.tasks import check as task_check
from def_jax.trainer.tasks.base import GenerativeTask, Measure
from def_jax.trainer.window import Window
from def_jax.trainer.workers import replicas
from def_jax.trainer.workers.replicas import ReplicasDifferError

__all__ = [
    'DivergedError',
    'InterruptedRunError',
    'ReplicasDifferError',
    'evaluate_only',
    'train_and_evaluate',
]


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
            curves.png, result.json, and the trained model at x and y, see `def_jax.trainer.load`.
        console: where to show progress; by default the standard output of process 0.

    Returns:
        The contents of result.json; {} in an elastic run's processes other than the first.

    Raises:
        ValueError: if the configuration, the folder or a checkpoint in it cannot be used.
        FileNotFoundError: if the data set is not prepared and cannot be downloaded.
        DivergedError: if a loss becomes NaN or infinite; result.json then says so.
        InterruptedRunError: on SIGTERM, SIGHUP or Ctrl-C, after the state has been saved in a checkpoint.
        ReplicasDifferError: if the check of `config.check_replicas_every` finds copies that differ.
        TeamDiffersError: if copies of elastic workers differ, after one came or died, or in a checkpoint.
        LostProcessError: if another process has died.
    """
    with processes.naming_the_lost():
        experiment = build(config)
        config = experiment.config  # complete
        if config.elastic and jax.process_count() == 1:
            raise ValueError('config.elastic=True needs several processes, see python -m def_jax.launch.')
        task_check.check(experiment)  # before anything is written
        _check_same(experiment)
        console = console or rich.console.Console(quiet=not processes.is_first())
        claimed = workdir.claim(folder, config) if processes.is_first() else None
        processes.barrier('the folder is claimed')
        run = claimed or workdir.claim(folder, config, exists=True)
        lock = workdir.locked(run) if processes.is_first() else contextlib.nullcontext()
        # Until here nothing is lost by stopping at once.
        with lock, interruption.watch() as signals:
            with Checkpoints(run, experiment) as checkpoints:
                _Run(experiment, run, checkpoints, console, signals).train_and_evaluate()
            if config.elastic and not processes.is_first():
                return {}
            processes.barrier('the result is written')
            result = processes.retry_until_visible(lambda: results.read(run) or {})
            if processes.is_first():
                console_lib.show_result(console, result, experiment.measure)
                files = 'result.json, curves.png, metrics.jsonl, tensorboard, checkpoints'
                console_lib.say(console, f'written to {run}: {files}')
                point = experiment.method.answer if experiment.method.answer in ('x', 'y') else 'x'
                model = f'variables, model = def_jax.trainer.load({str(run)!r}, point={point!r})'
                console_lib.say(console, f'the trained model: {model}', markup=False)
            return result


def evaluate_only(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    split: str,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run at each of its points; writes nothing.

    Args:
        config: the run's configuration; its length, workers, devices and what is evaluated may differ.
        folder: the run's folder.
        split: 'train', 'validation' or 'test'.
        console: where to show the metrics; by default the standard output of process 0.

    Returns:
        The record: the step, and for each metric and point e.g. `test_accuracy_y`.

    Raises:
        ValueError: if the folder holds no such run or no checkpoint, or there is no such split.
    """
    with processes.naming_the_lost():
        config = config.copy_and_resolve_references()
        config.update(workdir.length(folder), elastic=False)
        if split != 'train':
            config.evaluate_on = split
        experiment = build(config)
        run = workdir.claim(folder, experiment.config, exists=True)
        with Checkpoints(run, experiment) as checkpoints:
            state = checkpoints.restore(experiment.steps.init())
        step = int(state.step)
        if not step:
            raise ValueError(f'the run in {run} has no checkpoint yet, so there is nothing to evaluate.')
        dataset = experiment.dataset
        whole = dataset.train if split == 'train' else dataset.evaluated(split)
        record = evaluate(experiment, state, step, {split: whole})
        console = console or rich.console.Console(quiet=not processes.is_first())
        measure = Measure(split, experiment.task.headline)
        title = f'{experiment.title} after {step:,} steps, {len(whole):,} {split} examples'
        for line in checkpoints.notes:
            console_lib.say(console, line)
        points, answers = experiment.method.points, dict[str, str](experiment.answers)  # type: ignore[arg-type]
        console.print(console_lib.table_of_points(title, record, points, answers, measure))
        return record


def _check_same(experiment: Experiment) -> None:
    """Raises ValueError in all processes unless all train the same; elastic workers compare it."""
    if processes.count() == 1 or experiment.config.elastic:
        return

    def differs(text: str) -> bool:
        mark = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
        return processes.any_process(processes.broadcast(mark) != mark)

    if differs(workdir.shared_settings(experiment.config)):
        raise ValueError('config differs between processes. Start all with the same flags.')
    if differs(experiment.dataset.fingerprint()):
        what = f'config.dataset={experiment.config.dataset!r} holds other examples for some processes'
        raise ValueError(f'{what} than for process 0. Give all the same files, or the same Python.')


@dataclasses.dataclass
class _Run:
    """A run in its folder; ValueError at construction, if the folder's files do not allow it to go on."""

    experiment: Experiment
    folder: Path
    checkpoints: Checkpoints
    console: rich.console.Console
    signals: interruption.Watch

    def __post_init__(self) -> None:
        self._evaluated = self.experiment.measure.marks
        self._first_state = self._restored()
        self._start = int(self._first_state.step)
        seal, writes = self.checkpoints.seal, processes.is_first()
        kept = () if self._outdated and not self._result else self._evaluated  # of other keys: redone
        self._log = MetricLog(self.folder, self._start, seal, evaluated=kept, writes=writes)

    def train_and_evaluate(self) -> None:
        """Trains to the last step; the first process writes the result."""
        try:
            if processes.is_first():
                workdir.record(self.folder, self.experiment.config)
            console_lib.describe(self.console, self.experiment)
            resumed = [f'resuming at step {self._start:,}', *self.checkpoints.notes]
            for line in resumed if self._start else []:
                self._say(line)
            with self._assembled() as workers:
                self._train(workers)
                points = self._trained(workers)
            self.checkpoints.wait()  # a result is of a run whose last checkpoint is complete
            self._log.seal()
        except DivergedError as error:
            if processes.is_first():
                results.write(self.folder, self.experiment, self._log, diverged=error)
            raise
        finally:
            self._log.close()
        sample, exchange = workers.sample(), self.experiment.exchange_seconds()
        if processes.is_first():
            self._conclude(points, sample, exchange)

    def _trained(self, workers: '_AnyWorkers') -> dict[str, dict]:
        """The variables at x and y after the last step, whole; every process must call this."""
        experiment, state = self.experiment, self._first_state
        if self._start < experiment.num_steps:
            state = workers.state()
        return (elastic_run.variables if experiment.config.elastic else trained_variables)(experiment, state)

    def _restored(self) -> TrainState:
        """The state to continue from, or a new one."""
        experiment, folder, config = self.experiment, self.folder, self.experiment.config
        state = elastic_run.first_state(experiment.steps) if config.elastic else experiment.steps.init()
        self.checkpoints.check_room(state)
        state = self.checkpoints.restore(state)
        start = int(state.step)
        # An evaluation's checkpoint is complete before the next evaluation is on record.
        records = metrics.read(folder / 'metrics.jsonl')
        evaluations = sum(not record.keys().isdisjoint(self._evaluated) for record in records)
        if not start and evaluations > 1:
            there = f'it has the records of {evaluations} evaluations'
            cure = 'Restore the folder checkpoints, or choose another --workdir to start over'
            raise ValueError(f'the checkpoints of {folder} are missing, but {there}. {cure}.')
        self._result = results.finished(folder, start) if start == experiment.num_steps else None
        last = self._result or {'config': workdir.recorded(folder)}
        self._outdated = start == experiment.num_steps and results.is_outdated(last, config)
        evaluated = any(self._evaluated[0] in record and record['step'] == start for record in records)
        if config.elastic and start == experiment.num_steps and (self._outdated or not evaluated):
            there = f'the run in {folder} has made its last step, but not the evaluation after it'
            raise ValueError(f'{there}. Run it once more with --config.elastic=False.')
        if start > experiment.num_steps:
            there = f'the latest checkpoint of {folder} is from step {start}'
            here = f'with config.batch_size={config.batch_size} the run has only {experiment.num_steps} steps'
            raise ValueError(f'{there}, but {here}. Choose a smaller batch, or another --workdir.')
        if processes.count() > 1 and not config.elastic:  # whose team compares
            replicas.check(experiment.workers, experiment.is_per_worker, state, start)
        return state

    @contextlib.contextmanager
    def _assembled(self) -> Iterator['_AnyWorkers']:
        experiment, state = self.experiment, self._first_state
        if experiment.config.elastic:
            workers = elastic_run.ElasticWorkers(experiment, state, self._say, self.signals)
            with workers.together(self._leave):
                yield workers
        else:
            batches = experiment.train_batches(self._start)
            with prefetch.ahead(batches, experiment.workers.place) as placed:
                yield FixedWorkers(experiment, state, placed)

    def _train(self, workers: '_AnyWorkers') -> None:
        """Trains, evaluates and saves until the run's last step."""
        experiment, config, last = self.experiment, self.experiment.config, self.experiment.num_steps
        self._window = window = Window(experiment, self._log, self._start)
        checks = config.check_replicas_every

        def is_due(done: int) -> bool:
            return done % experiment.steps_per_evaluation == 0 or done == last

        length = last, experiment.num_epochs, experiment.dataset.unit
        with console_lib.Progress(self.console, self._start, *length) as progress:
            if is_due(self._start) and self._lacks_evaluation():
                self._evaluate(workers, progress)
            while workers.step < last:
                if config.diagnostics_every and workers.step % config.diagnostics_every == 0:
                    progress.update(window.flush())  # to keep the records in order
                    with window.paused():
                        self._log.write(workers.diagnose())  # type: ignore[union-attr]
                measured = workers.train()
                done = workers.step
                # Fetch the record of the previous step while the devices compute this one.
                progress.update(window.flush())
                window.add(measured)
                if checks and done % checks == 0 and not is_due(done):  # at due steps, `_save` compares
                    with window.paused():
                        workers.check_replicas()  # type: ignore[union-attr]
                if reports := is_due(done) or done % config.log_every_steps == 0:
                    window.mark_due(done)
                if is_due(done) or config.elastic:  # whose next step may end the run
                    progress.update(window.flush())
                if is_due(done):
                    with window.paused():
                        self._evaluate_and_save(workers, progress)
                if done < last and workers.stops(self.signals.name is not None, reports=reports):
                    progress.update(window.flush())
                    self._leave(workers)
                    raise InterruptedRunError(self.signals.name or 'a signal to another process', done)

    def _evaluate_and_save(self, workers: '_AnyWorkers', progress: console_lib.Progress) -> None:
        if self.experiment.config.elastic:  # elastic workers cannot evaluate a state that they restored
            self.checkpoints.wait()  # see `_restored`; `save` waits itself
            self._evaluate(workers, progress)
            self._save(workers)
        else:  # saved first, so that a failing evaluation loses no step
            self._save(workers)
            self._evaluate(workers, progress)

    def _lacks_evaluation(self) -> bool:
        """Whether the state that was restored may still have to be evaluated; the same in all processes."""
        # Elastic processes synchronise only inside a step, so none can evaluate before the first.
        if not self._start or self.experiment.config.elastic:
            return False
        return processes.broadcast(self._outdated or not self._log.is_evaluated(self._start))

    def _evaluate(self, workers: '_AnyWorkers', progress: console_lib.Progress) -> None:
        """Records an evaluation. A state whose loss is not finite is not kept."""
        try:
            record = workers.evaluate()
        except DivergedError:
            self.checkpoints.discard(workers.step)
            raise
        position = self._window.position(workers.step)
        self._log.write(record | position)
        progress.note(console_lib.evaluation_line(self.experiment.measure, record, position))
        self.checkpoints.tidy()

    def _leave(self, workers: '_AnyWorkers') -> None:
        """A checkpoint where the run ends early, with the record that is under way."""
        self._window.save_partial(workers.step)
        self._save(workers)
        self.checkpoints.wait()

    def _save(self, workers: '_AnyWorkers') -> None:
        if self.experiment.config.check_replicas_every:  # it takes one copy, and would hide a difference
            workers.check_replicas()  # type: ignore[union-attr]
        self.checkpoints.save(workers.state(), self._log.seal())
        if processes.is_first():
            workdir.record(self.folder, self.experiment.config)  # no start takes a checkpoint without it

    def _say(self, line: str) -> None:
        console_lib.say(self.console, line)

    def _conclude(self, points: dict[str, dict], sample: str | None, exchange: float | None) -> None:
        """Writes the model, the result and the plots of a run that has reached its end."""
        experiment, folder, records = self.experiment, self.folder, self._log.records
        from def_jax.trainer import plots  # matplotlib, which only the end of a run needs

        trained.write(folder, experiment, points)
        # A run that had already finished keeps its result, which names the machine and commit it ran on.
        result = self._result
        if result is None or self._outdated:
            result = results.write(folder, experiment, self._log, sample=sample, exchange=exchange)
        title, answers = result['title'], result['answers']
        plots.plot_curves(folder / 'curves.png', records, title, answers, experiment.measure)
        if any('variance' in record for record in records):
            plots.plot_diagnostics(folder / 'diagnostics.png', records, title)


class FixedWorkers:
    """The workers of a run as the loop uses them: the same from the first step to the last, `step`."""

    def __init__(self, experiment: Experiment, state: TrainState, batches: Iterator[dict]):
        self._experiment, self._state, self._batches = experiment, state, batches
        self._workers, self._steps = experiment.workers, experiment.steps
        self.step = int(state.step)

    def train(self) -> dict[str, Any]:
        """A step; returns each worker's metrics, on the devices."""
        self._state, measured = self._steps.train(self._state, next(self._batches))
        self.step += 1
        return self._workers.settled(measured)

    def evaluate(self) -> dict[str, Any]:
        """A record of the metrics at every point of the method."""
        return evaluate(self._experiment, self._state, self.step)

    def state(self) -> TrainState:
        """What a checkpoint holds."""
        return self._state

    def stops(self, signalled: bool, *, reports: bool) -> bool:
        """Whether the run ends here because a process of it got a signal; the same in all."""
        # Several processes must stop at the same step, so they ask each other when a record is due.
        return (reports or jax.process_count() == 1) and processes.any_process(signalled)

    def sample(self) -> str | None:
        """What the model generates, at the method's answer, or x if workers have their own; or None."""
        task = self._experiment.task
        if not isinstance(task, GenerativeTask):
            return None
        points = self._workers.settled(self._steps.outputs(self._state))
        params = self._workers.fetch(points.get(self._experiment.method.answer, points['x'])['params'])
        return task.sample(params, jax.random.key(self._experiment.config.seed))

    def check_replicas(self) -> None:
        """Raises ReplicasDifferError if copies differ."""
        replicas.check(self._workers, self._experiment.is_per_worker, self._state, self.step)

    def diagnose(self) -> dict[str, Any]:
        """A record of the quantities of `def_jax.diagnostics` on the next batch."""
        batch = self._workers.place(next(self._experiment.train_batches(self.step)))
        figures = jax.device_get(self._steps.diagnose(self._state, batch))
        return {'step': self.step} | {name: float(value) for name, value in figures.items()}


_AnyWorkers = FixedWorkers | elastic_run.ElasticWorkers
