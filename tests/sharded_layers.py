"""Two layers on two workers of four devices, and the optimizer that trains them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compressing import feedback
from jax.sharding import PartitionSpec as P
from sharded_workers import AUTO, mesh_of

import def_jax

SPECS = {'in': P(None, 'shard'), 'out': P('shard')}
BATCH = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def make_params():
    rng = np.random.default_rng(1)
    return {
        'in': jnp.asarray(rng.normal(size=(8, 64)), jnp.float32),
        'out': jnp.asarray(rng.normal(size=(64, 8)), jnp.float32),
    }


def spmd(optimizer=None, kind=AUTO, specs=SPECS, **options):
    optimizer = optimizer or feedback(inner=optax.sgd(0.01, momentum=0.9))
    return def_jax.spmd(optimizer, mesh_of(2, 4, kind), specs, **options)


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch @ params['in']) @ params['out'] - batch) ** 2)


def initial(dist):
    """The parameters in their places, and the first state."""
    params = jax.device_put(make_params(), dist.shardings)
    return params, dist.init(params)
