"""Workers of several devices: the NumPy oracle with its blocks in the devices' shards, and other meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_baselines as oracles
from compressing import masks
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from perceptron import (
    INITIAL,
    LEARNING_RATES,
    START,
    TOLERANCE,
    flat,
    gradient,
    learning_rate,
    loss_fn,
    mlp_data,
)
from sharded_workers import AUTO, EXPLICIT, LAYOUTS, distributed, feedback, make_mesh, mesh_of, step_of

import def_jax

NUM_STEPS = 10
SGD = optax.sgd(learning_rate, momentum=0.9)


def gathered_loss(params, batch):
    """The loss under Explicit axes, where FSDP is a matter of the types."""
    return loss_fn(jax.sharding.reshard(params, P()), batch)


def on_one_device(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def train(dist, loss_fn=loss_fn, has_output=True):
    """x and y after 0, ..., T steps, each [T + 1, d], and the last state; without an output, y is x."""
    batches = mlp_data(dist.num_workers)
    step = jax.jit(step_of(dist, loss_fn), donate_argnums=(0, 1))
    output = jax.jit(dist.output_params) if has_output else lambda params, _: params
    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    state, found = jax.jit(dist.init)(params), []
    for t in range(NUM_STEPS + 1):
        found.append([flat(on_one_device(z)) for z in (params, output(params, state))])
        if t < NUM_STEPS:
            batch = [x[:, t].reshape(-1, x.shape[-1]) for x in batches]
            params, state, _ = step(params, state, batch)
    return *np.stack(found, axis=1), state


def shard_masks(layout, compressor):
    """What multiplies p at every step, [T, d]: the same block in each device's shard."""
    specs = LAYOUTS[layout][2]
    shapes = [
        NamedSharding(make_mesh(layout), s).shard_shape(x.shape) for x, s in zip(INITIAL, specs, strict=True)
    ]
    sent = masks(compressor, [jnp.ones(shape) for shape in shapes], NUM_STEPS, jax.random.PRNGKey(0))
    tiled = [
        np.tile(mask, (1, *(n // part for n, part in zip(x.shape, shape, strict=True))))
        for mask, x, shape in zip(sent, INITIAL, shapes, strict=True)
    ]
    return np.concatenate([mask.reshape(NUM_STEPS, -1) for mask in tiled], axis=1).astype(np.float64)


def problem(layout, num_workers, compressor):
    """What oracles are given, with the blocks of the devices' shards."""
    return START, gradient(num_workers), shard_masks(layout, compressor), LEARNING_RATES[:NUM_STEPS]


def residuals(state):
    own = on_one_device(optax.tree.get(state, 'residual'))
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in own], axis=1)


@pytest.mark.parametrize(
    ('layout', 'kind', 'compressor', 'options'),
    [
        ('8x1', AUTO, def_jax.random_block(4), {}),
        ('(2x2)x2', EXPLICIT, def_jax.random_block(4, order='shuffled'), {'average_every': 3}),
        ('2x2x2', AUTO, def_jax.random_block(3, allocation='balanced'), {'detach': 1.0}),
    ],
)
def test_equals_the_oracle(layout, kind, compressor, options):
    """Weight decay inside is taken at the detached point, also if something follows."""
    decay = 0.05
    inner = optax.chain(optax.add_decayed_weights(decay), SGD)
    optimizer = optax.chain(feedback(layout, compressor, inner=inner, **options), optax.identity())
    dist = distributed(layout, optimizer, kind)
    x, y, state = train(dist, gathered_loss if kind == EXPLICIT else loss_fn)
    expected = reference.algorithm_1(
        *problem(layout, dist.num_workers, compressor),
        num_workers=dist.num_workers,
        **{'detach': 0.3, 'momentum': 0.9, 'weight_decay': decay} | options,
    )
    np.testing.assert_allclose(x, expected.x, **TOLERANCE)
    np.testing.assert_allclose(y, expected.y, **TOLERANCE)
    np.testing.assert_allclose(-residuals(state), expected.e[-1], **TOLERANCE)


def test_each_element_counts_once_in_the_energies_of_lambda():
    """On however many devices it lies; exact where all elements of a tensor are equal."""
    dist = distributed('2x4', feedback('2x4', def_jax.random_block(3), detach='auto'))
    values = np.random.default_rng(0).normal(size=(len(INITIAL), 2)).astype(np.float32)
    updates = [np.stack([np.full(x.shape, v) for v in pair]) for x, pair in zip(INITIAL, values, strict=True)]
    params = [jnp.asarray(x) for x in INITIAL]
    _, state = dist.update(updates, dist.init(params), params)
    sizes = np.array([x.size for x in INITIAL])
    expected = np.array([sizes @ values.mean(1) ** 2, sizes @ (values**2).mean(1)])
    energy = np.asarray(optax.tree.get(state, 'energy'))
    np.testing.assert_allclose(energy / energy[1], expected / expected[1], rtol=1e-5)


POWERSGD = def_jax.baselines.powersgd(4, 'workers', rank=1)  # knows no shards, and sees whole tensors


@pytest.mark.parametrize(
    ('link', 'oracle'),
    [
        (def_jax.all_reduce_mean('workers'), lambda: lambda grads: grads.mean(0)),
        (
            POWERSGD,
            lambda: oracles.powersgd(reference.MLP_SHAPES, 1, map(np.array, POWERSGD.init(INITIAL).carry)),
        ),
        pytest.param(
            def_jax.ef21(def_jax.random_block(4), 'workers'),
            lambda: oracles.ef21_sgdm(shard_masks('2x4', def_jax.random_block(4)), averaging=1.0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=['dense', 'powersgd', 'ef21'],
)
def test_other_links_equal_their_oracles(link, oracle):
    x = train(distributed('2x4', optax.chain(link, SGD)), has_output=False)[0]
    problem = START, gradient(2), oracle(), LEARNING_RATES[:NUM_STEPS]
    np.testing.assert_allclose(x, oracles.train(*problem, num_workers=2, momentum=0.9), **TOLERANCE)


def filled(dist):
    """Parameters, and a state in which every worker has numbers of its own."""
    state, rng = dist.init([jnp.asarray(x) for x in INITIAL]), np.random.default_rng(0)

    def leaf(x):
        own = x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)
        return rng.normal(size=x.shape).astype(x.dtype) if own else x

    state = jax.tree.map(leaf, state)
    return jax.device_put((list(INITIAL), state), (dist.shardings, dist.state_shardings(list(INITIAL))))


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_diagnostics_run_on_every_worker(kind):
    optimizer = feedback('2x4', def_jax.random_block(4), inner=optax.adam(0.01))
    dist = distributed('2x4', optimizer, kind)
    params, state = filled(dist)

    def observe(params, state, batch):
        def_jax.assert_replicated((params, optax.tree.get(state, 'key')), 'workers')
        _, inputs = jax.value_and_grad(lambda x: jnp.sum(x**2))(batch)
        return def_jax.diagnostics.error_statistics(state, 'workers'), inputs

    statistics, doubled = jax.jit(dist.map(observe))(params, state, jnp.arange(4.0))
    jax.effects_barrier()
    own = residuals(state).astype(np.float64)
    np.testing.assert_allclose(statistics['error'], [np.sum(own**2) / 2] * 2, rtol=1e-5)
    np.testing.assert_allclose(statistics['mean_error'], [np.sum(own.mean(0) ** 2)] * 2, rtol=1e-5)
    np.testing.assert_array_equal(doubled, [[0, 2], [4, 6]])
    def_jax.assert_replicated((params, state), None)  # copies of the same shard, of every array


@pytest.mark.parametrize(('sizes', 'keeps'), [((2, 2), True), ((4, 2), False)])
def test_state_goes_through_a_checkpoint_onto_another_mesh(tmp_path, sizes, keeps):
    """Bit for bit onto one with as many workers; with others, y stays where it was."""
    checkpoint = pytest.importorskip('orbax.checkpoint')
    inner = optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.adamw(0.01))  # whose key is typed
    optimizer = feedback('2x4', def_jax.random_block(4), inner=inner)
    dist = def_jax.spmd(optimizer, make_mesh('2x4'), [P('shard'), P(), P(), P(), P()])
    params, state = filled(dist)
    mesh = mesh_of(*sizes)
    other = def_jax.spmd(optimizer, mesh, [P('shard'), P('shard'), P(), P(), P()])
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / 'state', other.abstract_state(params, num_workers=2))
    restored = other.regroup(params, restored)
    residual = optax.tree.get(restored, 'residual')[0]
    assert residual.sharding == NamedSharding(mesh, P('workers', 'shard'))
    if keeps:
        whole = [
            jax.tree.map(lambda x: jax.device_put(x, jax.devices()[0]), tree) for tree in (restored, state)
        ]
        assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, *whole)))
    else:
        np.testing.assert_array_equal(optax.tree.get(restored, 'key'), optax.tree.get(state, 'key'))
        assert residual.shape == (4, 4, 6)
    before, after = dist.output_params(params, state), other.output_params(params, restored)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


