"""One JAX worker of a run: dense SGD or DEF, by the variant's name."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import def_jax
from benchmarks.cluster import timing
from benchmarks.cluster.jax_side import AXIS, meet, mlp, on_workers, place, start
from benchmarks.time_to_accuracy.workload import FEATURES, HIDDEN, NUM_CLASSES, learning_rates, patches, train
from def_jax.mesh.spmd.at_points import detaches, point

_COMPILES = 2  # the first steps without communication, not counted
_TIMED_ALONE = 30 + _COMPILES


def init_params(num_patches: int, patch_size: int):
    """Gaussian weights of variance 2 / inputs, and of the last layer 0.01², biases of zero."""
    widths = [num_patches * FEATURES, *HIDDEN, NUM_CLASSES]
    pairs = [(patch_size, FEATURES), *itertools.pairwise(widths)]
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


def make_optimizer(job: dict, axis_name: str | None) -> optax.GradientTransformation:
    """By the variant: 'def64', the paper's; 'def_q64_2', DEF-Q in 2 bits; or one of the rivals."""
    variant, rates = job['variant'], jnp.asarray(learning_rates(job), jnp.float32)
    sgd = optax.sgd(lambda count: rates[count], momentum=0.9)
    if variant == 'dense':
        return optax.chain(def_jax.all_reduce_mean(axis_name), sgd)
    if variant == 'jax_powersgd':
        return optax.chain(def_jax.baselines.powersgd(1, axis_name, rank=4), sgd)
    if variant.startswith('def_q'):
        compression, bits = map(int, variant.removeprefix('def_q').split('_'))
        options: dict = {'bits': bits, 'seed': job['seed']}
        return def_jax.def_sgd(lambda count: rates[count], compression, axis_name, **options)
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


def make_evaluate(job: dict):
    """A function of the state to the test accuracy of x and, for DEF, of y; each worker counts a part."""
    data = np.load(job['data'])
    share = slice(job['worker'], None, job['num_workers'])
    images, labels = data['test_images'][share], data['test_labels'][share]
    inputs, total = place(patches(images)), len(data['test_labels'])

    def correct(params, inputs, labels):
        return lax.psum(jnp.sum(jnp.argmax(logits_of(params, inputs), axis=-1) == labels), AXIS)

    def accuracies(state, inputs, labels):
        params, opt_state = state
        found = {'x': correct(params, inputs, labels)}
        if detaches(opt_state):
            found['y'] = correct(def_jax.output_params(params, opt_state, AXIS), inputs, labels)
        return found

    mapped = on_workers(accuracies, donate=False)
    padded = np.full(-(-total // job['num_workers']), -1, np.int32)  # the same shape on every worker
    padded[: len(labels)] = labels
    if len(labels) < len(padded):
        inputs = place(np.concatenate([patches(images), patches(images[:1])]))
    where = place(padded)

    def evaluate(state) -> dict[str, float]:
        found = mapped(state, inputs, where)
        return {name: 100 * float(count.addressable_shards[0].data) / total for name, count in found.items()}

    return evaluate


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
    job = timing.read_job()
    start(job)
    example = patches(np.load(job['data'])['test_images'][:1])
    params = init_params(*example.shape[1:])
    step, optimizer = make_step(job, AXIS)
    holder = [place((params, optimizer.init(params)))]
    evaluate = make_evaluate(job)

    inputs = np.zeros((job['batch'], *example.shape[1:]), np.float32)
    batch = place(inputs), place(np.zeros(job['batch'], np.int32))
    alone = seconds_alone(job, params, batch)
    step = step.lower(holder[0], *batch).compile()  # not on the clock

    def advance(inputs, labels, index):
        del index
        holder[0] = jax.block_until_ready(step(holder[0], place(inputs), place(labels)))

    found = train(job, advance, lambda: evaluate(holder[0]))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    timing.write_report(job, found | {'params': size, 'alone': alone, 'version': jax.__version__})
    jax.distributed.shutdown()


if __name__ == '__main__':
    main()
