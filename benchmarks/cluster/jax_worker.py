"""One JAX worker: a process with one CPU device, connected to the others by gloo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import def_jax
from benchmarks.cluster import jax_side, timing
from benchmarks.cluster.jax_side import AXIS, Variant, on_workers, place
from benchmarks.cluster.workloads import LEARNING_RATE, MLP_SIZES, NUM_CLASSES, VGG16_STAGES, VGG_IMAGE
from def_jax.sharding.at_points import point
from def_jax.trainer.models.vgg import VGG


def make_model(job: dict):
    """Parameters, other state, and the loss function (params, other, batch) -> (loss, other)."""
    key = jax.random.key(0)
    if job['model'] == 'vgg16':
        return _make_vgg16(key)
    params = jax_side.mlp_params(key, MLP_SIZES[job['model']])

    def loss_fn(params, other, batch):
        inputs, labels = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(jax_side.mlp(params, inputs), labels)
        return losses.mean(), other

    return params, (), loss_fn


def _make_vgg16(key):
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


def make_steps(job: dict, loss_fn):
    """For each variant, its step and the function that initialises its optimizer's state."""
    sgd = optax.sgd(LEARNING_RATE, momentum=0.9)
    take_grads = jax.grad(loss_fn, has_aux=True)

    def compute(state, batch):
        params, _, other = state
        grads, other = take_grads(params, other, batch)
        return params, grads, other  # the gradients overwrite the previous ones, as in PyTorch

    def message(state, batch):
        del batch
        params, block, other = state
        return params, lax.pmean(block, AXIS), other

    def block(params):
        return jnp.zeros(def_jax.message_size(def_jax.random_block(64), params))

    def train(optimizer):
        def step(state, batch):
            params, opt_state, other = state
            grads, other = take_grads(point(params, opt_state), other, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, other

        return step, optimizer.init

    def feedback(ratio, axis_name=AXIS, **options):
        return train(def_jax.error_feedback(def_jax.random_block(ratio), axis_name, inner=sgd, **options))

    def def_q(compression, bits, axis_name=AXIS, **options):
        return train(def_jax.def_sgd(LEARNING_RATE, compression, axis_name, bits=bits, **options))

    return {
        'compute': (compute, functools.partial(jax.tree.map, jnp.zeros_like)),
        'message64': (message, block),
        'local_sgd': train(sgd),
        'local_def64': feedback(64, None),
        'dense': train(optax.chain(def_jax.all_reduce_mean(AXIS), sgd)),
        'def64': feedback(64),
        'def256': feedback(256),
        'def64_overlap': feedback(64, overlap=True),
        **{f'def_q{c}_{bits}': def_q(c, bits) for c in (64, 256) for bits in (1, 2, 4)},
        **{f'local_def_q{c}_2': def_q(c, 2, None) for c in (64, 256)},
        'def_q64_2_overlap': def_q(64, 2, overlap=True),
    }


def main() -> None:
    job = timing.read_job()
    jax_side.start(job)
    barrier = jax_side.meet()
    params, other, loss_fn = make_model(job)
    batch = make_batch(job)
    variants = {
        name: Variant(on_workers(step), place((params, init(params), other)), place(batch))
        for name, (step, init) in make_steps(job, loss_fn).items()
        if name in job['variants']
    }
    found = timing.measure(variants, barrier, job)
    for name, variant in variants.items():
        sent = variant.sent()
        found[name]['hlo'] = {
            'collectives': [c.operation for c in sent],
            'bytes': sum(c.bytes for c in sent),
            'wire_bytes': jax_side.wire_bytes(sent, job['num_workers']),
        }
    jax_side.finish(job, params, {'variants': found})


if __name__ == '__main__':
    main()
