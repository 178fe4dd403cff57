"""What optax asks of its own optimizers, asked of `def_sgd` and `def_adamw`; see also test_composition.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax

OPTIMIZERS = {
    'def_sgd': functools.partial(def_jax.def_sgd, ratio=2, axis_name=None),
    'def_adamw': functools.partial(def_jax.def_adamw, ratio=2, axis_name=None, weight_decay=0.0),
}
RATES = {'def_sgd': 0.002, 'def_adamw': 0.01}


def parabola(x):
    return jnp.sum((x - jnp.array([0.3, -1.2], x.dtype)) ** 2)


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize(('loss', 'minimum'), [(parabola, (0.3, -1.2)), (rosenbrock, (1.0, 1.0))])
def test_converges(name, loss, minimum):
    optimizer = OPTIMIZERS[name](optax.cosine_decay_schedule(RATES[name], 4000))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            point = def_jax.detached_params(params, state)
            updates, state = optimizer.update(jax.grad(loss)(point), state, point)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=4000)
        return params, def_jax.output_params(params, state, None)

    for answer in run(jnp.array([-0.5, 1.0])):
        np.testing.assert_allclose(answer, minimum, atol=0.02)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_updates_and_state_lie_where_the_parameters_do(name):
    mesh = jax.make_mesh((2,), ('x',), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    optimizer = OPTIMIZERS[name](0.1)
    with jax.set_mesh(mesh):
        params = jax.device_put({'w': jnp.ones((8, 4))}, NamedSharding(mesh, P('x')))
        state = jax.jit(optimizer.init)(params)
        updates, after = jax.jit(optimizer.update)(params, state, params)
    specs = [
        jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree) for tree in (params, updates, state, after)
    ]
    assert specs[0] == specs[1] and specs[2] == specs[3]
    assert optax.tree.get(specs[2], 'residual')['w'] == P('x', None)
