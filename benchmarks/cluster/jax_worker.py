"""One JAX worker: a process with one CPU device, connected to the others by gloo."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import def_jax
from benchmarks.cluster import timing
from benchmarks.cluster.workloads import LEARNING_RATE, MLP_SIZES, NUM_CLASSES, VGG16_STAGES, VGG_IMAGE
from def_jax.mesh.hlo import collectives

AXIS = 'workers'


def make_model(job: dict):
    """Parameters, other state, and the loss function (params, other, batch) -> (loss, other)."""
    key = jax.random.key(0)
    if job['model'] == 'vgg16':
        return _make_vgg16(key)
    sizes = MLP_SIZES[job['model']]
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = list(itertools.pairwise(sizes))
    params = [
        {'w': jax.random.normal(k, pair) * (2 / pair[0]) ** 0.5, 'b': jnp.zeros(pair[1])}
        for k, pair in zip(keys, pairs, strict=True)
    ]

    def loss_fn(params, other, batch):
        x, labels = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer['w'] + layer['b'])
        logits = x @ params[-1]['w'] + params[-1]['b']
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), other

    return params, (), loss_fn


def _make_vgg16(key):
    from def_jax.trainer.models.vgg import VGG

    model = VGG(stages=(*VGG16_STAGES, ()), num_classes=NUM_CLASSES)  # as in torch_worker: one dense layer
    variables = jax.jit(functools.partial(model.init, train=False))(key, jnp.zeros((1, *VGG_IMAGE)))

    def loss_fn(params, statistics, batch):
        images, labels = batch
        variables = {'params': params, 'batch_stats': statistics}
        logits, changed = model.apply(variables, images, train=True, mutable=['batch_stats'])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, changed['batch_stats']

    return variables['params'], variables['batch_stats'], loss_fn


def make_batch(job: dict):
    rng = np.random.default_rng(job['worker'])
    shape = VGG_IMAGE if job['model'] == 'vgg16' else MLP_SIZES[job['model']][:1]
    inputs = rng.standard_normal((job['batch'], *shape), np.float32)
    return inputs, rng.integers(0, NUM_CLASSES, job['batch'], np.int32)


def on_workers(function):
    """Maps the function over workers, each with its own arrays.

    To the program these are copies of one replicated array, which it never compares. Stacked over workers
    instead, they would be copied into and out of the step.
    """
    mesh = jax.sharding.Mesh(jax.devices(), (AXIS,))
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def place(tree):
    """This worker's arrays, as `on_workers` expects them."""
    mesh = jax.sharding.Mesh(jax.devices(), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    (device,) = jax.local_devices()

    def put(x):
        x = jnp.array(x)  # variants donate their states, so they must not share arrays
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [jax.device_put(x, device)])

    return jax.tree.map(put, tree)


class Variant:
    """A compiled step and the state that it carries."""

    def __init__(self, step, state, batch):
        self._state, self._batch = place(state), place(batch)
        mapped = jax.jit(on_workers(step), donate_argnums=0)
        self._step = mapped.lower(self._state, self._batch).compile()
        self.hlo = self._step.as_text()

    def __call__(self) -> None:
        self._state = self._step(self._state, self._batch)
        jax.block_until_ready(self._state)


def make_steps(job: dict, loss_fn):
    """For each variant, its step and the function that initialises its optimizer's state."""
    sgd, plain = (optax.sgd(LEARNING_RATE, momentum=momentum) for momentum in (0.9, None))
    take_grads = jax.grad(loss_fn, has_aux=True)

    def compute(state, batch):
        params, _, other = state
        grads, other = take_grads(params, other, batch)
        return params, grads, other  # the gradients overwrite the previous ones, as in PyTorch

    def train(optimizer, average: bool):
        def step(state, batch):
            params, opt_state, other = state
            grads, other = take_grads(params, other, batch)
            if average:
                grads = lax.pmean(grads, AXIS)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, other

        return step, optimizer.init

    def feedback(ratio, axis_name=AXIS, sgd=sgd, **options):
        compressor = def_jax.random_block(ratio)
        optimizer = optax.chain(sgd, def_jax.error_feedback(compressor, axis_name, **options))

        def step(state, batch):
            params, opt_state, other = state
            point = def_jax.detached_params(params, opt_state)
            grads, other = take_grads(point, other, batch)
            updates, opt_state = optimizer.update(grads, opt_state, point)
            return optax.apply_updates(params, updates), opt_state, other

        return step, optimizer.init

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    return {
        'compute': (compute, zeros),
        'local_sgd': train(sgd, average=False),
        'local_def64': feedback(64, None),
        'local_def64_m0': feedback(64, None, plain),
        'dense': train(sgd, average=True),
        'def64': feedback(64),
        'def64_m0': feedback(64, sgd=plain),
        'def256': feedback(256),
        'def256_m0': feedback(256, sgd=plain),
        'def_a64_bf16': feedback(64, wire_dtype=jnp.bfloat16),
    }


def main() -> None:
    job = timing.read_job()
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(job['address'], job['num_workers'], job['worker'])
    params, other, loss_fn = make_model(job)
    batch = make_batch(job)
    variants: dict[str, Any] = {}
    for name, (step, init) in make_steps(job, loss_fn).items():
        if name in job['variants']:
            variants[name] = Variant(step, (params, init(params), other), batch)
    ones, total = place(np.ones(1, np.float32)), jax.jit(on_workers(lambda x: lax.psum(x, AXIS)))
    found = timing.measure(variants, lambda: jax.block_until_ready(total(ones)), job)
    for name, variant in variants.items():
        sent = collectives(variant.hlo)
        found[name]['hlo'] = {'all_reduces': len(sent), 'bytes': sum(c.bytes for c in sent)}
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    timing.write_report(job, {'variants': found, 'params': count, 'version': jax.__version__})
    jax.distributed.shutdown()


if __name__ == '__main__':
    main()
