"""Workers of several devices under pmap, vmap and shard_map, step by step against an oracle of workers."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_step
from jax import P
from perceptron import flat
from reference_step import Message, Settings, State

import def_jax
from def_jax.compressors.orders import AGE_SHARES
from def_jax.ground.collectives import Group
from def_jax.ground.random import shared_key
from def_jax.traffic.hlo import collectives
from def_jax.wires import few_bits
from def_jax.wires.layouts import Division, Stretch

NUM_STEPS, AXES = 6, ('workers', 'inside')
MAPPINGS = ('pmap', 'vmap', 'shard_map', 'shard_map with types')
SHAPES = [(7,), (0, 3), (), (5, 6)]
LIKE = [jnp.zeros(shape) for shape in SHAPES]
SIZES = [x.size for x in LIKE]
CASES = [  # mapping, K, S, options
    ('pmap', 2, 3, {'bits': 2, 'detach': 'auto'}),
    ('pmap', 4, 2, {'bits': 32, 'detach': 'auto', 'decay': 0.9}),
    ('pmap', 3, 2, {'bits': 4, 'overlap': True}),
    ('pmap', 2, 1, {'bits': 1}),
    ('vmap', 3, 4, {'bits': 1, 'every': 3, 'overlap': True}),
    ('vmap', 8, 2, {'bits': 8, 'detach': 'auto'}),
    ('vmap', 2, 4, {'bits': 16}),
    ('shard_map with types', 1, 3, {'bits': 2, 'every': 3, 'outer': (0.7, 0.8)}),
    ('shard_map', 2, 4, {'bits': 2, 'outer': (0.7, 0.8)}),
    ('shard_map', 2, 3, {'bits': 32, 'average_every': 3}),
    ('shard_map with types', 2, 2, {'bits': 2, 'detach': 'auto'}),
    ('shard_map with types', 4, 2, {'bits': 32, 'outer': (0.7, 0.8), 'every': 2}),
]


def on_devices(mapping, worker, workers, inside):
    """A jitted function of arguments [K, S, ...] for all devices, to what each has, [K, S, ...]."""
    if mapping == 'pmap':
        run = jax.pmap(lambda given: worker(given, 'devices', inside), 'devices')

        def call(given):
            found = run(jax.tree.map(lambda z: z.reshape(workers * inside, *z.shape[2:]), given))
            return jax.tree.map(lambda z: z.reshape(workers, inside, *z.shape[1:]), found)

        return call
    if mapping == 'vmap':
        of_devices = jax.vmap(lambda given: worker(given, 'workers', 'inside'), axis_name='inside')
        return jax.jit(jax.vmap(of_devices, axis_name='workers'))
    types = mapping.endswith('types')
    mesh = jax.sharding.Mesh(np.array(jax.devices()[: workers * inside]).reshape(workers, inside), AXES)

    def on_shard(given):
        x, shared, residual = worker(jax.tree.map(lambda z: z[0, 0], given), 'workers', 'inside')
        if types:  # the types prove that all devices have the same
            return x, shared, residual[None]
        return [z[None, None] for z in (x, shared, residual)]

    out = (P(), P(), P('workers')) if types else P('workers', 'inside')
    run = jax.shard_map(on_shard, mesh=mesh, in_specs=P('workers', 'inside'), out_specs=out, check_vma=types)

    def all_alike(given):
        x, shared, residual = jax.jit(run)(given)
        if types:
            x, shared = (np.broadcast_to(z, (workers, inside, *z.shape)) for z in (x, shared))
            residual = np.broadcast_to(residual[:, None], (workers, inside, *residual.shape[1:]))
        return x, shared, residual

    return all_alike


def course(mapping, workers, inside, make, updates, weights):
    """x, the velocity of `outer` with λ, and the residual after 0, ..., T steps: each [K, S, T + 1, ...]."""

    def observe(params, state):
        velocity = optax.tree.get(state.outer, 'trace', default=LIKE)
        return flat(params), flat((velocity, state.detach)), flat(state.residual)

    def worker(given, axis_name, inside):
        optimizer = make(axis_name, inside)

        def step(carry, given):
            (*u, weight), (params, state) = given, carry
            applied, state = optimizer.update(u, state, params, weight=weight)
            params = optax.apply_updates(params, applied)
            return (params, state), observe(params, state)

        first = LIKE, optimizer.init(LIKE)
        rest = jax.lax.scan(step, first, given)[1]
        return jax.tree.map(lambda z, zs: jnp.concatenate([z[None], zs]), observe(*first), rest)

    found = on_devices(mapping, worker, workers, inside)([*updates, weights])
    return [np.asarray(z, np.float64) for z in found]


def messages(compressor, settings, workers, inside):
    """What each step may send: units are of a part of one device's section."""
    sizes = compressor.sizes(LIKE)
    held = Group(('inside',)) if inside > 1 and workers > 1 else Group(())
    stretch = Stretch(held, inside if held.names else 1, tuple(range(len(sizes))))
    layout, tile, owners = Division.of((stretch,), sizes).layout(sizes), 1, None
    if settings.bits < 16:
        plan = few_bits.plan(tuple(sizes), workers, settings.bits, (stretch,))
        layout, tile = plan.layout, plan.shape[1] * plan.tile
        owners = plan.shape[0]
    places = np.concatenate([b + np.arange(n) for b, n in zip(layout.begins, sizes, strict=True)])
    number = np.split(1.0 + np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])  # of each coordinate
    index = [jnp.asarray(n).reshape(shape) for n, shape in zip(number, SHAPES, strict=True)]

    def taken(step):
        return compressor(shared_key(0), step, index, layout).take(index)

    steps = np.maximum(np.arange(NUM_STEPS) - settings.overlap, 0) // settings.every
    weights = np.repeat([part.weight for part in compressor.parts(LIKE)], sizes)
    section, chunk = np.divmod(places // tile, owners or 1)
    part = np.repeat(np.arange(len(sizes)), sizes) + len(sizes) * (section if owners else 0)
    found = np.asarray(jax.jit(jax.vmap(taken))(steps.astype(np.uint32)))[:, places].astype(int) - 1
    return [Message(row, part, weights, chunk) for row in found]


@pytest.mark.parametrize(('mapping', 'workers', 'inside', 'options'), CASES, ids=str)
def test_each_step_equals_the_oracle(mapping, workers, inside, options):
    settings = Settings(**options)
    blocks = {'order': 'shuffled', 'allocation': 'balanced'}
    compressor = def_jax.random_block(3, **blocks)
    options = settings._asdict()
    rate, momentum = options.pop('outer')
    options['outer'] = optax.sgd(rate, momentum=momentum) if momentum else None
    options.pop('dtypes')
    rng = np.random.default_rng([workers, inside, settings.bits])
    updates = [0.5 + rng.normal(size=(workers, inside, NUM_STEPS, *shape)) for shape in SHAPES]
    updates = [u.astype(np.float32) for u in updates]
    weights = rng.integers(0, 4, (workers, inside, NUM_STEPS)).astype(np.float32)

    def make(axis_name, inside):
        return def_jax.error_feedback(compressor, axis_name, inside=inside, **options)

    x, shared, r = course(mapping, workers, inside, make, updates, weights)
    assert (x == x[:1, :1]).all() and (shared == shared[:1, :1]).all()
    assert (r == r[:, :1]).all()  # on all devices of a worker
    x, r, velocity, detach = x[0, 0], r[:, 0], -shared[0, 0, :, :-1], shared[0, 0, :, -1]
    u = np.concatenate([z.reshape(workers, inside, NUM_STEPS, -1) for z in updates], axis=3)
    sends, energy = messages(compressor, settings, workers, inside), np.zeros(2)
    for t in range(NUM_STEPS):
        within = [reference_step.weighted(u[k, :, t], weights[k, :, t]).mean(0) for k in range(workers)]
        of_workers = reference_step.weighted(np.array(within), weights[:, :, t].sum(1))
        before = State(x[t], r[:, t], velocity[t], energy)
        after, inexact, ambiguous = reference_step.step(settings, t, before, of_workers, sends[t])
        clear = ~ambiguous
        assert np.all((np.abs(x[t + 1] - after.x) <= inexact + 3e-6)[clear])
        np.testing.assert_allclose(r[:, t + 1][:, clear], after.r[:, clear], rtol=0, atol=1e-5)
        if settings.bits == 32 and settings.detach == 'auto':
            energy = after.energy
            expected = reference_step.best_detach(energy, workers, AGE_SHARES[blocks['order']])
            np.testing.assert_allclose(detach[t + 1], expected, rtol=1e-4)


@pytest.mark.parametrize('bits', [2, 32])
def test_spmd_divides_what_a_workers_devices_hold_alike(bits):
    """As with `inside`; and sharded and replicated tensors side by side move y by the mean update."""
    workers, inside = 2, 4
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(workers, inside), AXES)
    params = {'w': jnp.zeros((64, 32)), 'b': jnp.zeros(64), 'v': jnp.zeros((32, 8))}
    blocks = def_jax.random_block(4, order='shuffled')
    rng = np.random.default_rng(0)
    grads = {k: rng.normal(size=(workers, *x.shape)).astype(np.float32) for k, x in params.items()}
    sent = {}
    for specs in (P(), {'w': P('inside'), 'b': P(), 'v': P(None, 'inside')}):
        dist = def_jax.spmd(def_jax.error_feedback(blocks, 'workers', bits=bits), mesh, specs)
        x = jax.device_put(params, dist.shardings)

        @jax.jit
        def step(grads, state, x, dist=dist):
            updates, state = dist.update(grads, state, x)
            x = optax.apply_updates(x, updates)
            return x, state, dist.output_params(x, state)

        state = dist.init(x)
        for t in range(3):
            x, state, y = step(grads, state, x)
            for name, g in grads.items():
                np.testing.assert_allclose(y[name], (t + 1) * g.mean(0), rtol=0, atol=2e-5)
        compiled = jax.jit(dist.update).lower(grads, state, x).compile()
        crossing = [c for c in collectives(compiled.as_text()) if _crosses(c.groups, inside)]
        sent[isinstance(specs, dict)] = sum(c.bytes for c in crossing)
        assert len(crossing) == (1 if bits == 32 else 2)
    size = def_jax.message_size(blocks, params) * bits / 8
    for found in sent.values():  # a device's share, with units
        assert found <= (1 if bits == 32 else 2) * size / inside * 1.1 + 64


