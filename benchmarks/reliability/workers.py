"""A run on digits goes on with another number of workers: what becomes of y.

    python -m benchmarks.reliability.workers --output=results/reliability

For each pair K -> K' a run of K workers is trained for 140 steps and saved, and its checkpoint restored by
K'. workers.json holds whether x is the same, the largest change of y, and the accuracy of y before and after.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault('NPROC', '16')

import jax
import numpy as np

from benchmarks.reliability import processes
from configs import digits
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.evaluation import evaluate
from def_jax.trainer.experiment import Experiment, build
from def_jax.trainer.state import TrainState

# K, its workers on a device, and K' with its own.
CHANGES = [((8, 1), (4, 1)), ((4, 1), (8, 1)), ((8, 1), (3, 1)), ((16, 1), (1, 1)), ((16, 1), (16, 4))]
STEPS = 140


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, help='folder that gets workers.json')
    arguments = parser.parse_args()
    build(config_of(16, 1))  # as many fake devices as any of them needs
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(old, new, Path(folder)) for old, new in CHANGES]
    processes.save(rows, arguments.output, 'workers.json')
    return 0


def config_of(workers: int, per_device: int):
    config = digits.get_config()
    config.num_workers, config.workers_per_device = workers, per_device
    config.batch_size = round(128 / workers) * workers
    return config


def measured(old: tuple[int, int], new: tuple[int, int], folder: Path) -> dict:
    """The row of one change."""
    before, after = build(config_of(*old)), build(config_of(*new))
    path = folder / f'{old[0]}-{old[1]}'
    if not path.exists():
        trained(before, path)
    first, _ = restored(path, before)
    second, notes = restored(path, after)
    x, y = points(before, first)
    x_after, y_after = points(after, second)
    return {
        'workers': list(old),
        'new workers': list(new),
        'batch': [before.config.batch_size, after.config.batch_size],
        'x is the same, bit for bit': x.tobytes() == x_after.tobytes(),
        'largest change of y': float(np.abs(y_after - y).max()),
        'largest |y|': float(np.abs(y).max()),
        'largest |y - x|': float(np.abs(y - x).max()),
        'test accuracy of y': [
            evaluate(*run, STEPS)['test_accuracy_y'] for run in ((before, first), (after, second))
        ],
        'log': notes,
    }


def trained(experiment: Experiment, path: Path) -> None:
    path.mkdir()
    state, train_step = experiment.steps.init(), experiment.steps.train
    for _, batch in zip(range(STEPS), experiment.train_batches(0), strict=False):
        state, _ = train_step(state, batch)
        jax.block_until_ready(state)
    with Checkpoints(path, experiment) as manager:
        manager.save(state)


def restored(path: Path, experiment: Experiment) -> tuple[TrainState, list[str]]:
    with Checkpoints(path, experiment) as manager:
        return manager.restore(experiment.steps.init()), manager.notes


def points(experiment: Experiment, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
    """x and y, flattened, as an evaluation computes them."""
    outputs = jax.device_get(experiment.steps.outputs(state))
    x, y = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(outputs[point]['params'])])
        for point in ('x', 'y')
    )
    return x, y


if __name__ == '__main__':
    sys.exit(main())
