"""A trainer in miniature: four workers under `jax.pmap`, and its program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compressing import feedback

import def_jax

NUM_WORKERS = 4
PARAMS = {'w': jnp.linspace(0.5, 1.5, 128).reshape(16, 8), 'b': jnp.ones(8)}
DATA = np.random.default_rng(0).normal(size=(NUM_WORKERS, 12, 4, 16)).astype(np.float32)
DEVICES = jax.devices()[:NUM_WORKERS]


def wrapper(ratio=4, inner=None, **options):
    return feedback(ratio, inner=inner or optax.adam(0.01), **options)


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch @ params['w']) + params['b'] - batch[:, :8]) ** 2)


def plain_step(optimizer, params, state, batch, change=lambda grads: grads):
    grads = change(jax.grad(loss_fn)(def_jax.detached_params(params, state), batch))
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def stacked(tree):
    return jax.tree.map(lambda x: jnp.stack([x] * NUM_WORKERS), tree)


def train(optimizer, steps=6, step=plain_step, axes=0, **options):
    mapped = functools.partial(step, optimizer, **options)
    mapped = jax.pmap(mapped, 'workers', in_axes=(axes, axes, 0), out_axes=axes, devices=DEVICES)
    carry = PARAMS, optimizer.init(PARAMS)
    carry = carry if axes is None else stacked(carry)
    for t in range(steps):
        carry = jax.block_until_ready(mapped(*carry, DATA[:, t]))
    return carry


def compiled(step, *arguments):
    return jax.pmap(step, 'workers', devices=DEVICES).lower(*arguments).compile()


def averaged(grads):
    return jax.lax.pmean(grads, 'workers')
