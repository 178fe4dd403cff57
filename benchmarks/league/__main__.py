"""The league: every method at the bytes of the others, on a perceptron and scikit-learn's digits.

    python -m benchmarks.league --output=results/league

Small on purpose: 8 workers, 800 steps, minutes of CPU time for all methods. The optimizers are those of
`METHODS`, as the trainer builds them; configs/tables/league.py has the same contenders for the trainer.
Learning rates are chosen by the loss on 200 held-out training images, each method's from a grid of its own
that grows until the best is not at its edge. Then five seeds train on all 1,000 images and are tested on 797.
"""

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
from absl import app, flags

import def_jax
from benchmarks.league.contenders import CONTENDERS, STEPS, WORKERS, Contender
from def_jax.data.digits.digits import split_indices
from def_jax.ownership import own_leaves
from def_jax.traffic import traffic

BATCH, POINTS = 8, 20
WIDTHS = (64, 64, 64, 10)
SEEDS, TUNING_SEEDS = (0, 1, 2, 3, 4), (100, 101)
LANES = len(SEEDS)  # runs side by side in one program
VALIDATION, PADDED = 200, 1000


class Data(NamedTuple):
    """What one run sees. Evaluated images are padded; padding has weight 0."""

    images: np.ndarray  # float32 [T, K, b, 64]
    labels: np.ndarray  # int32 [T, K, b]
    test_images: np.ndarray  # float32 [PADDED, 64]
    test_labels: np.ndarray
    weights: np.ndarray  # float32 [PADDED], sums to 1


