"""Training metrics between two records."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from def_jax.trainer.evaluation import DivergedError
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.launch import processes
from def_jax.trainer.metrics import MetricLog

__all__ = ['Window']

_MOST_SKIPPED = 50  # steps in a row, before a run counts as diverged


class Window:
    """The training metrics since the last record, kept on the devices until the next record is due."""

    _pending: list[dict[str, Any]]

    def __init__(self, experiment: Experiment, log: MetricLog, start: int):
        self._experiment, self._log = experiment, log
        self._earlier_seconds, self._opened = log.last('seconds'), time.perf_counter()
        self._end: int | None = None
        # When the steps of the due record finished; None if they were still running when it became due.
        self._finished: float | None = None
        self._skipped = 0  # steps skipped in a row, up to the last
        self._not_taken = sum(record.get('skipped', 0) for record in log.records)  # of all that are recorded
        self._compiled = False  # whether this process has made a step
        self._restart(self._opened)
        # Values left by an interruption: float32, exact in JSON. With another number of workers they cannot
        # enter the mean; an elastic run has means already.
        count = 1 if experiment.config.elastic else experiment.places
        self._pending = [values for values in log.pending(start) if np.size(values['loss']) == count]
        self._carried = self._untimed = len(self._pending)

    def _restart(self, started: float) -> None:
        self._pending = []
        self._carried = 0  # how many of them an earlier process measured, of all workers
        self._untimed = 0  # how many of them were made before `_started`
        self._started = started

    def add(self, measured: dict[str, Any]) -> None:
        self._pending.append(measured)
        if not self._compiled:
            self._experiment.schedule(0)  # which is compiled as well
            jax.block_until_ready(measured)
            self._compiled, self._untimed, self._started = True, len(self._pending), time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in the block does not count as time of the steps."""
        jax.block_until_ready(self._pending[-1:])
        since = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - since

    def mark_due(self, done: int) -> None:
        """Makes the record up to step `done`, the last one added, due; `flush` it before the next step."""
        self._end = done
        # Simulated devices may finish this step, and even run the next one, before `flush` is called.
        arrays = [x for x in jax.tree.leaves(self._pending[-1]) if isinstance(x, jax.Array)]
        ready = all(x.is_ready() for x in arrays)  # type: ignore[attr-defined]
        self._finished = time.perf_counter() if ready else None

    def save_partial(self, done: int) -> None:
        """Records what is pending after `done` steps, so that a resumed run can complete the record."""
        self._checked_losses(done)
        values = [{name: self._local(x).tolist() for name, x in m.items()} for m in self._pending]
        if values:
            self._log.write({'step': done, 'pending': values} | self.position(done))

    def position(self, done: int) -> dict[str, Any]:
        """Where the run stands after `done` steps: epochs, megabytes sent per worker, seconds."""
        return {
            'epoch': done / self._experiment.steps_per_epoch,
            'megabytes_sent': self._experiment.communication.megabytes_sent(done, self._log.records),
            'seconds': self._earlier_seconds + time.perf_counter() - self._opened,
        }

    def flush(self) -> dict[str, Any] | None:
        """If a record is due, fetches the pending metrics, writes their means and returns the record."""
        if self._end is None:
            return None
        done, self._end = self._end, None
        losses, taken = self._checked_losses(done)
        finished = self._finished or time.perf_counter()
        config, dataset = self._experiment.config, self._experiment.dataset
        figures = [name for name in self._pending[0] if name != 'taken' and taken.any()]
        record = {
            'step': done,
            **{name: float(self._values(name)[taken].mean()) for name in figures},
            'learning_rate': self._learning_rate(done, taken),
        }
        if timed := len(losses) - self._untimed:
            units = timed * config.batch_size * dataset.units_per_example
            record[f'{dataset.unit}_per_second'] = units / (finished - self._started)
        record |= self.position(done)
        if config.skip_nonfinite:
            record['skipped'] = int((~taken).sum())
            self._not_taken += record['skipped']
        self._log.write(record)
        self._restart(finished)
        return record

    def _learning_rate(self, done: int, taken: np.ndarray) -> float:
        """That of the last step, or of the last that was taken: others do not move the schedule."""
        config = self._experiment.config
        # A worker that leaves out its own update still moves it, like the workers that do not.
        holds = config.skip_nonfinite and not config.overlap
        skipped = self._not_taken + int((~taken).sum()) if holds else 0
        return float(self._experiment.schedule(max(done - skipped - 1, 0)))

    def _checked_losses(self, done: int) -> tuple[np.ndarray, np.ndarray]:
        """The pending losses, float32 [steps, places], and which steps were taken, bool [steps].

        Raises:
            DivergedError: if a step that was taken has another loss than a number, or too many were skipped.
        """
        losses = self._values('loss')
        skips = self._experiment.config.skip_nonfinite
        taken = self._values('taken').astype(bool).min(1) if skips else np.full(len(losses), True)
        for row, is_taken in enumerate(taken):
            self._skipped = 0 if is_taken else self._skipped + 1
            finite = np.isfinite(losses[row])
            if (is_taken and not finite.all()) or self._skipped == _MOST_SKIPPED:
                place = int(np.argmin(finite))
                worker = place // self._experiment.config.inside
                step, loss = done - len(losses) + row, float(losses[row, place])
                raise DivergedError(step, worker, loss, skipped=self._skipped)
        return losses, taken

    def _values(self, name: str) -> np.ndarray:
        """Of all steps and places, float32 [steps, places]."""
        rows = [self._local(values[name]).reshape(-1) for values in self._pending[: self._carried]]
        if measured := [self._local(values[name]) for values in self._pending[self._carried :]]:
            every = processes.gather(np.stack(measured, axis=1), self._experiment.workers.heads)
            rows.extend(np.moveaxis(every, 1, 0).reshape(len(measured), -1))
        return np.stack(rows) if rows else np.zeros((0, 1), np.float32)

    def _local(self, x: Any) -> np.ndarray:
        """This process's rows of a metric on the devices; what was carried over is a list."""
        return np.asarray(self._experiment.workers.local(x) if isinstance(x, jax.Array) else x, np.float32)
