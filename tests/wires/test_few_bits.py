"""Messages of 1, 2, 4 and 8 bits, against an oracle in NumPy, and what must hold of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_few_bits
from jax import NamedSharding, P
from perceptron import mapped

import def_jax
from def_jax import wires
from def_jax.traffic import traffic
from def_jax.traffic.hlo import collectives
from def_jax.wires import few_bits, rounding

BITS = (1, 2, 4, 8)
SIZES = (37, 1031, 0, 1, 513, 2)  # primes, none, one
SCALES = (1.0, 0.1, 1.0, 50.0, 1e-30, 1e30)


def make_messages(num_workers, seed=0):
    """float64 [K, n], exact in float32; the first part of the first worker is zero."""
    rng = np.random.default_rng([seed, num_workers])
    x = rng.normal(size=(num_workers, sum(SIZES))) * np.repeat(SCALES, SIZES)
    x[0, : SIZES[0]] = 0
    return x.astype(np.float32).astype(np.float64)


def exchanged(message, bits, axis_name='workers', sizes=SIZES):
    """Mean and rest of one worker's message, [n], without what lies between parts."""
    route = wires.Route.of(sizes, axis_name, bits)
    found = route.exchange(route.layout.join(jnp.split(message, np.cumsum(sizes)[:-1])))
    return [jnp.concatenate(route.layout.split(x, sizes)) for x in found[:2]]


def owners(num_workers, bits):
    """The part and the chunk of every element."""
    plan = few_bits.plan(SIZES, num_workers, bits)
    where = np.concatenate([np.arange(b, b + n) for b, n in zip(plan.layout.begins, SIZES, strict=True)])
    return np.repeat(np.arange(len(SIZES)), SIZES), where // (plan.layout.total // num_workers)


@pytest.mark.parametrize(
    ('mapping', 'num_workers', 'bits'),
    [
        *(('vmap', workers, bits) for workers in (2, 3, 8) for bits in BITS),
        ('vmap', 200, 2),
        ('one worker', 1, 1),
        ('one worker', 1, 4),
        ('pmap', 3, 2),
        ('pmap', 8, 1),
        ('pmap of vmap', 8, 2),
        ('shard_map', 4, 4),
        ('shard_map with types', 4, 2),
    ],
)
def test_every_mapping_equals_oracle(mapping, num_workers, bits):
    messages = make_messages(num_workers)

    def worker(message, _, axis_name, varying=None):
        mean, rest = exchanged(message[0], bits, axis_name)
        return mean, mean, rest

    run = mapped(mapping, worker, num_workers)
    mean, _, rest = (np.asarray(x, np.float64) for x in run([messages.astype(np.float32)], None))
    assert (mean == mean[0]).all()
    expected = reference_few_bits.exchange(messages, *owners(num_workers, bits), bits)
    scale, clear = np.repeat(SCALES, SIZES), ~expected[2]
    assert clear.mean() > 0.9
    np.testing.assert_allclose((mean[0] / scale)[clear], (expected[0] / scale)[clear], rtol=0, atol=1e-6)
    found, kept = (rest / scale)[:, clear], (expected[1] / scale)[:, clear]
    np.testing.assert_allclose(found, kept, rtol=0, atol=2e-6 * num_workers)
    # What is applied and what is kept are what was to be sent, whatever was rounded.
    atol = 2e-7 if num_workers < 100 else 2e-6
    np.testing.assert_allclose((mean[0] + rest.mean(0)) / scale, messages.mean(0) / scale, atol=atol)


@functools.cache
def of_three(bits):
    """The exchange of three workers, compiled once."""
    return jax.jit(jax.vmap(lambda x: exchanged(x, bits), axis_name='workers'))


