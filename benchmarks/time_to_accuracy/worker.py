"""One worker of a run: the network, this worker's images, the optimizer by the variant's name, and the clock.

The network is a perceptron on patches. Every patch of 4 × 4 pixels becomes 64 features by one matrix; all
features of the image go through two hidden layers. It is made of matrix products alone, so that sending its
gradients takes longer than computing them.
"""

import itertools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import def_jax
from benchmarks.cluster import timing
from benchmarks.cluster.jax_side import AXIS, finish, meet, mlp, on_workers, place, start
from def_jax.sharding.at_points import detaches, point
from def_jax.trainer.data.order import steps_per_epoch, train_positions

_NUM_CLASSES, _PATCH = 10, 4
_FEATURES, _HIDDEN = 64, (1024, 1024)  # of a patch, and the hidden layers: 5.3 M parameters
_SHIFT = 4  # pixels by which a training image is shifted at most
_MEAN, _STD = np.float32(0.473), np.float32(0.251)  # of all channels of the training images
_WARM_UP = 0.05  # fraction of the steps
_COMPILES = 2  # the first steps without communication, not counted
_TIMED_ALONE = 30 + _COMPILES


# --- The images ---


def patches(images: np.ndarray) -> np.ndarray:
    """uint8 [B, H, W, C] to float32 [B, number of patches, size of a patch · C]."""
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // _PATCH, _PATCH, width // _PATCH, _PATCH, channels)
    lines = cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, _PATCH * _PATCH * channels)
    return (lines.astype(np.float32) / 255 - _MEAN) / _STD


