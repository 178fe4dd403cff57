"""The format of a table: a base configuration, and cells with the overrides of each run.

    python -m paper.sweep  --config=configs/tables/table1.py        --workdir=runs/table1
    python -m paper.sweep  --config=configs/tables/table1.py:digits --workdir=runs/table1_digits
    python -m paper.report --workdir=runs/table1_digits

On eight GPUs, add --processes=8: a run needs one GPU. docs/paper_tables.md says how long a table takes. The
name after the colon selects a smaller variant. Keys of the base configuration are set like
--config.base.num_epochs=300, those of the table like --config.seeds='(0,1,2,3,4)'.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from configs import cifar10, digits
from def_jax import METHODS
from def_jax.trainer.configuration import arguments

COMPRESSED = {'ef': 'EF', 'saef': 'SAEF', 'psync': 'PSync', 'def': 'DEF', 'def_a': 'DEF-A'}
RATES = (0.1, 0.05, 0.01)  # the paper's candidates
HELD_OUT_DIGITS = {'validation_examples': 200, 'evaluate_on': 'validation'}
HELD_OUT_CIFAR = {'validation_examples': 5000, 'evaluate_on': 'validation'}
HELD_OUT_IMAGENET = {'validation_examples': 50_000, 'evaluate_on': 'validation'}
# All images on a machine without GPUs: `vgg_strided` costs a sixth of `vgg_small`.
FAST_CIFAR = {
    'model': 'vgg_strided',
    'fake_devices': True,
    'recalibrate_batches': 8,
    'evaluate_train_examples': 10_000,
}
# 2,340 steps. One device per worker uses both cores of a small machine; virtual workers are slower here.
REDUCED_CIFAR = {
    'fake_devices': True,
    'workers_per_device': 1,
    'model': 'vgg_small',
    'train_examples': 10_000,
    'test_examples': 2_000,
    'num_epochs': 30,
    'eval_every_epochs': 2,
}


def digits_base() -> ml_collections.ConfigDict:
    """scikit-learn's digits with all 16 workers on one device, which is fastest on few CPU cores."""
    return on_one_device(digits.get_config())


def cifar10_base(settings: Mapping[str, Any], **more: Any) -> ml_collections.ConfigDict:
    """CIFAR-10 with settings such as `FAST_CIFAR`."""
    base = cifar10.get_config()
    base.update(dict(settings) | more)
    return base


def on_one_device(base: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A base configuration with all workers on one device: a table is many runs, and each needs one GPU."""
    base.workers_per_device = base.num_workers
    return base


def cell(
    row: Any,
    column: str,
    paper: str = '',
    point: str = '',
    tuned: Mapping[str, Sequence[Any]] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """One number of a table.

    Args:
        row: the heading of its row.
        column: the heading of its column.
        paper: the paper's number; empty if it has none.
        point: where the metric is measured: 'x', 'y' or 'own'; in runs that recalibrate BatchNorm
            statistics, the suffix '_running' selects the running ones. Empty for the method's own answer.
        tuned: candidates by key, tuned together with the learning rate; a key 'learning_rate' replaces the
            table's candidates.
        **settings: overrides of the base configuration; a key such as 'optimizer_options.b2' sets one option.

    Returns:
        The cell.
    """
    return {
        'row': str(row),
        'column': column,
        'paper': paper,
        'point': point,
        'tuned': dict(tuned or {}),
        'settings': settings,
    }


def with_running(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells of runs that recalibrate BatchNorm statistics, and one with the running ones beside each."""
    result = []
    for each in cells:
        point = each['point'] or METHODS[each['settings']['method']].answer
        running = {'column': f'{each["column"]}, running', 'paper': '', 'point': f'{point}_running'}
        result += [dict(each), dict(each) | running]
    return result


def table(
    title: str,
    base: ml_collections.ConfigDict,
    cells: Iterable[Mapping[str, Any]],
    *,
    rows: str,
    learning_rates: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    tuning_seeds: tuple[int, ...] = (100,),
    tuning: Mapping[str, Any] | None = None,
) -> ml_collections.ConfigDict:
    """The complete, locked description of a table.

    Args:
        title: what the table shows.
        base: the training configuration that the cells change.
        cells: see `cell`.
        rows: what distinguishes the rows, e.g. 'ratio'.
        learning_rates: candidates for each cell, which uses the one with the best headline metric at its
            point (ties: the smallest training loss). If empty, each cell uses its own rate or the base's.
        seeds: the seeds of the runs that are averaged.
        tuning_seeds: the seeds of the runs that select the learning rate, by their mean; none is in `seeds`.
        tuning: what these runs change in the base configuration, e.g. `{'validation_examples': 200,
            'evaluate_on': 'validation'}` to make the choice on held-out training examples.

    Returns:
        The description.
    """
    description = ml_collections.ConfigDict(
        {
            'title': title,
            'rows': rows,
            'base': base,
            'cells': tuple(dict(c) for c in cells),
            'learning_rates': learning_rates,
            'seeds': seeds,
            'tuning_seeds': tuning_seeds,
            'tuning': dict(tuning or {}),
        }
    )
    return arguments.lock(description)


def by_ratio(sgd: str, paper: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    """The cells of a table of methods by ratio, with SGD in a separate row.

    Args:
        sgd: the paper's number for SGD.
        paper: for each ratio, the paper's numbers, one per method in `COMPRESSED`.

    Returns:
        The cells.
    """
    cells = [cell(1, 'SGD', sgd, method='sgd', ratio=1)]
    for ratio, numbers in paper.items():
        for (method, title), number in zip(COMPRESSED.items(), numbers, strict=True):
            cells.append(cell(ratio, title, number, method=method, ratio=ratio))
    return cells


def selected(
    spec: ml_collections.ConfigDict, title: str, keep: Callable[[Mapping[str, Any]], bool]
) -> ml_collections.ConfigDict:
    """Gives a table's description another title and keeps only the cells that `keep` accepts."""
    spec = spec.unlock()
    spec.title, spec.cells = title, tuple(c for c in spec.cells if keep(c))
    return arguments.lock(spec)


def variant(arg: str | None, *names: str) -> str:
    """The variant named after the colon, or '' for none; raises a flag error unless it is in `names`."""
    if arg and arg not in names:
        raise flags.IllegalFlagValueError(f'{arg!r} must be a variant: one of {", ".join(names)}.')
    return arg or ''
