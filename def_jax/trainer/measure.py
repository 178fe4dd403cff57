"""What the points of a run are compared by: the headline metric of its task, on the split it evaluates."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from def_jax.trainer.tasks.base import Metric

__all__ = ['Measure']

_EARLIER = {'split': 'test', 'metric': 'accuracy', 'greater_is_better': True, 'percent': True}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric on a split.

    Attributes:
        split: 'test' or 'validation'.
        metric: the task's headline metric.
    """

    split: str
    metric: Metric

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> 'Measure':
        """That of a result.json; those written before there was a choice hold test accuracies.

        >>> Measure.of({}).key('x')
        'test_accuracy_x'
        """
        stored = result.get('measure', _EARLIER)
        return cls(stored['split'], Metric(stored['metric'], stored['greater_is_better'], stored['percent']))

    def to_json(self) -> dict[str, Any]:
        """The inverse of `of`."""
        metric = dataclasses.asdict(self.metric)
        return {'split': self.split, 'metric': metric.pop('name'), **metric}

    def key(self, point: str) -> str:
        """Where records and results hold it for a point, e.g. 'test_accuracy_y'."""
        return f'{self.split}_{self.metric.name}_{point}'

    def others(self, record: Mapping[str, Any], point: str) -> dict[str, float]:
        """The record's other metrics of the split at a point, by title, e.g. 'test loss'."""
        start, end = f'{self.split}_', f'_{point}'
        return {
            f'{self.split} {_title(key.removeprefix(start).removesuffix(end))}': value
            for key, value in record.items()
            if key.startswith(start) and key.endswith(end) and key != self.key(point)
        }

    @property
    def title(self) -> str:
        """What the numbers are, e.g. 'test accuracy'."""
        return f'{self.split} {_title(self.metric.name)}'

    @property
    def heading(self) -> str:
        """The title with the unit, e.g. 'test accuracy, %'."""
        return f'{self.title}, %' if self.metric.percent else self.title

    @property
    def digits(self) -> int:
        """How many decimals are shown."""
        return 2 if self.metric.percent else 4

    @property
    def axis(self) -> str:
        """The title of what `drawn` returns: the error for shares of which more is better."""
        return f'{self.split} error, %' if self._as_error else self.heading

    @property
    def logarithmic(self) -> bool:
        """Whether plots use a logarithmic axis: for what falls towards zero."""
        return self._as_error or not self.metric.greater_is_better

    def shown(self, value: float) -> float:
        """A value in the unit of tables."""
        return 100 * value if self.metric.percent else value

    def drawn(self, shown: float) -> float:
        """A value of tables as plots draw it."""
        return 100 - shown if self._as_error else shown

    def text(self, value: float, spread: float | None = None) -> str:
        """A value with its unit, e.g. '98.20 ± 0.31 %'."""
        deviation = '' if spread is None else f' ± {self.shown(spread):.{self.digits}f}'
        return f'{self.shown(value):.{self.digits}f}{deviation}{" %" if self.metric.percent else ""}'

    def merit(self, value: float) -> float:
        """The value with its sign such that more is better."""
        return value if self.metric.greater_is_better else -value

    def best(self, values: Iterable[float]) -> float | None:
        """The best value; None if there are none."""
        return max(values, key=self.merit, default=None)

    @property
    def _as_error(self) -> bool:
        return self.metric.percent and self.metric.greater_is_better


def _title(name: str) -> str:
    return name.replace('_', ' ')
