"""The league's perceptron at any width and for any number of steps, one run at a time.

Data, initial parameters and schedule are the league's. Here a run's seed selects the blocks,
too, and a finished run is evaluated at x, y and the workers' own models, on held-out images and on the
training images at all nine shifts, which is exactly what training minimises.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets

import def_jax
from benchmarks.league import perceptron
from benchmarks.league.contenders import Contender
from benchmarks.map import cifar10
from def_jax.error_feedback import feedback_states
from def_jax.mesh.spmd.at_points import detaches

__all__ = ['POINTS', 'train']

POINTS = ('x', 'y', 'own')
COURSE = 20  # training losses of a run that are kept
PyTree = Any


def train(
    contender: Contender, width: int, workers: int = 8, steps: int = perceptron.STEPS, images: int = 0
) -> Callable[[float, int, bool], dict[str, Any]]:
    """A function of a rate, a seed and whether to train on 800 images and evaluate on the other 200.

    These are one of five folds, chosen by the seed. It returns the record of a run: metrics by point, and the
    course of the training loss. With a number of `images`, they are CIFAR-10's, see cifar10.py.
    """
    has_residual = def_jax.get_method(contender.method).kind == 'error_feedback'
    program = perceptron.make_program(contender, _evaluate, 1, steps)
    # Where all take their gradients at x, one worker with all images is the same run, and faster.
    count = workers if has_residual else 1

    def run(rate, seed, tuning):
        key = jax.random.PRNGKey(seed) if has_residual else None
        arguments = np.float32(rate), key, *_arguments(seed, width, count, steps, tuning, images)
        found = program(*jax.tree.map(lambda x: x[None], arguments))
        return _record(*jax.tree.map(lambda x: np.asarray(x)[0, 0], found))  # the only part of the only run

    return run


def _evaluate(params: PyTree, state: PyTree, data: perceptron.Data) -> dict[str, dict[str, jax.Array]]:
    """Metrics by point, on held-out images and on those to train on."""
    answers = {'x': params}
    if detaches(state):
        (link,) = feedback_states(state, 'the map')
        answers['y'] = def_jax.output_params(params, state, 'workers')
        answers['own'] = optax.tree.add(params, link.residual)

    def metrics(point):
        images, labels = data.others
        even = jnp.full(len(labels), 1 / len(labels))
        loss, correct = perceptron.evaluated(point, data.test_images, data.test_labels, data.weights)
        train_loss, train_correct = perceptron.evaluated(point, images, labels, even)
        errors = {'error': 100 * (1 - correct), 'train_error': 100 * (1 - train_correct)}
        return {'loss': loss, 'train_loss': train_loss} | errors

    return {name: metrics(point) for name, point in answers.items()}


def _record(losses: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """As JSON has it: five digits, and None for what is not finite."""
    points = [name for name in POINTS if name in found]
    metrics = {
        metric: {point: _rounded(found[point][metric], 5) for point in points} for metric in found['x']
    }
    return metrics | {'course': [_rounded(loss, 4) for loss in losses.reshape(COURSE, -1).mean(1)]}


def _rounded(value: float, digits: int) -> float | None:
    return float(f'{value:.{digits}g}') if np.isfinite(value) else None


@functools.lru_cache(maxsize=30)
def _arguments(
    seed: int, width: int, workers: int, steps: int, tuning: bool, cifar10_images: int
) -> tuple[Any, ...]:
    if cifar10_images:
        batch = perceptron.WORKERS * perceptron.BATCH // workers
        data = cifar10.make_data(seed, cifar10_images, workers, batch, steps, tuning)
        return perceptron.make_params(seed, (cifar10.PIXELS, width, width, 10)), data
    fold = seed % perceptron.FOLDS
    data = perceptron.make_data(seed, tuning=tuning, fold=fold, steps=steps)
    images, labels = (x.reshape(len(x), workers, -1, *x.shape[3:]) for x in (data.images, data.labels))
    data = data._replace(images=images, labels=labels, others=_train_images(tuning, fold * tuning))
    return perceptron.make_params(seed, (64, width, width, 10)), data


@functools.cache
def _train_images(tuning: bool, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """The training images at all shifts by up to a pixel, float32 [9·n, 64], and their labels."""
    digits = sklearn.datasets.load_digits()
    places, _ = perceptron.split(tuning=tuning, fold=fold)
    padded = np.pad(digits.images[places] / 16, ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    return (
        np.concatenate(shifts).reshape(-1, 64).astype(np.float32),
        np.tile(digits.target[places], 9).astype(np.int32),
    )