def test_a_state_that_was_cut_is_refused():
    """As orbax does with `strict=False`, where there were more workers."""
    dist = distributed('2x4', feedback('2x4', def_jax.random_block(4)))
    params, state = filled(dist)
    cut = state._replace(worker=jnp.array([[0, 4], [1, 4]]))
    message = r'states of the workers 0, 1 of 4, .*orbax with strict=False cuts it'
    for function in (dist.regroup, dist.output_params):
        with pytest.raises(ValueError, match=message):
            function(params, cut)


def test_a_key_after_the_batch_is_folded_or_refused():
    dist = def_jax.spmd(feedback('8x1', def_jax.identity()), make_mesh('8x1'))
    params, key = jnp.ones(4), jax.random.key(0)
    given = params, dist.init(params), jnp.ones((8, 1)), key

    def loss_fn(params, batch, key):
        return jnp.sum(params) * jax.random.normal(key)

    losses, _ = dist.value_and_grad(loss_fn, keys=(2,))(*given)
    assert len(set(losses.tolist())) == 8
    with pytest.raises(ValueError, match=r'argument 2 holds a PRNG key, .* keys=, as \(2,\)'):
        dist.value_and_grad(loss_fn)(*given)
    with pytest.raises(ValueError, match=r'argument with \(\) of int32, which is no PRNG key'):
        dist.value_and_grad(loss_fn, keys=(2,))(*given[:3], 7)