def batches(
    images: np.ndarray, labels: np.ndarray, *, batch: int, seed: int, worker: int, num_workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This worker's batches: shifted, mirrored images, in an order that depends on the seed alone."""
    whole = batch * num_workers
    sizes = {'batch_size': whole, 'num_workers': num_workers, 'workers': [worker]}
    for step in itertools.count():
        epoch, (chosen,) = train_positions(len(images), seed=seed, step=step, **sizes)
        rng = np.random.default_rng([seed, epoch, step % steps_per_epoch(len(images), whole), worker])
        yield patches(_augmented(images[chosen], rng)), labels[chosen]


def _augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    padded = np.pad(images, [(0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0)], mode='reflect')
    height, width = images.shape[1:3]
    corners = rng.integers(0, 2 * _SHIFT + 1, (len(images), 2))
    mirrored = rng.random(len(images)) < 0.5
    shifted = [p[y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)]
    return np.stack([s[:, ::-1] if m else s for s, m in zip(shifted, mirrored, strict=True)])


# --- The network and its training ---


def init_params(num_patches: int, patch_size: int):
    """Gaussian weights of variance 2 / inputs, and of the last layer 0.01², biases of zero."""
    widths = [num_patches * _FEATURES, *_HIDDEN, _NUM_CLASSES]
    pairs = [(patch_size, _FEATURES), *itertools.pairwise(widths)]
    keys = jax.random.split(jax.random.key(0), len(pairs))
    scales = [*((2 / inputs) ** 0.5 for inputs, _ in pairs[:-1]), 0.01]
    return [
        {'w': scale * jax.random.normal(key, pair), 'b': jnp.zeros(pair[1])}
        for key, pair, scale in zip(keys, pairs, scales, strict=True)
    ]


def logits_of(params, inputs):
    """inputs [B, patches, patch size] to logits [B, classes]."""
    x = jax.nn.relu(inputs @ params[0]['w'] + params[0]['b']).reshape(len(inputs), -1)
    return mlp(params[1:], x)


def make_schedule(job: dict) -> optax.Schedule:
    """A linear warm-up to the peak rate, then a cosine to zero."""
    peak, steps = job['learning_rate'], job['num_steps']
    warm_up = max(1, round(_WARM_UP * steps))
    rising = optax.linear_schedule(peak / warm_up, peak, warm_up - 1)
    falling = optax.cosine_decay_schedule(peak, max(1, steps - warm_up))
    return optax.join_schedules([rising, falling], [warm_up])


def make_optimizer(job: dict, axis_name: str | None) -> optax.GradientTransformation:
    """By the variant: 'def64', the paper's; 'def_q64_2', DEF-Q in 2 bits; or one of the rivals."""
    variant, schedule = job['variant'], make_schedule(job)
    sgd = optax.sgd(schedule, momentum=0.9)
    if variant == 'dense':
        return optax.chain(def_jax.all_reduce_mean(axis_name), sgd)
    if variant == 'jax_powersgd':
        return optax.chain(def_jax.baselines.powersgd(1, axis_name, rank=4), sgd)
    if variant.startswith('def_q'):
        compression, bits = map(int, variant.removeprefix('def_q').split('_'))
        return def_jax.def_sgd(schedule, compression, axis_name, bits=bits, seed=job['seed'])
    block = def_jax.random_block(int(variant.removeprefix('def')))
    return def_jax.error_feedback(block, axis_name, inner=sgd, seed=job['seed'])


def make_step(job: dict, axis_name: str | None):
    """A worker's step, a function of (params, opt_state) and a batch, and the optimizer."""
    optimizer = make_optimizer(job, axis_name)

    def loss_fn(params, inputs, labels):
        logits = logits_of(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(state, inputs, labels):
        params, opt_state = state
        grads = jax.grad(loss_fn)(point(params, opt_state), inputs, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return on_workers(step), optimizer


def make_evaluate(job: dict, images: np.ndarray, labels: np.ndarray):
    """A function of the state to the test accuracy of x and, for DEF, of y; each worker counts a part.

    The number of images must be a multiple of the number of workers.
    """
    share = slice(job['worker'], None, job['num_workers'])
    part = place(patches(images[share])), place(labels[share])

    def correct(params, inputs, labels):
        return lax.psum(jnp.sum(jnp.argmax(logits_of(params, inputs), axis=-1) == labels), AXIS)

    def accuracies(state, inputs, labels):
        params, opt_state = state
        found = {'x': correct(params, inputs, labels)}
        if detaches(opt_state):
            found['y'] = correct(def_jax.output_params(params, opt_state, AXIS), inputs, labels)
        return found

    mapped = on_workers(accuracies, donate=False)

    def evaluate(state) -> dict[str, float]:
        counts = mapped(state, *part)
        return {name: 100 * float(n.addressable_shards[0].data) / len(labels) for name, n in counts.items()}

    return evaluate


# --- The clock ---


def seconds_alone(job: dict, params, batch) -> float:
    """The mean time of a step that sends nothing, after which the workers wait for each other."""
    step, optimizer = make_step(job, None)
    state, barrier, seconds = place((params, optimizer.init(params))), meet(), []
    for _ in range(_TIMED_ALONE):
        begin = time.perf_counter()
        state = jax.block_until_ready(step(state, *batch))
        barrier()
        seconds.append(time.perf_counter() - begin)
    return float(np.mean(seconds[_COMPILES:]))


def main() -> None:
    """Trains and reports the accuracies of every evaluation and the seconds of every step."""
    job = timing.read_job()
    start(job)
    data = dict(np.load(job['data']))
    shape = patches(data['test_images'][:1]).shape[1:]
    params = init_params(*shape)
    step, optimizer = make_step(job, AXIS)
    state = place((params, optimizer.init(params)))
    evaluate = make_evaluate(job, data['test_images'], data['test_labels'])

    batch = place(np.zeros((job['batch'], *shape), np.float32)), place(np.zeros(job['batch'], np.int32))
    alone = seconds_alone(job, params, batch)
    step = step.lower(state, *batch).compile()  # not on the clock

    seconds, curve = [], []
    sizes = {name: job[name] for name in ('batch', 'seed', 'worker', 'num_workers')}
    stream = itertools.islice(batches(data['train_images'], data['train_labels'], **sizes), job['run_steps'])
    # A run that is timed has all its batches ready: a worker that must wait for another's would count that.
    for done, (inputs, labels) in enumerate(list(stream) if job['bandwidth'] else stream, 1):
        placed = jax.block_until_ready((place(inputs), place(labels)))
        begin = time.perf_counter()
        state = jax.block_until_ready(step(state, *placed))
        seconds.append(time.perf_counter() - begin)
        if done % job['eval_every'] == 0 or done == job['run_steps']:
            curve.append({'step': done} | evaluate(state))
    finish(job, params, {'curve': curve, 'seconds': seconds, 'alone': alone})


if __name__ == '__main__':
    main()
