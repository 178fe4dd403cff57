"""Workers of several devices: the NumPy oracle with its blocks in the devices' shards, and other meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import perceptron
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
    vmapped,
    x_y_residual,
)
from sharded_workers import AUTO, EXPLICIT, LAYOUTS, distributed, feedback, make_mesh, mesh_of, step_of

import def_jax
from def_jax.compressors import Compressor

NUM_STEPS = 20
SGD = optax.sgd(learning_rate, momentum=0.9)


def gathered_loss(params, batch):
    """The loss under Explicit axes, where FSDP is a matter of the types."""
    return loss_fn(jax.sharding.reshard(params, P()), batch)


def on_one_device(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def train(dist, num_steps, loss_fn=loss_fn, batches=None, has_output=True):
    """x and y after 0, ..., T steps, each [T + 1, d], and the last state; without an output, y is x."""
    batches = batches or mlp_data(dist.num_workers)

    step = jax.jit(step_of(dist, loss_fn), donate_argnums=(0, 1))
    output = jax.jit(dist.output_params) if has_output else lambda params, _: params
    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    state, found = jax.jit(dist.init)(params), []
    for t in range(num_steps + 1):
        found.append([flat(on_one_device(z)) for z in (params, output(params, state))])
        if t < num_steps:
            batch = [x[:, t].reshape(-1, x.shape[-1]) for x in batches]
            params, state, _ = step(params, state, batch)
    return *np.stack(found, axis=1), state


def shard_masks(layout, compressor, num_steps):
    """What multiplies p at every step, [T, d]: the same block in each device's shard."""
    specs = LAYOUTS[layout][2]
    shapes = [
        NamedSharding(make_mesh(layout), s).shard_shape(x.shape) for x, s in zip(INITIAL, specs, strict=True)
    ]
    sent = masks(compressor, [jnp.ones(shape) for shape in shapes], num_steps, jax.random.PRNGKey(0))
    tiled = [
        np.tile(mask, (1, *(n // part for n, part in zip(x.shape, shape, strict=True))))
        for mask, x, shape in zip(sent, INITIAL, shapes, strict=True)
    ]
    return np.concatenate([mask.reshape(num_steps, -1) for mask in tiled], axis=1).astype(np.float64)


def residuals(state):
    own = on_one_device(optax.tree.get(state, 'residual'))
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in own], axis=1)


@pytest.mark.parametrize(
    ('layout', 'kind', 'compressor', 'options'),
    [
        ('2x4', AUTO, def_jax.random_block(4), {}),
        ('4x2', EXPLICIT, def_jax.random_block(4, order='shuffled'), {'average_every': 3}),
        ('2x2x2', AUTO, def_jax.random_block(3, allocation='balanced'), {'detach': 1.0}),
        pytest.param('(2x2)x2', EXPLICIT, def_jax.random_k(4), {}, marks=pytest.mark.slow),
        pytest.param(
            *('2x2x2', EXPLICIT, def_jax.random_block(4, granularity='model', order='cyclic'), {}),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_equals_the_oracle(layout, kind, compressor, options):
    """Weight decay before the link is taken at the detached point, also if another link follows."""
    decay = 0.05
    link = feedback(layout, compressor, **options)
    optimizer = optax.chain(optax.add_decayed_weights(decay), SGD, link, optax.identity())
    loss = gathered_loss if kind == EXPLICIT else loss_fn
    dist = distributed(layout, optimizer, kind)
    x, y, state = train(dist, NUM_STEPS, loss)
    expected = reference.algorithm_1(
        *(START, gradient(dist.num_workers), shard_masks(layout, compressor, NUM_STEPS)),
        LEARNING_RATES[:NUM_STEPS],
        num_workers=dist.num_workers,
        **{'detach': 0.3, 'momentum': 0.9, 'weight_decay': decay} | options,
    )
    np.testing.assert_allclose(x, expected.x, **TOLERANCE)
    np.testing.assert_allclose(y, expected.y, **TOLERANCE)
    np.testing.assert_allclose(-residuals(state), expected.e[-1], **TOLERANCE)


# --- Other optimizers and options: against vmap, with a compressor that cuts what the shards would ---------


def cut_from_shards(layout, ratio):
    """random_block(ratio) of every shard of whole tensors, or of the first of them, in one piece."""
    _, _, specs = LAYOUTS[layout]
    mesh = make_mesh(layout)
    boxes = [
        NamedSharding(mesh, spec).devices_indices_map(x.shape) for x, spec in zip(INITIAL, specs, strict=True)
    ]
    devices = mesh.devices.reshape(2, -1)[0] if layout == '2x4' else mesh.devices.reshape(-1)[:2]
    places = [[leaf[device] for leaf in boxes] for device in devices]

    def shard(tree, place):
        return [x[box] for x, box in zip(jax.tree.leaves(tree), place, strict=False)]

    def parts_of(like):  # what several devices hold counts once
        found = []
        for place in places:
            shards = jax.eval_shape(lambda tree, place=place: shard(tree, place), like)
            for leaf, part in enumerate(def_jax.random_block(ratio).parts(shards)):
                copies = sum(other[leaf] == place[leaf] for other in places)
                found.append(part._replace(weight=part.weight / copies))
        return found

    def select(key, step, like):
        leaves, treedef = jax.tree.flatten(like)
        parts = [def_jax.random_block(ratio)(key, step, shard(leaves, place)) for place in places]
        sizes = [part.take(shard(leaves, place)).size for part, place in zip(parts, places, strict=True)]

        def take(tree):
            return jnp.concatenate(
                [part.take(shard(tree, place)) for part, place in zip(parts, places, strict=True)]
            )

        def replace(tree, message):
            whole = jax.tree.leaves(tree)
            messages = jnp.split(message, np.cumsum(sizes)[:-1])
            for part, place, m in zip(parts, places, messages, strict=True):
                new = part.replace(shard(whole, place), m)
                whole = [x.at[box].set(n) for x, box, n in zip(whole, place, new, strict=False)]
            return jax.tree.unflatten(treedef, whole)

        return parts[0]._replace(take=take, replace=replace)

    return Compressor(select, parts_of)


def each(*values):
    """A value for each parameter, in a tree of any kind."""
    return lambda params: jax.tree.unflatten(jax.tree.structure(params), values)


def labelled(last_link):
    """Muon for the matrices, and AdamW for the rest, of which the scale is not communicated by blocks."""
    return optax.chain(
        optax.partition(
            {'matrix': optax.contrib.muon(0.02), 'vector': optax.adamw(0.01)},
            each('matrix', 'matrix', 'vector', 'vector', 'vector'),
        ),
        optax.masked(last_link, each(True, True, True, True, False)),
        optax.masked(def_jax.all_reduce_mean('workers'), each(False, False, False, False, True)),
    )


def chained(inner):
    return lambda last_link: optax.chain(inner, last_link)


def held(last_link):
    return def_jax.hold_skipped(optax.chain(optax.sgd(0.02, momentum=0.9), last_link))


NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ('layout', 'chain', 'options'),
    [
        ('8x1', chained(optax.adamw(0.01)), {'detach': 'auto'}),
        ('2x4', chained(optax.adamw(0.01)), {'detach': 'auto', 'wire_dtype': jnp.bfloat16}),
        ('4x2', chained(optax.sgd(0.02)), {'every': 2, 'outer': NESTEROV, 'detach': 1.0, 'decay': 0.9}),
        ('2x4', chained(optax.sgd(0.02, momentum=0.9)), {'overlap': True, 'decay': 0.9}),
        pytest.param('2x4', labelled, {'detach': 0.5}, marks=pytest.mark.slow),
        pytest.param('2x4', held, {'skip_nonfinite': True}, marks=pytest.mark.slow),
    ],
)
def test_optimizers_and_options_do_on_shards_what_they_do_on_whole_tensors(layout, chain, options):
    num_steps, ratio = 9, 3
    num_workers = LAYOUTS[layout][0]['workers']
    batches = [x.copy() for x in mlp_data(num_workers)]
    if 'skip_nonfinite' in options:  # NaN in row 0 of W1's gradient: on one device of one worker
        batches[0][1, 4, :, 0] = np.inf
    dist = distributed(
        layout, chain(def_jax.error_feedback(def_jax.random_block(ratio), 'workers', **options))
    )
    x, y, state = train(dist, num_steps, batches=batches)
    cut = def_jax.random_block(ratio) if layout == '8x1' else cut_from_shards(layout, ratio)
    whole = chain(def_jax.error_feedback(cut, 'workers', **options))
    steps = [z[:, :num_steps] for z in batches]
    expected = vmapped(lambda own: perceptron.train(whole, own, x_y_residual()), steps)
    assert np.isfinite(x).all() and np.max(np.abs(x[-1] - x[0])) > 0.01
    np.testing.assert_allclose(x, expected[0][0], **TOLERANCE)
    np.testing.assert_allclose(y, expected[1][0], **TOLERANCE)
    if 'skip_nonfinite' in options:
        assert int(optax.tree.get(state, 'skipped')) == 1 and np.array_equal(x[4], x[5])


POWERSGD = def_jax.baselines.powersgd(4, 'workers', rank=1)  # knows no shards, and sees whole tensors


@pytest.mark.parametrize(
    ('link', 'oracle'),
    [
        (def_jax.all_reduce_mean('workers'), lambda: lambda grads: grads.mean(0)),
        # It knows no shards and sees whole tensors.
        (
            POWERSGD,
            lambda: oracles.powersgd(reference.MLP_SHAPES, 1, map(np.array, POWERSGD.init(INITIAL).carry)),
        ),
        pytest.param(
            def_jax.ef21(def_jax.random_block(4), 'workers'),
            lambda: oracles.ef21_sgdm(shard_masks('2x4', def_jax.random_block(4), 9), averaging=1.0),
            marks=pytest.mark.slow,
        ),
    ],
    ids=['dense', 'powersgd', 'ef21'],
)
def test_other_links_equal_their_oracles(link, oracle):
    x = train(distributed('2x4', optax.chain(link, SGD)), 9, has_output=False)[0]
    problem = START, gradient(2), oracle(), LEARNING_RATES[:9]
    np.testing.assert_allclose(x, oracles.train(*problem, num_workers=2, momentum=0.9), **TOLERANCE)


# --- Functions for mapped code, on every worker -------------------------------------------------------------


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_diagnostics_run_on_every_worker(kind):
    last_link = feedback('2x4', def_jax.random_block(4))
    dist = distributed('2x4', optax.chain(optax.adam(0.01), last_link), kind)
    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    _, _, state = train(dist, 3, gathered_loss if kind == EXPLICIT else loss_fn, has_output=False)

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


def test_copies_of_one_shard_that_differ_are_found():
    sharding = NamedSharding(make_mesh('2x4'), P('shard'))
    shards = [np.full(2, n % 4 + (n == 6)) for n in range(8)]  # of node 2, the third device's
    copies = [jax.device_put(x, device) for x, device in zip(shards, jax.devices(), strict=True)]
    w = jax.make_array_from_single_device_arrays((8,), sharding, copies)
    with pytest.raises(ValueError, match='the workers do not agree on w'):
        def_jax.assert_replicated({'w': w}, None)


# --- Other meshes ------------------------------------------------------------------------------------------


def saved_and_restored(tmp_path, dist, tree, params, num_workers):
    orbax = pytest.importorskip('orbax.checkpoint')
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(tmp_path / 'state', dist.abstract_state(params, num_workers))


@pytest.mark.parametrize(('sizes', 'keeps'), [((2, 4), True), ((2, 2), True), ((4, 2), False)])
def test_state_goes_through_a_checkpoint_onto_another_mesh(tmp_path, sizes, keeps):
    """Bit for bit onto one with as many workers; with others, y stays where it was."""
    optimizer = optax.chain(optax.adamw(0.01), feedback('2x4', def_jax.random_block(4)))
    dist = def_jax.spmd(optimizer, make_mesh('2x4'), [P('shard'), P(), P(), P(), P()])
    _, _, state = train(dist, 3)
    params = [jnp.asarray(x) for x in INITIAL]
    mesh = mesh_of(*sizes)
    other = def_jax.spmd(optimizer, mesh, [P('shard'), P('shard') if sizes[1] == 2 else P(), P(), P(), P()])
    restored = other.regroup(params, saved_and_restored(tmp_path, other, state, params, 2))
    residual = optax.tree.get(restored, 'residual')[0]
    assert residual.sharding == NamedSharding(mesh, P('workers', 'shard'))
    if keeps:
        jax.tree.map(np.testing.assert_array_equal, restored, state)
    else:
        np.testing.assert_array_equal(optax.tree.get(restored, 'key'), optax.tree.get(state, 'key'))
        assert residual.shape == (4, 4, 6)
    before, after = dist.output_params(params, state), other.output_params(params, restored)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)
