"""Equinox's autoparallelism example, a perceptron that learns a rule from random inputs, with DEF.

    python examples/equinox_parallelism.py

Four workers, simulated on the CPU. A comment on each line that DEF changes says what it was. Needs equinox.
"""

import os

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.sharding as jshard
import numpy as np

import def_jax


def loss_fn(params, static, x, y):  # was: loss_fn(model, x, y)
    model = eqx.combine(params, static)  # was: nothing
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def make_optimizer(mesh):
    optim = def_jax.def_adamw(3e-3, 64, 'batch', weight_decay=0.0)  # was: optax.adam(3e-3)
    return def_jax.spmd(optim, mesh, axis_name='batch')  # was: optim


def make_train_step(optim):
    grad_fn = optim.at_points(jax.value_and_grad(loss_fn), split=(2, 3))  # was: eqx.filter_value_and_grad

    @eqx.filter_jit(donate='all-except-first')
    def train_step(xy, model, opt_state):
        params, static = eqx.partition(model, eqx.is_inexact_array)  # was: nothing
        losses, grads = grad_fn(params, opt_state, static, *xy)  # was: grad_fn(model, *xy)
        updates, opt_state = optim.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state, losses.mean()  # was: losses

    return train_step


def batches(seed, num_steps, size=256):
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        x = rng.uniform(-1, 1, (size, 8)).astype(np.float32)
        yield x, np.sin(3 * x[:, :1]) * x[:, 1:2]


def main(num_steps=1000):
    mesh = jax.make_mesh((4,), ('batch',), axis_types=(jshard.AxisType.Auto,))
    data = jshard.NamedSharding(mesh, jshard.PartitionSpec('batch'))
    replicated = jshard.NamedSharding(mesh, jshard.PartitionSpec())
    model = eqx.nn.MLP(8, 1, width_size=128, depth=2, key=jax.random.key(0))
    optim = make_optimizer(mesh)
    model = eqx.filter_shard(model, replicated)
    opt_state = optim.init(eqx.filter(model, eqx.is_inexact_array))
    train_step = make_train_step(optim)
    for xy in batches(0, num_steps):
        xy = eqx.filter_shard(xy, data)
        model, opt_state, loss = train_step(xy, model, opt_state)
        loss = float(loss)
    test = float(loss_fn(*eqx.partition(model, eqx.is_inexact_array), *next(batches(1, 1, 2048))))
    compiled = train_step.lower(xy, model, opt_state).compile()
    sent = sum(c.bytes for c in optim.check(compiled))
    print(f'loss {loss:.4f}, test loss {test:.4f}; between workers: {sent} bytes a step and device')
    return test


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
