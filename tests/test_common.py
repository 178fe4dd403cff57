"""Every optimizer of the table trains, keeps the form of its state, and at ratio 1 is plain optax."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optimizer_table import PRESETS, ROWS, plain, with_links
from sharded_workers import AUTO, mesh_of

import def_jax

SPECS = {'w': P('shard'), 'b': P()}
RNG = np.random.default_rng(0)
PARAMS = {'w': RNG.normal(size=(8, 4)).astype(np.float32), 'b': RNG.normal(size=4).astype(np.float32)}
BATCH = [RNG.normal(size=(16, n)).astype(np.float32) for n in (8, 4)]
VALUE = 3.0
UNTOLD = {*PRESETS, 'no optimizer inside'}  # whose workers have no optimizer that `told` could join


class Told(NamedTuple):
    value: jax.Array


def told():
    """Keeps the extra argument `value` in its state."""

    def update(updates, state, params=None, *, value, **extra_args):
        return updates, Told(jnp.asarray(value, jnp.float32))

    return optax.GradientTransformationExtraArgs(lambda params: Told(jnp.float32(0)), update)


def loss_fn(params, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params['w'] + params['b'] - targets) ** 2)


def form(tree):
    """All that a compiled step depends on."""
    leaves = [(jax.typeof(x), x.sharding) for x in jax.tree.leaves(tree)]  # shapes, dtypes, weak types
    return jax.tree.structure(tree), leaves


def distributed(name):
    """Two workers of two devices each; of one under `flatten`, which makes one vector of all parameters."""
    if name == 'flatten':
        mesh, specs = jax.make_mesh((2,), ('workers',), axis_types=(AUTO,), devices=jax.devices()[:2]), P()
    else:
        mesh, specs = mesh_of(2, 2), SPECS
    optimizer = PRESETS[name] if name in PRESETS else with_links(ROWS[name], inside=told())
    return def_jax.spmd(optimizer, mesh, specs)


@pytest.mark.parametrize('name', [*ROWS, *PRESETS])
def test_it_trains_compiled_once(name, caplog):
    dist = distributed(name)

    @jax.jit
    def step(params, state, batch):
        losses, grads = dist.value_and_grad(loss_fn)(params, state, batch)
        updates, state = dist.update(grads, state, params, value=VALUE)
        return optax.apply_updates(params, updates), state, losses.mean()

    narrow = ROWS[name].narrow if name in ROWS else jnp.bfloat16
    params = jax.device_put(PARAMS | {'b': PARAMS['b'].astype(narrow)}, dist.shardings)
    batch = jax.device_put(BATCH, NamedSharding(dist.mesh, P('workers')))
    state, losses, compilations = dist.init(params), [], []
    first = form((params, state))
    for _ in range(20):
        caplog.clear()
        with jax.log_compiles():
            params, state, loss = jax.block_until_ready(step(params, state, batch))
        compilations.append(len(caplog.records))
        losses.append(float(loss))
    assert form((params, state)) == first
    assert compilations[0] and not any(compilations[1:])
    assert losses[-1] < 0.8 * losses[0]
    def_jax.assert_replicated((params, state), None)
    values = [np.ravel(x) for _, x in optax.tree.get_all_with_path(state, 'value')]
    assert bool(values) == (name not in UNTOLD) and np.all(np.array(values) == VALUE)


@pytest.mark.parametrize('name', ROWS)
def test_one_worker_at_ratio_1_is_plain_optax(name):
    batches = [x.reshape(4, 4, -1) for x in BATCH]

    def train(optimizer, point):
        update = optax.with_extra_args_support(optimizer).update

        def step(carry, batch):
            params, state = carry
            grads = jax.grad(loss_fn)(point(params, state), batch)
            updates, state = update(grads, state, params, value=VALUE)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), batches)[1]

    @jax.jit
    def both():
        link = with_links(ROWS[name], axis_name=None, ratio=1)
        return train(link, def_jax.detached_params), train(plain(ROWS[name]), lambda params, state: params)

    chex.assert_trees_all_close(*both(), rtol=1e-6, atol=1e-6)
