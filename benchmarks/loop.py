"""The trainer's loop compared with the bare compiled step.

    python -m benchmarks.loop --output=results/benchmarks/loop.md

Alternates in one process between a run of `train_and_evaluate`, timed from one record to the next (excluding
its evaluation, at the end), and the same compiled step without the loop.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ml_collections
import rich.console
from absl import app, flags

from benchmarks import pages
from configs import cifar10, digits
from def_jax.trainer.launch import command_line

_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks/loop.md', 'The page, whose table is replaced.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How often the trainer and the bare step run.', lower_bound=1)
_DATA = flags.DEFINE_list('data', ['digits', 'cifar10'], 'Which data sets.')

_LOOPS = {
    'resident': 'bare step, one batch on the devices',
    'host': 'bare step, a new batch from the host each time',
    'trainer': 'trainer',
}
WINDOW = 20  # steps between records
_SMALL = {'model': 'vgg_small', 'train_examples': 10_000, 'test_examples': 512, 'fake_devices': True}
# Epochs of 7 and 78 steps, with a single evaluation, at the end.
_RUNS = {'digits': (digits, 40, {}), 'cifar10': (cifar10, 1, _SMALL)}


def make_config(name: str) -> ml_collections.ConfigDict:
    """The configuration to measure."""
    module, epochs, changes = _RUNS[name]
    config = module.get_config()
    config.update(changes | {'num_epochs': epochs, 'eval_every_epochs': epochs, 'log_every_steps': WINDOW})
    return config


def main(_) -> None:
    rows: list[dict[str, str]] = []
    command_line.set_environment(fake_devices=True)
    with tempfile.TemporaryDirectory(prefix='def_jax-loop-') as folder:
        for name in _DATA.value:
            try:
                rows += _speeds(name, Path(folder))
            except FileNotFoundError:
                print(f'{name} is omitted because it is not prepared here; set TFDS_DATA_DIR.')
    pages.write(_OUTPUT.value, {'origin': pages.origin('benchmarks.loop'), 'loop': pages.table(rows)})


def _speeds(name: str, folder: Path) -> Iterator[dict[str, str]]:
    """Rows of steps per second."""
    seconds: dict[str, list[float]] = {loop: [] for loop in _LOOPS}  # per step, for each window
    bare = _BareLoop(make_config(name))
    for round_ in range(_ROUNDS.value):
        of_trainer = _trainer_windows(make_config(name), folder / f'{name}-{round_}')
        seconds['trainer'] += of_trainer
        for _ in of_trainer:  # window by window, so that drift affects both equally
            seconds['resident'].append(bare.window(resident=True))
            seconds['host'].append(bare.window(resident=False))
    medians = {loop: statistics.median(windows) for loop, windows in seconds.items()}
    for loop, median in medians.items():
        yield {
            'data': name,
            'loop': _LOOPS[loop],
            'steps per second': f'{1 / median:.1f}',
            'ms per step': f'{1e3 * median:.2f}',
            'relative to the bare step': f'{medians["resident"] / median:.3f}',
            'target': '≥ 0.95' if loop == 'trainer' else '',
        }


def _trainer_windows(config: ml_collections.ConfigDict, run: Path) -> list[float]:
    """Seconds per step between consecutive records of a run; compilation precedes the first record."""
    from def_jax.trainer import loop, metrics

    loop.train_and_evaluate(config, run, rich.console.Console(quiet=True))
    records = [r for r in metrics.read(run / 'metrics.jsonl') if 'images_per_second' in r]
    return [
        (after['seconds'] - before['seconds']) / (after['step'] - before['step'])
        for before, after in itertools.pairwise(records)
    ]


class _BareLoop:
    """The trainer's compiled step and nothing else."""

    def __init__(self, config: ml_collections.ConfigDict):
        from def_jax.trainer import experiment

        run = experiment.build(config)
        self._step, self._state = run.steps.train, run.steps.init()
        self._batch = next(run.train_batches(0))
        self._resident = run.workers.place(self._batch)
        for resident in (True, False):
            self.window(resident=resident)

    def window(self, *, resident: bool) -> float:
        """Seconds per step over one window."""
        import jax

        batch, start = self._resident if resident else self._batch, time.perf_counter()
        for _ in range(WINDOW):
            self._state, metrics = self._step(self._state, batch)
            jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / WINDOW


if __name__ == '__main__':
    app.run(main)
