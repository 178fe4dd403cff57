"""Clipping and logging of the gradient's norm, where every worker has another gradient.

    python examples/recipes/gradient_norm.py

A worker's gradient is longer than the mean, by its noise. The root mean square of the workers' norms is one
number, the same on all, for four bytes. The norm of the mean takes a dense all-reduce: a program of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax

MAX_NORM = 2.0


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params['in']) @ params['out']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def rms_norm(grads, axis_name):
    """The root mean square of the norms of all workers' gradients, in float32."""
    norm = optax.global_norm(optax.tree.cast(grads, jnp.float32))
    return jnp.sqrt(jax.lax.pmean(norm**2, axis_name))


def clip_by_rms_norm(max_norm, axis_name):
    """Scales the gradients of all workers by one factor, so their mean keeps its direction."""

    def update_fn(grads, state, params=None):
        scale = jnp.minimum(1.0, max_norm / rms_norm(grads, axis_name))
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads), state

    return optax.GradientTransformation(optax.init_empty_state, update_fn)


optimizer = optax.chain(
    clip_by_rms_norm(MAX_NORM, 'workers'),  # or optax.clip_by_global_norm: each worker its own
    def_jax.def_adamw(3e-3, 64, 'workers'),
)


@functools.partial(jax.pmap, axis_name='workers')
def train_step(params, opt_state, batch):
    grads = jax.grad(loss_fn)(def_jax.detached_params(params, opt_state), batch)
    norm = rms_norm(grads, 'workers')
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, norm


@functools.partial(jax.pmap, axis_name='workers')
def norm_of_mean(params, opt_state, batch):  # every hundred steps
    grads = jax.grad(loss_fn)(def_jax.detached_params(params, opt_state), batch)
    return optax.global_norm(jax.lax.pmean(grads, 'workers'))


def main(num_steps=300):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    start = {'in': rng.normal(size=(64, 128)) / 8, 'out': rng.normal(size=(128, 10)) / 11}
    start = jax.tree.map(np.float32, start)
    params, opt_state = jax.pmap(lambda _: (start, optimizer.init(start)))(np.arange(jax.device_count()))
    for step in range(num_steps):
        rows = rng.integers(0, 1400, (jax.device_count(), 16))
        batch = images[rows], labels[rows]
        if step % 100 == 0:
            mean = float(norm_of_mean(params, opt_state, batch)[0])
        params, opt_state, norm = jax.block_until_ready(train_step(params, opt_state, batch))
        if step % 100 == 0:
            print(f'step {step}: norm {float(norm[0]):.3f} of the workers, {mean:.3f} of their mean')
    def_jax.check(train_step.lower(params, opt_state, batch).compile(), optimizer, start, 'workers')
    loss = loss_fn(jax.tree.map(lambda x: x[0], params), (images[1400:], labels[1400:]))
    print(f'test loss {float(loss):.3f}')
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
