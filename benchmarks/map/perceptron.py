"""The league's perceptron at any width and for any number of steps, one run at a time.

Data, initial parameters and schedule are the league's. Here a run's seed selects the blocks,
too, and a finished run is evaluated at x, y and the workers' own models, on held-out images and on the
training images at all nine shifts, which is exactly what training minimises.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import sklearn.datasets

import def_jax
from benchmarks.league import perceptron
from benchmarks.league.contenders import Contender
from def_jax.error_feedback import feedback_states

__all__ = ['POINTS', 'train']

POINTS = ('x', 'y', 'own')
COURSE = 20  # training losses of a run that are kept
PyTree = Any


def train(
    contender: Contender, width: int, workers: int = 8, steps: int = perceptron.STEPS
) -> Callable[[float, int, bool], dict[str, Any]]:
    """A function of a rate, a seed and whether to train on 800 images and evaluate on the other 200.

    These are one of five folds, chosen by the seed. It returns the record of a run: metrics by point, and the
    course of the training loss.
    """
    program = _program(contender, steps)

    def run(rate, seed, tuning):
        return _record(
            jax.tree.map(np.asarray, program(rate, *_arguments(seed, width, workers, steps, tuning)))
        )

    return run


def _program(contender: Contender, steps: int) -> Callable:
    """Compiled: of a rate, a key, initial parameters and data, to metrics and the course of the loss."""
    method = def_jax.get_method(contender.method)
    has_residual = method.kind == 'error_feedback'

    def worker(rate, key, params, data, train_images, train_labels):
        optimizer, step = perceptron.make_step(contender, rate, steps)
        state = optimizer.init(params)
        if has_residual:
            state = optax.tree.set(state, key=key)

        def evaluated(point):
            correct = perceptron.logits(point, data.test_images).argmax(-1) == data.test_labels
            loss = perceptron.loss_fn(point, data.test_images, data.test_labels)
            right = perceptron.logits(point, train_images).argmax(-1) == train_labels
            return {
                'loss': data.weights @ loss,
                'error': 100 * (1 - data.weights @ correct),
                'train_loss': perceptron.loss_fn(point, train_images, train_labels).mean(),
                'train_error': 100 * (1 - right.mean()),
            }

        (params, state), losses = jax.lax.scan(step, (params, state), (data.images, data.labels))
        answers = {'x': params}
        if has_residual:
            (link,) = feedback_states(state, 'the map')
            answers['y'] = def_jax.output_params(params, state, 'workers')
            answers['own'] = optax.tree.add(params, link.residual)
        found = {name: evaluated(point) for name, point in answers.items()}
        return jax.lax.pmean((found, losses.reshape(COURSE, -1).mean(1)), 'workers')

    own = perceptron.Data(1, 1, None, None, None)
    axes = (None, None, None, own, None, None)
    workers = jax.vmap(worker, in_axes=axes, out_axes=None, axis_name='workers')
    if has_residual:
        return jax.jit(workers)

    def one_worker(rate, key, params, data, *train):
        """The same run: where all take their gradients at x, one worker with all images is faster."""
        images, labels = (x.reshape(len(x), 1, -1, *x.shape[3:]) for x in (data.images, data.labels))
        return workers(rate, key, params, data._replace(images=images, labels=labels), *train)

    return jax.jit(one_worker)


def _record(results: PyTree) -> dict[str, Any]:
    """As JSON has it: five digits, and None for what is not finite."""
    found, course = results
    points = [name for name in POINTS if name in found]
    metrics = {
        metric: {point: _rounded(found[point][metric], 5) for point in points} for metric in found['x']
    }
    return metrics | {'course': [_rounded(loss, 4) for loss in course]}


def _rounded(value: float, digits: int) -> float | None:
    return float(f'{value:.{digits}g}') if np.isfinite(value) else None


@functools.lru_cache(maxsize=30)
def _arguments(seed: int, width: int, workers: int, steps: int, tuning: bool) -> tuple[Any, ...]:
    fold = seed % perceptron.FOLDS
    data = perceptron.make_data(seed, tuning=tuning, fold=fold, steps=steps)
    images, labels = (x.reshape(len(x), workers, -1, *x.shape[3:]) for x in (data.images, data.labels))
    data = data._replace(images=images, labels=labels)
    params = perceptron.make_params(seed, (64, width, width, 10))
    return np.asarray(jax.random.PRNGKey(seed)), params, data, *_train_images(tuning, fold * tuning)


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
