"""Options of a link drawn at random, all at once, step by step against an oracle that knows each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_step
from reference_step import Message, Settings, State

import def_jax
from def_jax.compressors import Layout, shared_key
from def_jax.compressors.orders import AGE_SHARES
from def_jax.wires import few_bits

NUM_STEPS, SEEDS = 7, 12
SHAPES = {'b': (7,), 'e': (0, 3), 's': (), 'w': (5, 6)}
LIKE = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
SIZES = [x.size for x in jax.tree.leaves(LIKE)]
LEAF = np.repeat(np.arange(len(SIZES)), SIZES)


def drawn(seed):
    """The number of workers, arguments of `random_block` and of the oracle."""
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    every = pick(1, 1, 3)
    settings = Settings(
        bits=(1, 2, 4, 8, 16, 32)[seed % 6],  # each of them
        detach=pick('auto', 'auto', 0.0, 0.3, 1.0),
        every=every,
        decay=pick(1.0, 0.9),
        outer=pick((1.0, 0.0), (0.7, 0.8)),
        average_every=pick(0, 3) if every == 1 else 0,
        overlap=pick(False, True),
    )
    blocks = {
        'ratio': pick(1, 3, 4),
        'order': pick('random', 'shuffled', 'cyclic'),
        'allocation': pick('proportional', 'balanced'),
    }
    return pick(1, 2, 3, 8), blocks, settings


def course(optimizer, updates):
    """What all workers have after 0, ..., T steps: parameters and state, leaves [K, T + 1, ...]."""

    def worker(updates):
        def step(carry, u):
            params, state = carry
            applied, state = optimizer.update(u, state, params)
            carry = optax.apply_updates(params, applied), state
            return carry, carry

        first = LIKE, optimizer.init(LIKE)
        rest = jax.lax.scan(step, first, updates)[1]
        return jax.tree.map(lambda z, zs: jnp.concatenate([z[None], zs]), first, rest)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(worker, axis_name='workers'))(updates))


def messages(compressor, settings, num_workers):
    """What each step may send. In few bits, the library chooses who takes the mean of what."""
    sizes = compressor.sizes(LIKE)
    layout, tile = Layout.dense(sizes), max(1, sum(sizes))
    if settings.bits < 16:
        layout = few_bits.plan(tuple(sizes), num_workers, settings.bits).layout
        tile = layout.total // num_workers
    places = np.concatenate([b + np.arange(n) for b, n in zip(layout.begins, sizes, strict=True)])
    number = np.split(1.0 + np.arange(LEAF.size), np.cumsum(SIZES)[:-1])  # of each coordinate
    leaves, treedef = jax.tree.flatten(LIKE)
    index = jax.tree.unflatten(
        treedef, [jnp.asarray(n).reshape(x.shape) for n, x in zip(number, leaves, strict=True)]
    )

    @jax.jit
    @jax.vmap
    def taken(step):
        return compressor(shared_key(0), step, index, layout).take(index)

    steps = np.maximum(np.arange(NUM_STEPS) - settings.overlap, 0) // settings.every
    weights = [part.weight for part in compressor.parts(LIKE)]
    per_element = np.repeat(np.arange(len(sizes)), sizes), np.repeat(weights, sizes), places // tile
    found = np.asarray(taken(steps.astype(np.uint32)))[:, places].astype(int) - 1
    return [Message(row, *per_element) for row in found]


def stacked(tree):
    """Leaves [K, T + 1, ...] as one array [K, T + 1, d]."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([x.reshape(*x.shape[:2], -1) for x in leaves], axis=2).astype(np.float64)


@pytest.mark.parametrize('seed', range(SEEDS))
def test_each_step_of_a_random_composition_equals_the_oracle(seed):
    num_workers, blocks, settings = drawn(seed)
    compressor = def_jax.random_block(**blocks)
    options = settings._asdict()
    rate, momentum = options.pop('outer')
    outer = optax.sgd(rate, momentum=momentum) if momentum else None
    optimizer = def_jax.error_feedback(compressor, 'workers', outer=outer, **options)
    rng = np.random.default_rng([1, seed])
    shape = num_workers, NUM_STEPS
    updates = {n: (0.5 + rng.normal(size=(*shape, *s))).astype(np.float32) for n, s in SHAPES.items()}
    params, state = course(optimizer, updates)
    x, r, u = map(stacked, (params, state.residual, updates))
    assert (x == x[0]).all() and (state.detach == state.detach[0]).all()
    velocity = -stacked(optax.tree.get(state.extra, 'trace'))[0] if outer else np.zeros_like(x[0])
    sends = messages(compressor, settings, num_workers)
    energy = np.zeros(2)
    for t in range(NUM_STEPS):
        before = State(x[0, t], r[:, t], velocity[t], energy)
        after, inexact, ambiguous = reference_step.step(settings, t, before, u[:, t], sends[t])
        clear = ~ambiguous
        assert np.all((np.abs(x[0, t + 1] - after.x) <= inexact + 3e-6)[clear])
        if outer is not None:
            assert np.all((np.abs(velocity[t + 1] - after.velocity) <= inexact + 3e-6)[clear])
        np.testing.assert_allclose(r[:, t + 1][:, clear], after.r[:, clear], rtol=0, atol=1e-5)
        if settings.bits == 32 and settings.detach == 'auto':
            energy = after.energy
            expected = reference_step.best_detach(energy, num_workers, AGE_SHARES[blocks['order']])
            np.testing.assert_allclose(state.detach[0, t + 1], expected, rtol=1e-4)
    if settings.decay == 1 and outer is None and settings.bits != 16:
        y = x[0] + r.mean(0)
        np.testing.assert_allclose(np.diff(y, axis=0), u.mean(0), rtol=0, atol=1e-5)  # Eq. 8
