"""Messages of small integers, against an oracle in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import exchanged, masks

import def_jax
from def_jax.beyond import integers
from def_jax.beyond.base import Step
from def_jax.beyond.integers import loading
from def_jax.mesh.shards import WHOLE
from def_jax.traffic.hlo import collectives

RATIO, NUM_STEPS = 4, 12
SHAPES = {'a': (8, 6), 'b': (4,), 'c': ()}
SCALES = {'a': 1e-3, 'b': 50.0, 'c': 1e-6}
BLOCKS = def_jax.random_block(RATIO, order='cyclic')
RUN = def_jax.random_block(RATIO, granularity='model', order='shuffled')


def link(compressor=BLOCKS, axis_name='workers', **options):
    return def_jax.error_feedback(compressor, axis_name, wire_dtype=jnp.int8, **options)


def make_params():
    return {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


def make_updates(num_workers, num_steps=NUM_STEPS):
    """Updates [K, T, ...], of workers that differ in size; one is zero at first."""
    rng = np.random.default_rng(num_workers + 1)
    sizes = {name: scale * rng.uniform(0.5, 2, num_workers) for name, scale in SCALES.items()}
    updates = {
        name: np.einsum('k,k...->k...', sizes[name], rng.normal(size=(num_workers, num_steps, *shape)))
        for name, shape in SHAPES.items()
    }
    updates['b'][0, :2] = 0
    return jax.tree.map(np.float32, updates)


def oracle(updates, sent):
    """One tensor: what arrived [T, ...], the residuals [T, K, ...] and the mean squares [T], in float64.

    Updates are [K, T, ...]. A report has as many levels as digits of base 2·L + 1 that hold nine bits.
    """
    num_workers, num_steps = updates.shape[:2]
    levels = 127 // num_workers
    num_digits = next(n for n in range(1, 10) if (2 * levels + 1) ** n >= 2**9)
    top = (2 * levels + 1) ** num_digits - 1
    loading = 1.72 * np.sqrt(np.log2(2 * levels + 1)) - 0.93
    residual, square, found = np.zeros_like(updates[:, 0], np.float64), 0.0, []
    for t in range(num_steps):
        pending, chosen = updates[:, t] + residual, sent[t] > 0
        block, unit = pending[:, chosen], loading * np.sqrt(square) / levels
        counts = np.clip(np.round(block / unit), -levels, levels) if square else 0 * block
        own = np.mean(block**2, axis=1)
        with np.errstate(divide='ignore'):
            report = own / square / 16 if square else (np.log2(own) + 64) / 96
        report = np.mean(np.round(np.clip(report, 0, 1) * top) / top)
        first = 2 ** (96 * report - 64) if report > 0 else 0.0
        square = 0.75 * square + 0.25 * 16 * report * square if square else first
        arrived, residual = np.zeros_like(pending[0]), pending.copy()
        arrived[chosen] = unit * np.mean(counts, axis=0)
        residual[:, chosen] -= unit * counts
        found.append((arrived, residual, square))
    return tuple(map(np.stack, zip(*found, strict=True)))


@pytest.mark.parametrize('num_workers', [1, 64])
def test_the_oracle(num_workers):
    """What arrives is the mean of what left the residuals, at integers of a unit that all workers know."""
    updates, sent = make_updates(num_workers), masks(BLOCKS, make_params(), NUM_STEPS, jax.random.PRNGKey(0))
    arrived, state = exchanged(link(), updates)
    residual, extra = state.residual, state.extra
    for i, (name, scale) in enumerate(SCALES.items()):
        assert np.all(arrived[name] == arrived[name][0])
        assert np.all(extra['wire_squares'] == extra['wire_squares'][0])
        expected = oracle(updates[name], sent[name])
        found = arrived[name][0], np.moveaxis(residual[name], 0, 1), extra['wire_squares'][0, :, i]
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-5)
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)
        before = np.concatenate([np.zeros_like(found[1][:1]), found[1][:-1]])
        left = before + np.moveaxis(updates[name], 0, 1) - found[1]
        np.testing.assert_allclose(left.mean(1, dtype=np.float64), found[0], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize('levels', [1, 3, 15, 127])
def test_the_unit_suits_a_gaussian(levels):
    """No other multiple of the root mean square leaves 2 % less to round and to clip."""
    x = np.linspace(0, 10, 20001)

    def error(unit):
        return np.sum(np.exp(-(x**2) / 2) * (x - unit * np.minimum(np.round(x / unit), levels)) ** 2)

    ours = loading(levels) / levels
    assert error(ours) <= 1.02 * min(error(factor * ours) for factor in np.linspace(0.7, 1.4, 50))


def test_units_are_found_in_a_few_messages():
    """By 64 workers, with -1, 0 and 1, for blocks of any size: at best, 19 % of a Gaussian is left."""
    sizes = jnp.array([1e-8, 1e-2, 1e3])
    updates = np.random.default_rng(0).normal(size=(64, 6, 640)).astype(np.float32)

    def worker(size, updates):
        def step(state, u):
            selection = RUN(state.key, state.step, u)
            before = selection.take(size * u + state.residual)
            _, state = link(RUN).update(size * u, state)
            left = selection.take(state.residual)
            return state, jnp.sum(left**2) / jnp.sum(before**2)

        return jax.lax.scan(step, link(RUN).init(jnp.zeros(640)), updates)[1]

    workers = jax.vmap(worker, in_axes=(None, 0), axis_name='workers')
    left = jax.jit(jax.vmap(workers, in_axes=(0, None)))(sizes, updates).mean(axis=1)
    np.testing.assert_allclose(left[:, 0], 1, rtol=1e-5)  # the first message only tells the size
    assert left[:, 3:].max() < 0.3


def test_the_ends_of_the_range():
    """Updates of 1e-14 are sent like any, if later; squares that overflow are not finite, at once."""
    sizes = np.float32([1e-14, 1e15, 1e20])
    updates = np.random.default_rng(0).normal(size=(2, 60, 64)).astype(np.float32)

    def worker(size, updates):
        def step(state, u):
            arrived, state = link().update(size * u, state)
            return state, (arrived, state.residual)

        return jax.lax.scan(step, link().init(jnp.zeros(64)), updates)[1]

    workers = jax.vmap(worker, in_axes=(None, 0), axis_name='workers')
    arrived, residual = jax.jit(jax.vmap(workers, in_axes=(0, None)))(sizes, updates)
    for i in (0, 1):
        assert np.std(residual[i, :, 40:] / sizes[i]) < 3 and np.any(arrived[i])
        left = np.sum(updates, 1, np.float64) - np.asarray(residual[i, :, -1], np.float64) / sizes[i]
        went = np.sum(np.asarray(arrived[i, 0], np.float64) / sizes[i], 0)
        np.testing.assert_allclose(went, left.mean(0), atol=1e-3)
    assert np.isnan(arrived[2, :, 0]).sum() == 2 * 64 // RATIO


@pytest.mark.parametrize(('skip', 'broken'), [(True, np.inf), (False, np.nan)])
def test_what_is_not_finite_reaches_all_workers(skip, broken):
    updates = make_updates(3)
    updates['a'][1, 4, 0, 0] = broken
    options = {'skip_nonfinite': skip, 'detach': 'auto'}
    arrived, state = exchanged(link(def_jax.identity(), **options), updates)
    if not skip:
        assert all(np.isnan(arrived[name][:, 4]).all() for name in SHAPES)
        return
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((arrived, state.residual, state.extra)))
    assert all(np.all(arrived[name][:, 4] == 0) for name in SHAPES)
    assert state.extra['skipped'][:, -1].tolist() == [1, 1, 1]
    np.testing.assert_array_equal(state.extra['wire_squares'][:, 4], state.extra['wire_squares'][:, 3])


def test_one_all_reduce_of_int8():
    """The block, two digits for each tensor and for the energy of 'auto', and a flag."""
    num_workers, params = 8, {'w': jnp.zeros((64, 32)), 'b': jnp.zeros(64)}
    optimizer = link(def_jax.random_block(RATIO), detach='auto', skip_nonfinite=True)
    own = params, optimizer.init(params)
    arguments = jax.tree.map(lambda x: jnp.stack([x] * num_workers), own)
    step = jax.pmap(optimizer.update, axis_name='workers').lower(*arguments).compile()
    (sent,) = collectives(step.as_text())
    size = (64 * 32 + 64) // RATIO + 2 * 3 + 1
    assert (sent.operation, sent.elements, sent.bytes) == ('all-reduce', size, size)


def test_a_mean_is_exact_for_any_number_of_workers(monkeypatch):
    """However XLA divides by K. All zeros are reported as zero: what is not known stays so."""
    wire = integers.Integers('workers', def_jax.identity(), numbers=0)
    state = link().init(jnp.zeros(5))

    @jax.vmap
    def unpacked(mean, known):
        before = state._replace(extra={'wire_squares': known[None]})
        step = Step(None, before, jnp.zeros(5), None, WHOLE, after=before)
        mean, step = wire.unpack(mean, step)
        return mean, step.after.extra['wire_squares'][0]

    for num_workers in range(1, 128):
        monkeypatch.setattr(integers, 'num_workers', lambda _, k=num_workers: k)
        levels = 127 // num_workers
        num_digits = next(n for n in range(1, 10) if (2 * levels + 1) ** n >= 2**9)
        counts = np.array([-levels, -1, 0, 1, levels]) * num_workers + np.array([1, 1, 0, -1, 0])
        none, most = (
            np.r_[counts, [digit * num_workers] * num_digits, 0].astype(np.float32)
            for digit in (-levels, levels)
        )
        total, workers = np.stack([none, most]), np.float32(num_workers)
        known = np.float32([0, 1, 0, 1])
        means, squares = unpacked(np.concatenate([total / workers, total * (1 / workers)]), known)
        expected = counts / num_workers * loading(levels) / levels
        np.testing.assert_allclose(means, known[:, None] * expected, rtol=1e-6)
        np.testing.assert_allclose(squares, known * (0.75 + 0.25 * 16), rtol=1e-6)


def test_too_many_workers():
    update = jax.vmap(lambda u: link().update(u, link().init(u))[0], axis_name='workers')
    assert jax.eval_shape(update, jnp.zeros((127, 4))).shape == (127, 4)
    with pytest.raises(ValueError, match=r'8 bits.* but there are 128 workers'):
        jax.eval_shape(update, jnp.zeros((128, 4)))


def test_between_messages_the_units_rest():
    optimizer = link(def_jax.random_block(2), None, every=2)
    update, state, known = jax.jit(optimizer.update), optimizer.init(jnp.zeros(8)), []
    for _ in range(4):
        arrived, state = update(jnp.arange(8.0), state)
        known.append(float(state.extra['wire_squares'][0]))
    assert known[0] == 0 < known[1] == known[2] != known[3]
    assert np.any(arrived)
