"""A Flax `TrainState` under `jax.pmap`, on scikit-learn's digits; `apply_gradients` is Flax's own.

    python examples/pmap_train_state.py

What differs from the dense trainer:

    -    tx = optax.sgd(0.05, momentum=0.9)
    +    tx = def_jax.def_sgd(0.05, 64, 'batch')

    -    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    -    grads = jax.lax.pmean(grads, 'batch')
    +    point = def_jax.detached_params(state.params, state.opt_state)
    +    loss, grads = jax.value_and_grad(loss_fn)(point, batch)
"""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import jax_utils
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import def_jax

model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])


def loss_fn(params, batch):
    images, labels = batch
    logits = model.apply({'params': params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def create_train_state(images):
    params = model.init(jax.random.key(0), images)['params']
    tx = def_jax.def_sgd(0.05, 64, 'batch')
    return TrainState.create(apply_fn=model.apply, params=params, tx=tx)


@functools.partial(jax.pmap, axis_name='batch', donate_argnums=(0,))
def train_step(state, batch):
    point = def_jax.detached_params(state.params, state.opt_state)
    loss, grads = jax.value_and_grad(loss_fn)(point, batch)
    # was: grads = jax.lax.pmean(grads, 'batch')
    return state.apply_gradients(grads=grads), jax.lax.pmean(loss, 'batch')


def main(num_steps=600):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    state, rng = create_train_state(images), np.random.default_rng(0)
    params, tx = state.params, state.tx
    state = jax_utils.replicate(state)

    def batch():
        rows = rng.integers(0, 1400, (jax.device_count(), 16))
        return images[rows], labels[rows]

    sent = def_jax.check(train_step.lower(state, batch()).compile(), tx, params, 'batch')
    for _ in range(num_steps):
        state, loss = jax.block_until_ready(train_step(state, batch()))
    params = jax_utils.unreplicate(state.params)
    accuracy = float((model.apply({'params': params}, images[1400:]).argmax(-1) == labels[1400:]).mean())
    print(f'loss {float(loss[0]):.3f}, test accuracy {accuracy:.3f}')
    print(f'between workers: {sum(c.bytes for c in sent)} bytes a step and device')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
