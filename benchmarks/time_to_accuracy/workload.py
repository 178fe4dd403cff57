"""What all variants share: the network, the order of the images, the schedule, the clock.

The network is a perceptron on patches. Every patch of 4 × 4 pixels becomes 64 features by one matrix; all
features of the image go through two hidden layers. It is made of matrix products alone, so that sending its
gradients takes longer than computing them.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = [
    'DEF_Q',
    'FEATURES',
    'HIDDEN',
    'NUM_CLASSES',
    'PATCH',
    'RATES',
    'batches',
    'learning_rates',
    'patches',
    'train',
]

NUM_CLASSES = 10
PATCH = 4
FEATURES, HIDDEN = 64, (1024, 1024)  # of a patch, and the hidden layers: 5.3 M parameters
# Peak rates, with momentum 0.9. They were chosen by runs of 780 steps with --validation and --seed=100, from
# 0.025, 0.05, 0.1 and, for 'dense', 0.2, where it diverges. DEF-Q has that of 'dense'.
DEF_Q = ('def_q64_2', 'def_q256_2')  # in 2 bits
RATES = {
    'dense': 0.1,
    'def64': 0.05,
    'def256': 0.05,
    **dict.fromkeys(DEF_Q, 0.1),
    'jax_powersgd': 0.05,
}

_SHIFT = 4  # pixels by which a training image is shifted at most
_MEAN, _STD = np.float32(0.473), np.float32(0.251)  # of all channels of the training images
_WARM_UP = 0.05  # fraction of the steps


def learning_rates(job: dict[str, Any]) -> np.ndarray:
    """The rate of every step, [num_steps]: a linear warm-up to the peak, then a cosine to zero."""
    steps = np.arange(job['num_steps'])
    warm_up = max(1, round(_WARM_UP * len(steps)))
    left = 0.5 * (1 + np.cos(np.pi * (steps - warm_up) / max(1, len(steps) - warm_up)))
    return job['learning_rate'] * np.where(steps < warm_up, (steps + 1) / warm_up, left)


def patches(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] to float32 [B, number of patches, PATCH · PATCH · C]."""
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // PATCH, PATCH, width // PATCH, PATCH, channels)
    lines = cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, PATCH * PATCH * channels)
    return (lines.astype(np.float32) / 255 - _MEAN) / _STD


def batches(
    images: np.ndarray, labels: np.ndarray, *, batch: int, seed: int, worker: int, num_workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This worker's batches: shifted, mirrored images, in an order that depends on the seed alone."""
    whole, epoch = batch * num_workers, 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        for step in range(len(order) // whole):
            chosen = order[step * whole + worker * batch :][:batch]
            rng = np.random.default_rng([seed, epoch, step, worker])
            yield patches(_augmented(images[chosen], rng)), labels[chosen]
        epoch += 1


def _augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    padded = np.pad(images, [(0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)], mode='reflect')
    height, width = images.shape[1:3]
    corners = rng.integers(0, 2 * _SHIFT + 1, (len(images), 2))
    mirrored = rng.random(len(images)) < 0.5
    shifted = [p[y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
    return np.stack([s[:, ::-1] if m else s for s, m in zip(shifted, mirrored, strict=True)])


def train(
    job: dict[str, Any],
    step: Callable[[np.ndarray, np.ndarray, int], None],
    evaluate: Callable[[], dict[str, float]],
) -> dict[str, Any]:
    """Trains one run and keeps its curve. The clock runs during steps, not during evaluations or input.

    A run that is timed has all its batches ready: a worker that must wait for another's would count that.

    Args:
        job: `data`, an .npz file of train_images, train_labels and others; `batch`, `seed`, `worker`,
            `num_workers`, `run_steps`, `eval_every` and `bandwidth`, empty unless the run is timed.
        step: trains on a batch, given the number of steps before, and returns when the step is done.
        evaluate: test accuracies by name.

    Returns:
        `curve`, for every evaluation its step and the accuracies; `seconds`, one for each step.
    """
    data, seconds, curve = np.load(job['data']), [], []
    names = ('batch', 'seed', 'worker', 'num_workers')
    stream = batches(data['train_images'], data['train_labels'], **{name: job[name] for name in names})
    stream = itertools.islice(stream, job['run_steps'])
    for index, (inputs, labels) in enumerate(list(stream) if job['bandwidth'] else stream):
        start = time.perf_counter()
        step(inputs, labels, index)
        seconds.append(time.perf_counter() - start)
        if (index + 1) % job['eval_every'] == 0 or index + 1 == job['run_steps']:
            curve.append({'step': index + 1} | evaluate())
    return {'curve': curve, 'seconds': seconds}
