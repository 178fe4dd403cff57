"""An exponential moving average of the parameters: of x, which all workers share, so nothing is sent for it.

    python examples/recipes/ema.py

Three models come out of one run: x, DEF's y (x and the mean of what still waits), and the average of x.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax

DECAY = 0.98  # of a step; about the last 50 count


def logits(params, images):
    return jax.nn.relu(images @ params['in']) @ params['out']


def loss_fn(params, batch):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def main(num_steps=400):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    mesh = jax.make_mesh((jax.device_count(),), ('workers',))
    dist = def_jax.spmd(def_jax.def_sgd(0.2, 64, 'workers'), mesh)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def train_step(params, ema, opt_state, batch):
        _, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        wide = optax.tree.cast(params, jnp.float32)  # bfloat16 would round what is added
        return params, optax.incremental_update(wide, ema, 1 - DECAY), opt_state

    params = {'in': rng.normal(size=(64, 128)) / 8, 'out': rng.normal(size=(128, 10)) / 11}
    params = jax.device_put(jax.tree.map(np.float32, params), dist.shardings)
    ema = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)  # copies, which a step may donate
    opt_state = dist.init(params)
    for _ in range(num_steps):
        rows = rng.integers(0, 1000, 64)
        batch = images[rows], labels[rows]
        params, ema, opt_state = jax.block_until_ready(train_step(params, ema, opt_state, batch))
    dist.check(train_step.lower(params, ema, opt_state, batch).compile())
    y = dist.output_params(params, opt_state)  # one dense all-reduce
    for name, model in ('x', params), ('y', y), ('the average of x', ema):
        loss = float(loss_fn(model, (images[1000:], labels[1000:])))
        accuracy = float((logits(model, images[1000:]).argmax(-1) == labels[1000:]).mean())
        print(f'{name}: test loss {loss:.3f}, accuracy {accuracy:.3f}')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