def make_data(seed: int, *, tuning: bool) -> Data:
    """Batches of shuffled epochs, shifted at random by up to a pixel; tested on what is held out."""
    digits = sklearn.datasets.load_digits()
    train, test = split_indices()
    if tuning:
        train, test = train[:-VALIDATION], train[-VALIDATION:]
    rng = np.random.default_rng(seed)
    epochs = -(-STEPS * WORKERS * BATCH // len(train))
    order = np.concatenate([rng.permutation(train) for _ in range(epochs)])[: STEPS * WORKERS * BATCH]
    padded = np.pad(digits.images / 16, ((0, 0), (1, 1), (1, 1)))
    rows, columns = (rng.integers(0, 3, len(order))[:, None] + np.arange(8) for _ in range(2))
    images = padded[order[:, None, None], rows[:, :, None], columns[:, None, :]]
    shape = (STEPS, WORKERS, BATCH)
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


def make_params(seed: int) -> dict[str, jax.Array]:
    rng, layers = np.random.default_rng(seed + 1000), {}
    for i, (n, m) in enumerate(itertools.pairwise(WIDTHS)):
        layers[f'w{i}'] = (np.sqrt(2 / n) * rng.normal(size=(n, m))).astype(np.float32)
        layers[f'b{i}'] = np.zeros(m, np.float32)
    return layers


def logits(params, images):
    for i in range(len(WIDTHS) - 1):
        images = images @ params[f'w{i}'] + params[f'b{i}']
        images = images if i == len(WIDTHS) - 2 else jax.nn.relu(images)
    return images


def loss_fn(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)


def answer(method, params, state):
    """The point that the method outputs."""
    if method.answer == 'y':
        return def_jax.output_params(params, state, 'workers')
    return def_jax.detached_params(params, state) if method.answer == 'own' else params


def make_runs(contender: Contender) -> Callable:
    """A compiled function of rates [LANES], parameters and data, stacked, to curves [LANES, 3, POINTS]."""
    method = def_jax.get_method(contender.method)

    def worker(rate, params, data):
        optimizer = contender.optimizer(optax.cosine_decay_schedule(rate, STEPS))

        def step(carry, batch):
            params, state = carry
            detaches = method.kind == 'error_feedback'
            point = def_jax.detached_params(params, state) if detaches else params
            loss, grads = jax.value_and_grad(lambda p: loss_fn(p, *batch).mean())(point)
            updates, state = optimizer.update(grads, state, point)
            return (optax.apply_updates(params, updates), state), loss

        def segment(carry, batches):
            carry, losses = jax.lax.scan(step, carry, batches)
            found = answer(method, *carry)
            correct = logits(found, data.test_images).argmax(-1) == data.test_labels
            test_loss = loss_fn(found, data.test_images, data.test_labels)
            return carry, jnp.stack([losses.mean(), data.weights @ test_loss, data.weights @ correct])

        batches = (data.images, data.labels)
        batches = jax.tree.map(lambda x: x.reshape(POINTS, -1, *x.shape[1:]), batches)
        _, curves = jax.lax.scan(segment, (params, optimizer.init(params)), batches)
        return jax.lax.pmean(curves.T, 'workers')

    own = Data(1, 1, None, None, None)
    workers = jax.vmap(worker, in_axes=(None, None, own), out_axes=None, axis_name='workers')
    return jax.jit(jax.vmap(workers))


@functools.cache
def stacked_data(seeds: tuple[int, ...], tuning: bool) -> tuple[Any, Data]:
    runs = [(make_params(seed), make_data(seed, tuning=tuning)) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def tuned(contender: Contender, runs: Callable) -> tuple[float, dict[float, float]]:
    """The rate with the lowest validation loss, a mean over two seeds, and those of all that were tried."""
    tried: dict[float, float] = {}
    grid = [contender.rate * factor for factor in (0.1, 0.3, 1, 3, 10)]
    for _ in range(4):
        found = []
        for seed in TUNING_SEEDS:
            found.append(runs(np.float32(grid), *stacked_data((seed,) * LANES, True)))
        curves = np.mean(found, axis=0)
        losses = np.nan_to_num(curves[:, 1, -1], nan=np.inf)
        tried |= {float(f'{rate:.3g}'): float(loss) for rate, loss in zip(grid, losses, strict=True)}
        rates = sorted(tried)
        best = min(tried, key=tried.get)
        if best not in (rates[0], rates[-1]):
            return best, dict(sorted(tried.items()))
        down = best == rates[0]
        grid = [best * (0.3**i if down else 3.0**i) for i in range(1, LANES + 1)]
    return best, dict(sorted(tried.items()))


def costs(contender: Contender) -> dict[str, Any]:
    """Bytes a step, as passed to the collectives and as sent on a ring, and the optimizer's state."""
    params, method = make_params(0), def_jax.get_method(contender.method)
    size = sum(x.size for x in params.values())
    found = traffic(contender.optimizer(0.1), params, 'workers')
    every = contender.options.get('every', 1)

    def total(measure):
        always = sum(map(measure, found.always))
        steady = [[sum(map(measure, sent)) for sent in branch] for branch in found.branches]
        if every > 1:
            return always + sum(map(max, steady)) / every
        dense = contender.options.get('freeze_after', int(method.kind == 'ef21'))
        return always + sum(
            (dense * max(branch) + (STEPS - dense) * min(branch)) / STEPS for branch in steady
        )

    optimizer = contender.optimizer(0.1)
    state = jax.eval_shape(optimizer.init, params)
    own = own_leaves(optimizer, params)
    kept = [(x.size / size, mine) for x, mine in zip(*map(jax.tree.leaves, (state, own)), strict=True)]
    return {
        'payload': total(lambda message: 4 * message.words),
        'wire': total(lambda message: message.wire_bytes(WORKERS)),
        'dense': 4 * size,
        'own_state': round(sum(share for share, mine in kept if mine), 2),
        'shared_state': round(sum(share for share, mine in kept if not mine), 2),
    }


def measured(only: list[str]) -> Iterator[dict[str, Any]]:
    """One record per contender, or for those of the given titles."""
    for contender in CONTENDERS:
        if only and contender.title not in only:
            continue
        runs = make_runs(contender)
        rate, tried = tuned(contender, runs)
        curves = np.asarray(runs(np.full(LANES, rate, np.float32), *stacked_data(SEEDS, False)))
        jax.clear_caches()
        yield {
            'title': contender.title,
            'method': contender.method,
            'ratio': contender.ratio if contender.ratio > 1 else contender.options.get('every', 1),
            'settings': {
                **contender.blocks,
                **contender.options,
                **contender.link,
                'momentum': contender.momentum,
            },
            'rate': rate,
            'tried': tried,
            **costs(contender),
            'train_loss': curves[:, 0].round(5).tolist(),  # [seeds, POINTS], at the method's gradient points
            'test_loss': curves[:, 1].round(5).tolist(),
            'accuracy': (100 * curves[:, 2]).round(3).tolist(),
        }


def main(_) -> None:
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'league.json'
    records = {_name(record): record for record in json.loads(path.read_text())} if path.exists() else {}
    for record in measured(flags.FLAGS.only):
        final = [accuracy[-1] for accuracy in record['accuracy']]
        print(record['title'], record['ratio'], record['rate'], np.mean(final), file=sys.stderr, flush=True)
        records[_name(record)] = record
        lines = ',\n'.join(json.dumps(record, ensure_ascii=False) for record in records.values())
        path.write_text(f'[\n{lines}\n]\n')


def _name(record: dict[str, Any]) -> str:
    return f'{record["title"]} at {record["ratio"]}'


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/league', 'Folder of league.json.')
    flags.DEFINE_list('only', [], 'Titles of the contenders to measure; the others keep their records.')
    app.run(main)
