"""What follows a link, or lies around it, sees x: copies of x stay alike. See also test_common.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_workers import AUTO, EXPLICIT, mesh_of, step_of

import def_jax

PARAMS = {'w': jnp.linspace(0.5, 1.5, 32).reshape(8, 4), 'b': jnp.full(4, 0.1, jnp.float32)}
GRADS = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), PARAMS)
SGD = optax.sgd(0.3, momentum=0.9)
SPECS = {'w': P('shard'), 'b': P()}
BATCH = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch @ params['w'] + params['b']) - 1) ** 2)


def explicit_loss(params, batch):
    return loss_fn(jax.sharding.reshard(params, P()), batch)


def spmd(optimizer, kind=AUTO, sizes=(2, 4), specs=SPECS):
    return def_jax.spmd(optimizer, mesh_of(*sizes, kind), specs)


def train(dist, steps=4):
    params = jax.device_put(PARAMS, dist.shardings)
    state, step = dist.init(params), jax.jit(step_of(dist, loss_fn))
    batch = jax.device_put(BATCH, NamedSharding(dist.mesh, P('workers')))
    for _ in range(steps):
        params, state, _ = jax.block_until_ready(step(params, state, batch))
    return params, state


def test_what_follows_the_link_is_taken_at_x():
    rate = 0.05
    dist = spmd(optax.chain(feedback(inner=SGD, detach=1.0), optax.add_decayed_weights(-rate)))
    plain = spmd(feedback(inner=SGD, detach=1.0))
    state = optax.tree.set(dist.init(PARAMS), residual=GRADS)  # so that the detached point is elsewhere
    updates, _ = dist.update(GRADS, state, PARAMS)
    sent, _ = plain.update(GRADS, state[0], PARAMS)
    jax.tree.map(
        lambda u, s, x: np.testing.assert_allclose(u, s - rate * x, rtol=1e-5, atol=1e-7),
        updates,
        sent,
        PARAMS,
    )


def test_a_single_worker_of_several_devices():
    """Nothing is reduced or gathered over an axis of one."""
    onebit_adam = def_jax.baselines.onebit_adam('workers', freeze_after=2)
    train(spmd(optax.chain(onebit_adam, optax.scale(-0.1)), sizes=(1, 4)), 2)
    dist = spmd(feedback(inner=SGD, bits=2), sizes=(1, 4))
    params, state = train(dist, 2)
    dist.output_params(params, state)
    dist.map(lambda p, s: def_jax.diagnostics.error_statistics(s, 'workers'))(params, state)


def test_a_learning_rate_set_by_hand():
    factory = optax.inject_hyperparams(def_jax.def_adamw, static_args=('compression', 'bits', 'seed'))
    dist = spmd(factory(0.1, compression=32, axis_name='workers'))
    state = dist.init(PARAMS)
    state.hyperparams['learning_rate'] = jnp.float32(0)
    updates, _ = dist.update(GRADS, state, PARAMS)
    assert not np.any(updates['w'])


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_arrays_may_lie_anywhere(kind):
    """States and parameters restored as NumPy arrays, gradients on one device, states of another mesh."""
    dist = spmd(feedback(inner=SGD), kind)
    params, state = jax.tree.map(np.asarray, (PARAMS, dist.init(PARAMS)))
    _, grads = dist.value_and_grad(explicit_loss if kind == EXPLICIT else loss_fn)(params, state, BATCH)
    grads = jax.device_put(jax.tree.map(np.asarray, grads), jax.devices()[0])
    updates, state = dist.update(grads, state, params)
    assert np.any(updates['w'])
    assert state.residual['w'].sharding.spec[:2] == ('workers', 'shard')
    four = spmd(feedback(inner=SGD), kind, (4, 2))
    for where in (state, jax.tree.map(np.asarray, state)):
        grouped = four.regroup(PARAMS, where)
        mean = np.mean(state.residual['w'], axis=0)
        np.testing.assert_allclose(grouped.residual['w'], np.stack([mean] * 4), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('params', [jnp.ones(2), {'energy': jnp.ones(2)}], ids=['bare', 'namesake'])
def test_a_number_is_not_a_parameter_of_its_shape(params):
    """Nor of its name: the key and the energy of 'auto' are whole on every device."""
    optimizer = feedback(inner=SGD, detach='auto', bits=8, outer=optax.sgd(1.0, 0.9))
    state = def_jax.state_specs(optimizer, params, P('shard'))
    assert {state.key, *state.energy} == {P()}
    assert jax.tree.leaves(state.residual) == [P('workers', 'shard')]
    assert jax.tree.leaves(state.outer) == [P('shard')]
    dist = spmd(optimizer, sizes=(2, 2), specs=P('shard'))
    stacked = jax.tree.map(lambda p: jnp.ones((2, *p.shape)), params)
    jax.eval_shape(dist.update, stacked, jax.eval_shape(dist.init, params), params)


def test_eager_calls_trace_a_loss_once_each():
    dist, traces = spmd(feedback(inner=SGD)), []
    params = jax.device_put(PARAMS, dist.shardings)
    state = dist.init(params)

    def loss(params, batch):
        traces.append(scale)
        return scale * loss_fn(params, batch)

    losses = {}
    for scale in (1.0, 3.0):
        value_and_grad = dist.value_and_grad(loss)
        for _ in range(2):
            values, grads = value_and_grad(params, state, BATCH)
            dist.update(grads, state, params)
        losses[scale] = float(values[0])
    assert losses[3.0] == pytest.approx(3 * losses[1.0], rel=1e-5) and len(traces) <= 4
    assert set(traces) == {1.0, 3.0}