def _crosses(groups, inside):
    return any(len({device // inside for device in group}) > 1 for group in groups)


def test_what_leaves_a_node_is_one_message():
    """Of eight devices under pmap, four a node."""
    params = jnp.zeros(2**16)
    optimizer = def_jax.error_feedback(def_jax.random_block(64), 'devices', inside=4)
    arguments = jax.tree.map(lambda x: jnp.stack([x] * 8), (params, optimizer.init(params), params))
    step = jax.pmap(optimizer.update, axis_name='devices').lower(*arguments).compile()
    found = collectives(step.as_text())
    crossing = [c for c in found if _crosses(c.groups, 4)]
    assert [(c.operation, c.elements) for c in crossing] == [('all-reduce', 2**16 // 64 // 4)]
    inside = [c for c in found if not _crosses(c.groups, 4)]
    assert {(c.operation, c.elements) for c in inside} >= {('all-reduce', 2**16)}  # of gradients


def test_nan_on_one_device_of_one_worker_is_skipped_by_all():
    optimizer = def_jax.error_feedback(
        def_jax.random_block(2), 'devices', inner=optax.sgd(0.1, momentum=0.9), inside=2, skip_nonfinite=True
    )
    grads = np.ones((4, 8), np.float32)
    grads[3, 1] = np.nan

    def step(g):
        x = jnp.zeros(8)
        return optimizer.update(g, optimizer.init(x), x)

    updates, state = jax.pmap(step, 'devices')(grads)
    assert not updates.any() and (state.skipped == 1).all() and not state.residual.any()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.inner))


def test_larger_workers_that_go_on_with_a_state_of_smaller_ones_are_noticed():
    """Their devices have different residuals, and count them as one worker's."""

    def step(inside, state):
        optimizer = def_jax.error_feedback(def_jax.random_block(2), 'devices', inside=inside)
        return jax.pmap(lambda g, state: optimizer.update(g, state)[1], 'devices')(grads, state)

    grads = np.arange(32.0, dtype=np.float32).reshape(4, 8)
    first = def_jax.error_feedback(def_jax.random_block(2), 'devices').init(jnp.zeros(8))
    state = step(None, jax.tree.map(lambda x: jnp.stack([x] * 4), first))
    one = def_jax.stack_state(def_jax.unstack_state(state, 1))
    saved = def_jax.stack_state(step(2, def_jax.unstack_state(one, 4)))
    assert saved.worker.tolist() == [[0, 2], [0, 2], [1, 2], [1, 2]]
    second = jax.tree.map(lambda x: np.asarray(x)[2:], step(2, def_jax.unstack_state(one, 4)))
    with pytest.raises(ValueError, match='workers 1, 1 of 2, but must be those of 0, 1'):  # of one process
        def_jax.stack_state(second)
    with mock.patch.object(jax, 'process_count', return_value=2):  # of a node that is one worker
        restored = def_jax.unstack_state(def_jax.stack_state(second))
    jax.tree.map(np.testing.assert_array_equal, restored, second)
    with pytest.raises(ValueError, match=r'workers 0, 1, 2, 3, with which others have gone on'):
        def_jax.stack_state(step(2, state))


@pytest.mark.parametrize(
    ('axis_name', 'inside', 'words'),
    [
        (
            'workers',
            'workers',
            "inside='workers' must be the axis over a worker's devices.*none of axis_name",
        ),
        (('a', 'b'), 2, 'or under jax.pmap, whose axis is one name, the number of neighbouring devices'),
        (None, 'gpus', "inside='gpus' must be"),
        ('workers', 0, 'inside=0 must be'),
        ('workers', True, 'inside=True must be'),
    ],
)
def test_bad_inside_is_refused_at_construction(axis_name, inside, words):
    with pytest.raises(ValueError, match=words):
        def_jax.def_sgd(0.1, 64, axis_name, inside=inside)


def test_bad_inside_is_refused_before_a_step():
    x = jnp.zeros(8)

    def stepped(optimizer):
        return lambda g: optimizer.update(g, optimizer.init(x), x)[0]

    with pytest.raises(
        ValueError, match=r"inside=3 devices cannot be a worker of axis_name='devices': 4 devices"
    ):
        jax.pmap(stepped(def_jax.def_sgd(0.1, 64, 'devices', inside=3)), 'devices')(jnp.ones((4, 8)))
    with pytest.raises(ValueError, match=r"'gpus'.* is not bound here"):
        jax.vmap(stepped(def_jax.def_sgd(0.1, 64, 'nodes', inside='gpus')), axis_name='nodes')(
            jnp.ones((4, 8))
        )
    with pytest.raises(ValueError, match=r"inside=2, a number of .* for jax.pmap.* inside='gpus'"):
        jax.vmap(stepped(def_jax.def_sgd(0.1, 64, 'gpus', inside=2)), axis_name='gpus')(jnp.ones((4, 8)))
    with pytest.raises(ValueError, match=r'inside=2 is for jax.pmap and jax.shard_map\. def_jax.spmd knows'):
        mesh = jax.make_mesh((2,), ('w',), devices=jax.devices()[:2])
        dist = def_jax.spmd(def_jax.def_sgd(0.1, 64, 'w', inside=2), mesh, axis_name='w')
        dist.update(jnp.ones((2, 8)), dist.init(x), x)


def test_gradients_that_types_have_summed_inside_are_refused():
    """At a point that does not vary over a worker's devices; with one that does, they are averaged."""
    optimizer, x = def_jax.def_sgd(0.1, 64, 'workers', inside='inside'), jnp.ones(8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), AXES)

    def step(batch, varies):
        state = optimizer.init(x)
        point = def_jax.detached_params(x, state)
        point = jax.lax.pcast(point, 'inside', to='varying') if varies else point
        grads = jax.grad(lambda point: jnp.sum(batch[0] * point))(point)
        return optimizer.update(grads, state, x)[0]

    def run(varies):
        mapped = jax.shard_map(
            lambda batch: step(batch, varies), mesh=mesh, in_specs=P(AXES), out_specs=P(), check_vma=True
        )
        return jax.jit(mapped)(jnp.ones((4, 8)))

    with pytest.raises(ValueError, match=r"summed its gradient over \('inside',\).*pcast\(def_jax.detached_"):
        run(varies=False)
    assert run(varies=True).any()


@pytest.mark.parametrize('inside', ['inside', None])
def test_the_debug_mode_over_all_axes_notices_devices_that_are_not_joined(inside):
    """Without `inside`, each device of a worker trains with its counterparts alone, and x drifts apart."""
    blocks = def_jax.random_block(2)
    optimizer = def_jax.error_feedback(blocks, 'workers', inner=optax.sgd(0.1), inside=inside)

    @jax.jit
    def step(x, state, target):
        grads = def_jax.detached_params(x, state) - target
        updates, state = optimizer.update(grads, state, x)
        return optax.apply_updates(x, updates), state

    def run(target):
        carry = jnp.zeros(8), optimizer.init(jnp.zeros(8))
        for _ in range(2):
            carry = step(*carry, target)
            def_jax.debug(*carry, AXES)

    mapped = jax.vmap(jax.vmap(run, axis_name='inside'), axis_name='workers')
    targets = np.random.default_rng(0).normal(size=(2, 2, 8)).astype(np.float32)
    if inside:
        mapped(targets)
    else:
        with pytest.raises(ValueError, match='do not agree on params'):
            mapped(targets)


def test_an_empty_part_of_a_message_may_lie_where_another_begins():
    held = Stretch(Group(()), 1, (0, 2)), Stretch(Group(('inside',)), 2, (1,))
    division, sizes = Division(held, (3, 2)), (3, 4, 0)
    layout, parts = division.layout(sizes), [i + jnp.arange(n, dtype=float) for i, n in enumerate(sizes)]
    for part, found in zip(parts, layout.split(layout.join(parts), sizes), strict=True):
        np.testing.assert_array_equal(found, part)


def test_one_worker_of_all_devices_can_be_debugged_and_saved():
    """Its devices have the same residual, as those of no other number of workers should have."""
    optimizer = def_jax.def_adamw(0.1, 16, 'devices', inside=4)
    devices = jax.devices()[:4]

    def step(params, state, x):
        grads = jax.grad(lambda w: jnp.mean((x @ w - 1) ** 2))(def_jax.detached_params(params, state))
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        def_jax.debug(params, state, 'devices')
        return params, state

    params = jnp.zeros((4, 64))
    state = jax.pmap(optimizer.init, devices=devices)(params)
    mapped = jax.pmap(step, 'devices', devices=devices)
    for i in range(4):
        x = jax.random.normal(jax.random.key(i), (4, 2, 64))
        params, state = mapped(params, state, x)
    jax.effects_barrier()
    saved = def_jax.stack_state(state)
    assert np.abs(saved.residual).sum() > 0
