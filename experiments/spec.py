"""A run as data, and its record: what was run, what came of it, on which commit, machine and versions."""

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

__all__ = ['DirtyError', 'Record', 'Records', 'Spec', 'commit', 'of_code', 'origin']

_CODE = ('*.py', 'requirements.txt', 'pyproject.toml')  # what decides the numbers of a run
_PACKAGES = ('jax', 'jaxlib', 'optax', 'flax', 'numpy')


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run.

    Attributes:
        problem: a key of `problems.PROBLEMS`.
        where: arguments of the problem, such as its width or its number of workers.
        method: a key of `def_jax.baselines.METHODS`.
        options: keys of the trainer's configuration, among them the method's `ratio` and `bits`.
        rate: the peak learning rate.
        seed: of the initial parameters, the batches and the blocks.
        evaluate_on: 'validation' for a run that chooses anything, 'test' for one that is reported.
        revision: a change of the library's arithmetic that the run has and earlier ones of the same options
            lack, such as `methods.REVISION`; empty for those, and where it changes nothing.

    Mappings are compared by content, whatever the order of their keys.
    """

    problem: str
    method: str
    rate: float
    seed: int
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    evaluate_on: Literal['validation', 'test'] = 'test'
    revision: str = ''

    @property
    def key(self) -> str:
        """What identifies the run."""
        return json.dumps(vars(self), sort_keys=True)

    @property
    def group(self) -> str:
        """What runs that differ in rate and seed alone have in common: they can train side by side."""
        return dataclasses.replace(self, rate=0.0, seed=0).key


@dataclasses.dataclass(frozen=True)
class Record:
    """What came of a run.

    Attributes:
        spec: the run.
        metrics: after the last step, named as the trainer's are: 'test_accuracy_y', 'train_loss_x', …; None
            where a number is not finite.
        course: mean training losses over equal parts of the run.
        seconds: the time the run took, on the clock, since it last began or went on; its share, if several
            trained side by side.
        executor: 'lanes' or 'trainer'.
        origin: commit, machine and versions, see `origin`.
    """

    spec: Spec
    metrics: Mapping[str, float | None]
    course: tuple[float | None, ...]
    seconds: float
    executor: str
    origin: Mapping[str, Any]

    @classmethod
    def of_json(cls, line: Mapping[str, Any]) -> 'Record':
        spec = Spec(**line['spec'])
        return cls(**{**line, 'spec': spec, 'course': tuple(line['course'])})


class Records:
    """The records of an experiment, in a file that grows by a line for each.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path):
        self._path = path
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
        self._known: dict[str, Record] = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = Record.of_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f'{path}:{number} is no record ({error}). Delete the line.') from error
            if record.spec.key in self._known:
                raise ValueError(f'{path}:{number} repeats the run of an earlier line. Delete one of them.')
            self._known[record.spec.key] = record

    def __iter__(self) -> Iterator[Record]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def get(self, spec: Spec) -> Record | None:
        """The record of a run, if it is there."""
        return self._known.get(spec.key)

    def add(self, record: Record) -> None:
        """Appends a record; ValueError if its run has one already."""
        if self.get(record.spec):
            raise ValueError(f'{self._path} has a record of {record.spec} already. Delete its line first.')
        self._known[record.spec.key] = record
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(dataclasses.asdict(record), ensure_ascii=False, sort_keys=True)
        with self._path.open('a', encoding='utf-8') as file:
            file.write(line + '\n')


class DirtyError(ValueError):
    """The checkout differs from its commit, so a record could not say what was run."""


def origin(*, allow_dirty: bool = False) -> dict[str, Any]:
    """Commit, machine and versions, for records; raises DirtyError as `commit` does."""
    return {'commit': commit(allow_dirty=allow_dirty), **_environment()}


def commit(*, allow_dirty: bool = False) -> str:
    """The commit that is checked out here.

    Raises:
        DirtyError: if the code differs from it, unless `allow_dirty`; the commit then ends in '-dirty'.
    """
    name, changes = _git('rev-parse', '--short=12', 'HEAD'), _git('status', '--porcelain', '--', *_CODE)
    if not name and not allow_dirty:
        raise DirtyError('git names no commit of this checkout: records could not say what was run.')
    if changes and not allow_dirty:
        first = ', '.join(line[3:] for line in changes.splitlines()[:3])
        raise DirtyError(
            f'the checkout differs from commit {name} ({first}). Commit first, so that records name what '
            'was run, or pass --allow_dirty, which marks them.'
        )
    return f'{name or "unknown"}{"-dirty" if changes else ""}'


@functools.cache
def of_code() -> str:
    """The last commit that changed code, whatever pages and records were committed since.

    As it was when first asked: this process goes on with what it has imported.
    """
    return _git('log', '-1', '--format=%h', '--', *_CODE)


@functools.cache
def _environment() -> dict[str, Any]:
    return {
        'machine': _accelerator() or _machine(),
        'versions': {
            'python': platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _machine() -> str:
    information = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*: (.*)', information.read_text()) if information.exists() else []
    return f'{os.cpu_count()} cores of {names[0] if names else platform.processor()}, {platform.machine()}'


def _accelerator() -> str:
    """How many GPUs or TPUs JAX sees here, and of which kind; empty if none."""
    import jax  # not to read records

    devices = jax.devices()
    return '' if devices[0].platform == 'cpu' else f'{len(devices)} {devices[0].device_kind}'


def _git(*command: str) -> str:
    folder = Path(__file__).parents[1]
    return subprocess.run(['git', *command], cwd=folder, capture_output=True, text=True).stdout.rstrip()
