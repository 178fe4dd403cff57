"""Weights of workers. The oracle, under every mapping: test_random_composition.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import P

import def_jax
from def_jax.options import weighting

CODES = optax.GradientTransformation(  # as of moments in eight bits
    lambda params: optax.tree.zeros_like(params, dtype=jnp.int8),
    lambda grads, codes, _: (grads, jax.tree.map(lambda x: x + jnp.int8(1), codes)),
)
INNER = optax.chain(CODES, optax.sgd(lambda count: 0.1 / (1 + count), momentum=0.9))
WEIGHTS = np.float32([1, 0, 3])


def make():
    return def_jax.error_feedback(def_jax.identity(), 'workers', inner=INNER)


def stepped(weights, grads):
    optimizer = make()

    def worker(grads, weight):
        x = jnp.zeros(4)
        _, state = optimizer.update(jnp.ones(4), optimizer.init(x), x)
        return optimizer.update(grads, state, x, weight=weight)

    return jax.jit(jax.vmap(worker, axis_name='workers'))(grads, weights)


def test_a_worker_without_weight_adds_nothing_and_keeps_its_moments():
    """Whatever its gradient is, as of an empty batch; a schedule counts on, as for all."""
    grads = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    grads[1] = np.nan
    updates, state = stepped(WEIGHTS, grads)
    fresh = -0.05 * (0.9 + grads)
    np.testing.assert_allclose(updates[0], (fresh[0] + 3 * fresh[2]) / 4, rtol=1e-5)
    assert (updates == updates[0]).all()
    codes, trace = [x for x in jax.tree.leaves(state.inner) if x.ndim == 2]
    np.testing.assert_allclose(trace, np.where(WEIGHTS[:, None] > 0, 0.9 + grads, 1), rtol=1e-6)
    assert codes[:, 0].tolist() == [2, 1, 2]
    (count,) = [x for x in jax.tree.leaves(state.inner) if x.dtype == jnp.int32]
    assert count.tolist() == [2, 2, 2]


def test_without_any_weight_nothing_is_added():
    updates, _ = stepped(0 * WEIGHTS, np.ones((3, 4), np.float32))
    assert not updates.any()


def test_a_misspelt_weight_is_refused():
    optimizer = optax.chain(make())
    with pytest.raises(ValueError, match='weights is unknown: write weight='):
        optimizer.update(jnp.ones(4), optimizer.init(jnp.ones(4)), jnp.ones(4), weights=1.0)


@pytest.mark.parametrize('weight', [np.nan, np.inf, -1])
def test_a_weight_that_is_none_is_noticed_as_nan(weight):
    """A mean over no tokens is NaN; without it, the others would be multiplied by K·w_k."""
    updates, _ = stepped(np.float32([1000, weight, 3000]), np.ones((3, 4), np.float32))
    assert np.isnan(updates).all()


def test_narrow_updates_are_weighted_without_a_bias():
    """A factor rounded to bfloat16, of 2/3 and 4/3, would be 0.2 % too large in every update."""
    updates = np.random.default_rng(0).uniform(1, 2, (2, 10_000)).astype(jnp.bfloat16)
    weighted = jax.vmap(lambda u, w: weighting.shares(w, 'workers', u)[0], axis_name='workers')
    found = np.asarray(jax.jit(weighted)(updates, np.float32([1, 2])), np.float64)
    np.testing.assert_allclose(found.mean(1), np.float64(updates).mean(1) * [2 / 3, 4 / 3], rtol=2e-4)


def test_spmd_weights_what_it_accumulates():
    """The gradient over all tokens of all calls, of which one may have none and a gradient of NaN."""
    mesh = jax.make_mesh((3,), ('workers',), devices=jax.devices()[:3])
    link = def_jax.error_feedback(def_jax.identity(), 'workers', inner=optax.sgd(0.1))
    dist = def_jax.spmd(link, mesh, accumulate=2)
    x = jax.device_put(jnp.zeros(4), jax.NamedSharding(mesh, P()))
    grads = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    weights, state = np.float32([[[1, 0, 3], [2, 0, 1]], [[0, 2, 3], [2, 5, 1]]]), dist.init(x)
    for calls, of_calls in zip(grads, weights, strict=True):
        for each, weight in zip(calls, of_calls, strict=True):
            given = np.where(weight[:, None] > 0, each, np.nan)
            updates, state = jax.jit(dist.update)(given, state, x, weight=weight)
        mean = np.einsum('iw,iwn->n', of_calls, calls) / of_calls.sum()
        np.testing.assert_allclose(updates, -0.1 * mean, rtol=1e-5)


def test_what_spmd_accumulates_keeps_its_types_with_x64():
    mesh = jax.make_mesh((3,), ('workers',), devices=jax.devices()[:3])
    with jax.enable_x64(True):
        dist, x = def_jax.spmd(make(), mesh, accumulate=2), jnp.zeros(4, jnp.float32)
        state = jax.eval_shape(dist.init, x)
        _, after = jax.eval_shape(dist.update, jnp.zeros((3, 4), jnp.float32), state, x)
    chex.assert_trees_all_equal_dtypes(state, after)


def test_spmd_takes_a_weight_for_every_worker():
    mesh = jax.make_mesh((3,), ('workers',), devices=jax.devices()[:3])
    dist, x = def_jax.spmd(make(), mesh), jnp.zeros(4)
    grads = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x = jax.device_put(x, jax.NamedSharding(mesh, P()))
    updates, _ = jax.jit(dist.update)(grads, dist.init(x), x, weight=WEIGHTS)
    np.testing.assert_allclose(updates, -0.1 * WEIGHTS @ grads / 4, rtol=1e-5)
    with pytest.raises(ValueError, match=r'weight is \(\), but must be \(3,\)'):
        dist.update(grads, dist.init(x), x, weight=1.0)


def test_the_dense_mean_is_weighted_as_well():
    """Alone, or beside a link of other tensors, where it left the weights out."""
    draw = np.random.default_rng(0)
    grads = {name: draw.normal(size=(3, 4)).astype(np.float32) for name in 'ab'}
    grads['b'][1] = np.nan  # of the worker without weight
    dense = optax.chain(def_jax.all_reduce_mean('workers'), optax.sgd(0.1))
    apart = optax.multi_transform({'sent': make(), 'dense': dense}, {'a': 'sent', 'b': 'dense'})
    for optimizer in (dense, apart):

        def worker(grads, weight, optimizer=optimizer):
            x = jax.tree.map(jnp.zeros_like, grads)
            return optimizer.update(grads, optimizer.init(x), x, weight=weight)[0]

        updates = jax.jit(jax.vmap(worker, axis_name='workers'))(grads, WEIGHTS)
        mean = -0.1 * (grads['b'][0] + 3 * grads['b'][2]) / 4
        np.testing.assert_allclose(updates['b'], [mean] * 3, rtol=1e-5)


@pytest.mark.parametrize(
    'link',
    [
        def_jax.ef21(def_jax.random_block(2), None),
        def_jax.baselines.ef21_sgdm(def_jax.random_block(2), None),
        def_jax.baselines.powersgd(2, None),
        def_jax.baselines.demo(2, None),
        def_jax.baselines.onebit_adam(None),
    ],
)
def test_links_that_take_a_plain_mean_refuse_a_weight(link):
    """They took it, and their means were those of equal batches."""
    link = optax.chain(link, optax.sgd(0.1))
    x = jnp.ones((4, 4))
    assert link.update(x, link.init(x), x, weight=None, value=1.0)[0].shape == x.shape
    with pytest.raises(ValueError, match=r'weight= has no effect on \w+State, .* K·w_k / Σ w'):
        link.update(x, link.init(x), x, weight=2.0)


def test_a_weight_that_does_not_reach_the_link_is_refused():
    """Another transformation around it takes no extra arguments, and optax drops them."""
    link = make()

    def update(grads, state, params=None):
        return link.update(grads, state, params)

    mesh = jax.make_mesh((3,), ('workers',), devices=jax.devices()[:3])
    dist = def_jax.spmd(optax.chain(optax.GradientTransformation(link.init, update)), mesh)
    x = jax.device_put(jnp.zeros(4), jax.NamedSharding(mesh, P()))
    dist.update(jnp.ones((3, 4)), dist.init(x), x)
    with pytest.raises(ValueError, match=r'weight= reaches no link: .*GradientTransformationExtraArgs'):
        dist.update(jnp.ones((3, 4)), dist.init(x), x, weight=WEIGHTS)


def test_a_weight_is_one_number():
    with pytest.raises(ValueError, match=r'weight has shape \(3,\), but must be a scalar'):
        make().update(jnp.ones(4), make().init(jnp.ones(4)), jnp.ones(4), weight=WEIGHTS)


def test_a_detach_that_is_put_into_the_state_stays_there():
    optimizer = def_jax.error_feedback(def_jax.random_block(2), None)
    state = optimizer.init(jnp.zeros(4))._replace(detach=jnp.float32(0.9))
    assert optimizer.update(jnp.ones(4), state)[1].detach == np.float32(0.9)
