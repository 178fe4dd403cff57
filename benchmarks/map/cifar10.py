"""A second data set for the map's perceptron: CIFAR-10, each image averaged to 8×8 pixels of three colours.

A run trains on the first images of the training split, as many as asked for, without augmentation, so that
training error is exactly what training minimises. Rates are chosen on the last 5,000, on which no run that
chooses trains.
"""

import functools

import numpy as np

from benchmarks.league.perceptron import Data
from def_jax.trainer.data import catalogue

__all__ = ['PIXELS', 'make_data']

PIXELS, HELD_OUT = 8 * 8 * 3, 5_000


def make_data(seed: int, images: int, workers: int, batch: int, steps: int, tuning: bool) -> Data:
    """Batches of shuffled epochs, and what is evaluated: held-out or test images, and those to train on."""
    train, test = _splits()
    pixels, labels = (x[: min(images, len(x) - HELD_OUT) if tuning else images] for x in train)
    evaluated = [x[-HELD_OUT:] for x in train] if tuning else test
    rng, count = np.random.default_rng(seed), steps * workers * batch
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(-(-count // len(labels)))])[:count]
    order = order.reshape(steps, workers, batch)
    even = np.full(len(evaluated[1]), 1 / len(evaluated[1]), np.float32)
    return Data(pixels[order], labels[order], *evaluated, even, (pixels, labels))


@functools.cache
def _splits() -> list[tuple[np.ndarray, np.ndarray]]:
    """The images, float32 [n, 192], and labels of both splits."""
    opened = catalogue.open_images('cifar10')
    mean, std = (np.float32(x) for x in (opened.spec.mean, opened.spec.std))
    found = []
    for split in (opened.train, opened.test):
        arrays = split.take(np.arange(len(split)))
        averaged = arrays['image'].reshape(-1, 8, 4, 8, 4, 3).mean((2, 4), dtype=np.float32)
        found.append((((averaged / 255 - mean) / std).reshape(-1, PIXELS), arrays['label']))
    return found
