"""Options of a link drawn at random, all at once and under every mapping, step by step against an oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_step
from perceptron import flat, mapped
from reference_step import Message, Settings, State

import def_jax
from def_jax.compressors.orders import AGE_SHARES
from def_jax.ground.random import shared_key
from def_jax.wires import few_bits
from def_jax.wires.layouts import Layout

NUM_STEPS, SEEDS = 7, 14
BASE = 1249  # draws every value of each option, most of them with overlap and without
BITS = (1, 2, 4, 8, 16, 32, 32)
MAPPINGS = ('vmap', 'pmap', 'shard_map with types', 'pmap of vmap', 'one worker')
SHAPES = [(7,), (0, 3), (), (5, 6)]
DTYPES = {
    'float32': ['float32'] * 4,
    'bfloat16': ['bfloat16'] * 4,
    'mixed': ['float16', 'float32', 'float32', 'bfloat16'],
}
LIKE = [jnp.zeros(shape) for shape in SHAPES]
SIZES = [x.size for x in LIKE]
LEAF = np.repeat(np.arange(len(SIZES)), SIZES)


def drawn(seed):
    """A mapping and its number of workers, arguments of `random_block` and of the oracle.

    The first seeds have every number of bits with and without overlap, and each mapping twice or more.
    """
    rng, mapping = np.random.default_rng([BASE, seed]), MAPPINGS[seed % len(MAPPINGS)]

    def pick(*values):
        return values[rng.integers(len(values))]

    every = pick(1, 1, 3)
    settings = Settings(
        bits=BITS[seed // 2 % len(BITS)],
        detach=pick('auto', 'auto', 0.0, 0.3, 1.0),
        every=every,
        decay=pick(1.0, 0.9),
        outer=pick((1.0, 0.0), (0.7, 0.8)),
        average_every=pick(0, 3) if every == 1 else 0,
        overlap=seed % 2 == 0,
        dtypes=pick(*DTYPES),
    )
    if settings.bits == 16:  # whose sums are inexact: where x is rounded to would be open
        settings = settings._replace(dtypes='float32')
    blocks = {
        'ratio': pick(1, 3, 4),
        'order': pick('random', 'shuffled', 'cyclic'),
        'allocation': pick('proportional', 'balanced'),
    }
    num_workers = {'one worker': 1, 'pmap of vmap': 4}.get(mapping) or pick(2, 3, 8)
    return mapping, num_workers, blocks, settings


def course(mapping, make, updates, weights, dtypes):
    """x, the velocity of `outer` with λ, and the residual after 0, ..., T steps: each [K, T + 1, ...]."""

    def observe(params, state):
        velocity = optax.tree.get(state.outer, 'trace', default=LIKE)
        missing = state.missing or LIKE
        return flat(params), flat((velocity, missing, state.detach)), flat(state.residual)

    def worker(given, _, axis_name, varying=None):
        optimizer = make(axis_name)

        def step(carry, given):
            (*u, weight), (params, state) = given, carry
            applied, state = optimizer.update(u, state, params, weight=weight)
            params = optax.apply_updates(params, applied)
            return (params, state), observe(params, state)

        like = [x.astype(dtype) for x, dtype in zip(LIKE, dtypes, strict=True)]
        first = like, optimizer.init(like)
        rest = jax.lax.scan(step, first, given)[1]
        return jax.tree.map(lambda z, zs: jnp.concatenate([z[None], zs]), observe(*first), rest)

    run = mapped(mapping, worker, len(weights))
    return [np.asarray(z, np.float64) for z in run([*updates, weights], None)]


def messages(compressor, settings, num_workers):
    """What each step may send. In few bits, the library chooses who takes the mean of what."""
    sizes = compressor.sizes(LIKE)
    layout, tile = Layout.dense(sizes), max(1, sum(sizes))
    if settings.bits < 16:
        layout = few_bits.plan(tuple(sizes), num_workers, settings.bits).layout
        tile = layout.total // num_workers
    places = np.concatenate([b + np.arange(n) for b, n in zip(layout.begins, sizes, strict=True)])
    number = np.split(1.0 + np.arange(LEAF.size), np.cumsum(SIZES)[:-1])  # of each coordinate
    index = [jnp.asarray(n).reshape(shape) for n, shape in zip(number, SHAPES, strict=True)]

    @jax.jit
    @jax.vmap
    def taken(step):
        return compressor(shared_key(0), step, index, layout).take(index)

    steps = np.maximum(np.arange(NUM_STEPS) - settings.overlap, 0) // settings.every
    weights = [part.weight for part in compressor.parts(LIKE)]
    per_element = np.repeat(np.arange(len(sizes)), sizes), np.repeat(weights, sizes), places // tile
    found = np.asarray(taken(steps.astype(np.uint32)))[:, places].astype(int) - 1
    return [Message(row, *per_element) for row in found]


@pytest.mark.parametrize('seed', range(SEEDS))
def test_each_step_of_a_random_composition_equals_the_oracle(seed):
    mapping, num_workers, blocks, settings = drawn(seed)
    compressor = def_jax.random_block(**blocks)
    options = settings._asdict()
    rate, momentum = options.pop('outer')
    options['outer'] = optax.sgd(rate, momentum=momentum) if momentum else None
    dtypes = DTYPES[options.pop('dtypes')]
    narrow = () if set(dtypes) == {'float32'} else tuple(np.repeat(dtypes, SIZES))
    settings = settings._replace(dtypes=narrow)
    rng = np.random.default_rng([1, seed])
    updates = [0.5 + rng.normal(size=(num_workers, NUM_STEPS, *shape)) for shape in SHAPES]
    updates = [u.astype(np.float32) for u in updates]
    weights = rng.integers(0, 4, (num_workers, NUM_STEPS)).astype(np.float32)  # now and then all are 0

    def make(axis_name):
        return def_jax.error_feedback(compressor, axis_name, **options)

    x, shared, r = course(mapping, make, updates, weights, dtypes)
    assert (x == x[0]).all() and (shared == shared[0]).all()
    (velocity, missing), detach = np.split(shared[0, :, :-1], 2, axis=1), shared[0, :, -1]
    velocity = -velocity
    u = np.concatenate([z.reshape(num_workers, NUM_STEPS, -1) for z in updates], axis=2).astype(np.float64)
    sends = messages(compressor, settings, num_workers)
    energy = np.zeros(2)
    for t in range(NUM_STEPS):
        before = State(x[0, t], r[:, t], velocity[t], energy, missing[t])
        after, inexact, ambiguous = reference_step.step(
            settings, t, before, reference_step.weighted(u[:, t], weights[:, t]), sends[t]
        )
        clear = ~ambiguous
        assert np.all((np.abs(x[0, t + 1] - after.x) <= inexact + 3e-6)[clear])
        if momentum:
            assert np.all((np.abs(velocity[t + 1] - after.velocity) <= inexact + 3e-6)[clear])
        np.testing.assert_allclose(r[:, t + 1][:, clear], after.r[:, clear], rtol=0, atol=1e-5)
        np.testing.assert_allclose(missing[t + 1][clear], after.missing[clear], rtol=0, atol=1e-5)
        if settings.bits == 32 and settings.detach == 'auto':
            energy = after.energy
            expected = reference_step.best_detach(energy, num_workers, AGE_SHARES[blocks['order']])
            np.testing.assert_allclose(detach[t + 1], expected, rtol=1e-4)
    if settings.decay == 1 and not momentum and settings.bits != 16:
        y = x[0] + r.mean(0)
        means = [reference_step.weighted(u[:, t], weights[:, t]).mean(0) for t in range(NUM_STEPS)]
        np.testing.assert_allclose(np.diff(y, axis=0), means, rtol=0, atol=1e-5)  # Eq. 8
