"""A perceptron on scikit-learn's digits, all seeds in one program: minutes of CPU time for all methods.

8 workers of 8 images, 800 steps. Tuned on 200 held-out training images with two seeds that are not used
again; then five seeds train on all 1,000 images and are tested on 797.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import sklearn.datasets

import def_jax
from benchmarks.league.contenders import WORKERS, Contender, Problem, answer, narrower
from benchmarks.workers import train_step
from def_jax.trainer.data.digits import split_indices

__all__ = ['PERCEPTRON']

STEPS, BATCH, POINTS = 800, 8, 20
WIDTHS = (64, 64, 64, 10)
LANES = 5  # runs side by side in one program
VALIDATION, FOLDS, PADDED = 200, 5, 1000
PyTree = Any


class Data(NamedTuple):
    """What one run sees. Evaluated images are padded; padding has weight 0."""

    images: np.ndarray  # float32 [T, K, b, 64]
    labels: np.ndarray  # int32 [T, K, b]
    test_images: np.ndarray  # float32 [PADDED, 64]
    test_labels: np.ndarray
    weights: np.ndarray  # float32 [PADDED], sums to 1
    others: Any = None  # what else is evaluated


def split(*, tuning: bool, fold: int = FOLDS - 1) -> tuple[np.ndarray, np.ndarray]:
    """The images to train and to test on; to tune, the test images are a fold of the training images."""
    train, test = split_indices()
    if tuning:
        held_out = slice(VALIDATION * fold, VALIDATION * (fold + 1))
        train, test = np.delete(train, held_out), train[held_out]
    return train, test


def make_data(seed: int, *, tuning: bool, fold: int = FOLDS - 1, steps: int = STEPS) -> Data:
    """Batches of shuffled epochs, shifted at random by up to a pixel; tested on what is held out."""
    digits = sklearn.datasets.load_digits()
    train, test = split(tuning=tuning, fold=fold)
    rng = np.random.default_rng(seed)
    count = steps * WORKERS * BATCH
    order = np.concatenate([rng.permutation(train) for _ in range(-(-count // len(train)))])[:count]
    padded = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))
    rows, columns = (rng.integers(0, 3, len(order))[:, None] + np.arange(8) for _ in range(2))
    images = padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]
    shape = (steps, WORKERS, BATCH)
    weights = np.zeros(PADDED)
    weights[: len(test)] = 1 / len(test)
    places = np.resize(test, PADDED)
    return Data(
        images.reshape(*shape, 64).astype(np.float32),
        digits.target[order].reshape(shape).astype(np.int32),
        (digits.images[places] / 16).reshape(PADDED, 64).astype(np.float32),
        digits.target[places].astype(np.int32),
        weights.astype(np.float32),
    )


def make_params(seed: int, widths: Sequence[int] = WIDTHS) -> dict[str, Any]:
    rng, layers = np.random.default_rng(seed + 1000), {}
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        layers[f'w{i}'] = (np.sqrt(2 / n) * rng.normal(size=(n, m))).astype(np.float32)
        layers[f'b{i}'] = np.zeros(m, np.float32)
    return layers


def logits(params, images):
    for i in range(len(WIDTHS) - 1):
        images = images @ params[f'w{i}'] + params[f'b{i}']
        images = images if i == len(WIDTHS) - 2 else jax.nn.relu(images)
    return images


def evaluated(params, images, labels, weights) -> tuple[jax.Array, jax.Array]:
    """The weighted loss and accuracy."""
    found = logits(params, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(found, labels)
    return weights @ losses, weights @ (found.argmax(-1) == labels)


def sgd(rate: Any, momentum: float, steps: int = STEPS) -> optax.GradientTransformation:
    """SGD with a cosine decay."""
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=momentum or None)


def train(contender: Contender) -> Callable[[Sequence[float], Sequence[int], bool], np.ndarray]:
    """See `Problem`; a program trains `LANES` runs at a time."""
    method = def_jax.get_method(contender.method)

    def evaluate(params, state, data):
        return evaluated(answer(method, params, state), data.test_images, data.test_labels, data.weights)

    program = make_program(contender, evaluate)

    def run(rates, seeds, tuning):
        found = []
        for i in range(0, len(rates), LANES):
            lanes = np.resize(np.float32(rates[i : i + LANES]), LANES)
            stacked = stacked_data(tuple(np.resize(seeds[i : i + LANES], LANES).tolist()), tuning)
            losses, (loss, accuracy) = program(lanes, None, *stacked)
            curves = np.stack([losses.mean(-1), loss, accuracy], 1)
            found.append(curves[: len(rates) - i])
        return np.concatenate(found)

    return run


def make_program(
    contender: Contender,
    evaluate: Callable[[PyTree, PyTree, Data], PyTree],
    parts: int = POINTS,
    steps: int = STEPS,
) -> Callable:
    """A compiled function of rates, keys of blocks, parameters and data, each stacked over runs.

    Without keys, blocks are drawn by the method's own. It returns the losses in training, [runs, parts, steps
    of a part], and what `evaluate` makes of parameters, state and data after each part.
    """

    def mean_loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()

    def worker(rate, key, params, data):
        optimizer = contender.optimizer(sgd(rate, **contender.inner, steps=steps))
        state, step = optimizer.init(params), train_step(optimizer, mean_loss)
        if key is not None:
            state = optax.tree.set(state, key=key)

        def scanned(carry, batch):
            params, state, loss = step(*carry, *batch)
            return (params, state), loss

        def part(carry, batches):
            carry, losses = jax.lax.scan(scanned, carry, batches)
            return carry, (losses, evaluate(*carry, data))

        batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (data.images, data.labels))
        _, found = jax.lax.scan(part, (params, state), batches)
        return jax.lax.pmean(found, 'workers')

    axes = None, None, None, Data(1, 1, None, None, None, None)
    workers = jax.vmap(worker, in_axes=axes, out_axes=None, axis_name='workers')
    return jax.jit(jax.vmap(workers))


@functools.cache
def stacked_data(seeds: tuple[int, ...], tuning: bool) -> tuple[Any, Data]:
    runs = [(make_params(seed), make_data(seed, tuning=tuning)) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def without_momentum(known: Sequence[Contender]) -> list[Contender]:
    """The same methods with plain SGD, the setting of ours, and rates of η / (1 - μ)."""
    return [
        contender._replace(
            title=f'{contender.title} (no momentum)', inner={'momentum': 0.0}, rate=5 * contender.rate
        )
        for contender in known
        if contender.inner['momentum'] and contender.title != 'EF'
    ]


def contenders(ratio: int) -> list[Contender]:
    """The methods whose messages follow the ratio; Streaming DiLoCo has four fragments."""
    plain = {'inner': {'momentum': 0.0}}
    return [
        Contender('DEF, ours', 'def', ratio, OURS, {'detach': 'auto'}, **plain, rate=0.5),
        Contender('DEF (paper)', 'def', ratio),
        Contender('SAEF', 'saef', ratio),
        Contender('PSync', 'psync', ratio),
        Contender('EF', 'ef', ratio, rate=0.03),
        Contender('top-k', 'top_k', ratio),
        Contender('DeMo', 'demo', ratio, **plain, rate=0.003),
        Contender('CSER', 'cser', ratio, options={'every': 8}),
        Contender('EF21-SGDM', 'ef21_sgdm', ratio, **plain, rate=0.5),
        Contender('Local SGD', 'local_sgd', options={'every': ratio}),
        Contender('DiLoCo', 'diloco', options={'every': ratio}),
        Contender('Streaming DiLoCo', 'streaming_diloco', 4, options={'every': ratio // 4}),
        Contender('SPARTA', 'sparta', ratio),
        Contender('SparseLoCo', 'sparse_loco', ratio / 4, options={'every': 4}),
        Contender('random replicator', 'random_replicator', ratio, **plain, rate=0.5),
    ]


OURS = {'order': 'shuffled', 'allocation': 'balanced'}
CONTENDERS = [
    Contender('SGD', 'sgd'),
    *contenders(16),
    Contender('PowerSGD', 'powersgd', 16),
    Contender('EF-signSGD', 'sign_ef'),
    Contender(
        '1-bit Adam',
        'onebit_adam',
        options={'freeze_after': 120},
        link={'eps': 1e-4},
        inner={'momentum': 0.0},
        rate=0.003,
    ),
    *contenders(64),
]
CONTENDERS += without_momentum(CONTENDERS)
CONTENDERS += [variant for ratio in (16, 64) for variant in narrower(contenders(ratio)[0])]

PERCEPTRON = Problem(
    CONTENDERS,
    make_params(0),
    STEPS,
    sgd,
    train,
    reach=2,
    tuning_seeds=(100, 101),
    seeds=(0, 1, 2, 3, 4),
)