@pytest.mark.parametrize('broken', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('bits', BITS)
def test_what_is_not_finite_reaches_all_workers(bits, broken):
    """In what has a unit in common with it, and in no other part; also from a chunk that does not travel."""
    part, chunk = owners(3, bits)
    for worker in range(3):
        messages = make_messages(3).astype(np.float32)
        messages[worker, 50] = broken  # in the second part
        mean, _ = of_three(bits)(messages)
        finite = np.isfinite(np.asarray(mean))
        stays = chunk[50] == worker
        lost = (part == 1) & ((chunk == worker) == stays)
        assert not finite[:, lost].any() and finite[:, ~lost].all()


@pytest.mark.parametrize('bits', BITS)
def test_the_own_chunk_is_exact(bits):
    """Its mean with messages of zeros is rounded once, and nothing of it comes back K-fold and coarse."""
    num_workers, n = 4, 4096
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    owner = np.arange(n) // (n // num_workers)
    messages = np.where(owner == np.arange(num_workers)[:, None], x, 0)
    exchange = jax.vmap(lambda m: exchanged(m, bits, sizes=(n,)), axis_name='workers')
    mean, rest = map(np.asarray, jax.jit(exchange)(messages))
    np.testing.assert_allclose(mean[0] + rest.mean(0), x / num_workers, rtol=0, atol=1e-6)
    assert not rest[owner != np.arange(num_workers)[:, None]].any()
    assert np.mean(rest.sum(0) ** 2) == pytest.approx(rounding.loss(bits), rel=0.1)


@pytest.mark.parametrize(('bits', 'most'), [(1, 1.6), (2, 0.7)])
def test_what_waits_does_not_grow_with_the_workers(bits, most):
    """K·‖mean rest‖² of noise in the steady state: 79 and 1.4 if the own chunk were rounded, too."""
    num_workers, n, steps = 64, 64 * 16, 60

    def step(rest, key):
        updates = jax.random.normal(key, (num_workers, n))
        rest = jax.vmap(lambda m: exchanged(m, bits, sizes=(n,))[1], axis_name='workers')(rest + updates)
        return rest, num_workers * jnp.mean(jnp.mean(rest, axis=0) ** 2)

    keys = jax.random.split(jax.random.key(0), steps)
    _, energies = jax.jit(lambda: jax.lax.scan(step, jnp.zeros((num_workers, n)), keys))()
    assert np.mean(energies[steps // 2 :]) < most


def test_the_collectives_of_a_step():
    """One all-to-all and one all-gather of bytes, and nothing else."""
    num_workers, params = 8, {'w': jnp.zeros((256, 128)), 'b': jnp.zeros(64)}
    optimizer = def_jax.def_sgd(0.1, 64, 'workers', skip_nonfinite=True)
    own = params, optimizer.init(params), params
    arguments = jax.tree.map(lambda x: jnp.stack([x] * num_workers), own)
    step = jax.pmap(optimizer.update, axis_name='workers').lower(*arguments).compile()
    found = collectives(step.as_text())
    size = def_jax.message_size(def_jax.random_block(4, order='shuffled', allocation='balanced'), params)
    assert sorted(c.operation for c in found) == ['all-gather', 'all-to-all']
    assert {c.dtype for c in found} == {'u8'}
    for c in found:  # codes, two units, and the energy of 'auto'
        assert size / 4 <= c.bytes <= 1.02 * size / 4 + num_workers * (2 * 2 + 8)


@pytest.mark.parametrize('types', [False, True])
def test_along_several_axes_of_a_mesh_there_is_one_exchange(types):
    """One after the other would be as many times the bytes."""
    mesh, params = jax.make_mesh((2, 4), ('pods', 'nodes')), jnp.zeros((64, 64))
    optimizer = def_jax.def_sgd(0.1, 64, ('pods', 'nodes'))
    step = jax.shard_map(
        lambda grads: optimizer.update(grads[0], optimizer.init(params), params)[0],
        mesh=mesh,
        in_specs=P(('pods', 'nodes')),
        out_specs=P(),
        check_vma=types,
    )
    grads = jax.ShapeDtypeStruct((8, 64, 64), jnp.float32, sharding=NamedSharding(mesh, P(('pods', 'nodes'))))
    found = collectives(jax.jit(step).lower(grads).compile().as_text())
    assert sorted(c.operation for c in found) == ['all-gather', 'all-to-all']


def test_a_long_row_is_gathered_in_whole_tiles_of_a_tpu():
    """XLA for TPUs turns the gather of other rows into an all-reduce; short rows are not worth the zeros."""

    def gathered(size):
        optimizer = def_jax.def_sgd(0.1, 64, 'workers')
        params = jax.ShapeDtypeStruct((size,), jnp.float32)
        (message,) = (m for m in traffic(optimizer, params, 'workers').always if m.operation == 'all-gather')
        return message.bytes

    assert gathered(2**25 + 5) % 1024 == 0
    assert gathered(2**25 + 5) <= 1.01 * (2**25 + 5) / 16
    assert gathered(10_000) % 1024


def test_rounding_is_compiled_once_and_not_for_every_tensor():
    """XLA would compute what rounding takes in the kernel of every residual, to save the memory for it."""

    def roundings(tensors):
        params = {f'{i}': jnp.zeros((16, 8 + i)) for i in range(tensors)}
        optimizer = def_jax.def_sgd(0.1, 64, 'workers')
        arguments = jax.tree.map(lambda x: jnp.stack([x] * 4), (params, optimizer.init(params), params))
        step = jax.pmap(optimizer.update, axis_name='workers', donate_argnums=1).lower(*arguments).compile()
        return step.as_text().count(' round-nearest-even(')

    assert 0 < roundings(9) == roundings(3)


@pytest.mark.parametrize('bits', BITS)
def test_no_other_unit_suits_a_gaussian_better(bits):
    """Within 2 %; and `loss` is what rounding takes of its squares, also when drawn."""
    x = np.linspace(0, 10, 20001)
    levels = max(1, 2 ** (bits - 1) - 1)

    def error(unit):
        steps = np.minimum(np.round(x / unit), levels) if bits > 1 else np.ones_like(x)
        return np.sum(np.exp(-(x**2) / 2) * (x - unit * steps) ** 2)

    unit = rounding.loading(bits) / levels
    assert error(unit) <= 1.02 * min(error(factor * unit) for factor in np.linspace(0.7, 1.4, 50))
    drawn = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    _, rest = jax.jit(lambda x: exchanged(x, bits, None, (drawn.size,)))(drawn)
    assert np.mean(np.square(rest)) == pytest.approx(rounding.loss(bits), rel=0.05)


@pytest.mark.parametrize('alike', [False, True])
@pytest.mark.parametrize('bits', [*BITS, 16, 32])
def test_the_energy_is_that_of_what_was_to_be_sent(bits, alike):
    """Of messages that are all noise, or all alike: ‖mean‖² and the mean of ‖·‖², part by part weighted."""
    rng, sizes, weights = np.random.default_rng(0), (30_000, 10_000), np.float32([2.0, 5.0])
    messages = np.broadcast_to(rng.normal(size=(1 if alike else 8, 40_000)), (8, 40_000)).astype(np.float32)

    def worker(message):
        route = wires.Route.of(sizes, 'workers', bits)
        message = route.layout.join(jnp.split(message, [sizes[0]]))
        return route.exchange(message, jnp.asarray(weights)).energy

    found = np.asarray(jax.jit(jax.vmap(worker, axis_name='workers'))(messages))
    assert (found == found[0]).all()
    factors = np.repeat(weights, sizes)
    expected = factors @ messages.mean(0) ** 2, np.mean(messages**2 @ factors)
    np.testing.assert_allclose(found[0], expected, rtol=0.03)


def test_the_message_travels_in_bfloat16():
    """In the program as it is handed to the compiler; XLA's CPU backend reduces bfloat16 as float32."""
    feedback = def_jax.error_feedback(def_jax.random_block(4), 'workers', bits=16)
    step = jax.pmap(lambda u, s: feedback.update(u, s), axis_name='workers')
    state = jax.vmap(feedback.init)(jnp.zeros((4, 64)))
    program = step.lower(jnp.zeros((4, 64)), state).as_text()
    (reduced,) = re.findall(r'"stablehlo.all_reduce"[\s\S]*?-> tensor<(\w+)>', program)
    assert reduced == '16xbf16'
