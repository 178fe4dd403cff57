"""An existing data-parallel training loop with three lines changed: plain JAX, AdamW, no Flax.

    python examples/mlp.py

A comment on each changed line shows what it was before.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax

NUM_WORKERS = 8

optimizer = def_jax.def_adamw(3e-3, 64, axis_name='workers')  # was: optax.adamw(3e-3)


def init_params(key):
    first, second = jax.random.split(key)
    return {
        'hidden': {'w': jax.random.normal(first, (64, 128)) * 64**-0.5, 'b': jnp.zeros(128)},
        'logits': {'w': jax.random.normal(second, (128, 10)) * 128**-0.5, 'b': jnp.zeros(10)},
    }


def predict(params, images):
    hidden = jax.nn.relu(images @ params['hidden']['w'] + params['hidden']['b'])
    return hidden @ params['logits']['w'] + params['logits']['b']


def loss_fn(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(predict(params, images), labels).mean()


@functools.partial(jax.pmap, axis_name='workers', in_axes=0, out_axes=0, donate_argnums=(0, 1))
def train_step(params, opt_state, images, labels):
    point = def_jax.detached_params(params, opt_state)  # was: point = params
    grads = jax.grad(loss_fn)(point, images, labels)  # was: jax.lax.pmean(jax.grad(...)(...), 'workers')
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def main(num_steps=600):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    train, test = slice(0, 1000), slice(1000, None)

    params = init_params(jax.random.key(0))
    state = jax.pmap(lambda _: (params, optimizer.init(params)))(np.arange(NUM_WORKERS))
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        batch = rng.integers(0, 1000, (NUM_WORKERS, 16))
        state = train_step(*state, images[train][batch], labels[train][batch])
        jax.block_until_ready(state)  # only because these fake devices share few cores

    params = jax.tree.map(lambda x: x.addressable_shards[0].data[0], state[0])  # the same on all workers
    accuracy = np.mean(predict(params, images[test]).argmax(-1) == labels[test])
    compiled = train_step.lower(*state, images[train][batch], labels[train][batch]).compile()
    sent = sum(c.bytes for c in def_jax.check(compiled, optimizer, params))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(f'{sent} bytes a step to other workers, of {total}; test accuracy {100 * accuracy:.1f} %')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', NUM_WORKERS)
    main()