def test_what_is_not_finite_in_one_shard_is_skipped_by_all():
    link = feedback('2x4', def_jax.random_block(2), inner=optax.sgd(0.1, momentum=0.5), skip_nonfinite=True)
    dist = distributed('2x4', link)
    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    grads = [np.ones((2, *np.shape(x)), np.float32) for x in INITIAL]
    _, before = dist.update(grads, dist.init(params), params)
    grads = [g.copy() for g in grads]  # the first step may still be reading them
    grads[0][1, 2, 3] = np.nan
    updates, after = dist.update(grads, before, params)
    assert not any(np.any(u) for u in updates)
    jax.tree.map(np.testing.assert_array_equal, after, optax.tree.set(before, skipped=1))
    def_jax.assert_replicated((updates, after), None)


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_programs_are_compiled_also_where_jit_is_disabled(kind):
    """`jax.shard_map` would fail on this mesh, or take a minute for each update on one without `shard`."""
    optimizer = def_jax.error_feedback(def_jax.identity(), 'workers', inner=optax.sgd(1.0))
    dist = def_jax.spmd(optimizer, mesh_of(2, 2, kind), P())
    x, grads = jnp.zeros(8), jnp.arange(16.0).reshape(2, 8)
    with jax.disable_jit():
        updates, state = dist.update(grads, dist.init(x), x)
        y = dist.output_params(x, state)
        steps = dist.map(lambda params, state: state.step)(x, state)
    np.testing.assert_array_equal(updates, -grads.mean(0))
    np.testing.assert_array_equal(y, x)
    assert steps.tolist() == [1, 1]
