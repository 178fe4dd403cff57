"""Parameters narrower than float32. The oracle, with every option: test_random_composition.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import def_jax

RATE, STEPS = 1e-4, 1000  # below half a unit in the last place of 1 in bfloat16


def trained(dtype, update_dtype, **options):
    """x and y of 64 ones after so many steps of -RATE, and what these are in the dtype of updates."""
    blocks = def_jax.random_block(3, order='shuffled')
    optimizer = def_jax.error_feedback(blocks, None, detach=0.0, **options)
    update = jnp.full(64, -RATE, update_dtype)

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(update, state, x)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.ones(64, dtype)
    x, state = jax.jit(lambda carry: jax.lax.scan(step, carry, None, STEPS)[0])((x, optimizer.init(x)))
    return x, def_jax.output_params(x, state, None), STEPS * float(update[0])


@pytest.mark.parametrize('bits', [1, 2, 32])
@pytest.mark.parametrize(
    ('dtype', 'update_dtype'),
    [
        *(('bfloat16', update_dtype) for update_dtype in ('float32', 'bfloat16')),
        *(('float16', update_dtype) for update_dtype in ('float32', 'bfloat16')),
        ('float32', 'bfloat16'),
    ],
)
def test_y_is_a_float32_master_copy(dtype, update_dtype, bits):
    """Where dense training would stand still; also of updates narrower than x."""
    x, y, moved = trained(dtype, update_dtype, bits=bits)
    assert x.dtype == dtype and y.dtype == jnp.float32
    np.testing.assert_allclose(y, 1 + moved, atol=1e-6)
    np.testing.assert_allclose(x.astype(jnp.float32), 1 + moved, atol=0.02)


@pytest.mark.parametrize('ratio', [1, 4])
def test_xla_may_keep_x_in_float32_within_a_program(ratio):
    """Between two updates, and from an update to y."""
    optimizer = def_jax.error_feedback(def_jax.random_block(ratio), 'workers', inner=optax.sgd(1e-3))
    grads = jax.random.normal(jax.random.key(0), (20, 2, 64)).astype(jnp.bfloat16)

    def steps(x, state, grads):
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, x)
            x = optax.apply_updates(x, updates)
        return x, state, def_jax.output_params(x, state, 'workers')

    start = jnp.ones(64, jnp.bfloat16)
    mapped = jax.jit(jax.vmap(steps, axis_name='workers', in_axes=(None, None, 1)))
    x, state, y = mapped(start, optimizer.init(start), grads)
    expected = 1 - 1e-3 * np.asarray(grads, np.float64).mean(1).sum(0)
    np.testing.assert_allclose(y[0], expected, atol=1e-5)
    np.testing.assert_allclose(x[0].astype(jnp.float32) + state.residual.mean(0), expected, atol=1e-5)


def second_moment(inner, dtype):
    """Its mean after gradients of size 1 and, ten times as long as 0.999 lasts, of size 0.1; its dtype."""
    link = def_jax.error_feedback(def_jax.random_block(4), None, inner=inner)
    x, sizes = jnp.zeros(256, dtype), jnp.repeat(jnp.array([1.0, 0.1]), jnp.array([500, 10_000]))

    def step(state, key_and_size):
        key, size = key_and_size
        grads = (size * jax.random.normal(key, x.shape)).astype(dtype)
        return link.update(grads, state, x)[1], None

    steps = jax.random.split(jax.random.key(0), len(sizes)), sizes
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, steps))(link.init(x))
    nu = optax.tree.get(state, 'nu')
    return float(nu.astype(jnp.float32).mean()), nu.dtype


@pytest.mark.parametrize(('b2', 'low', 'high'), [(0.995, 0.7, 1.1), (0.999, 20, np.inf)])
def test_a_second_moment_in_bfloat16_shrinks_if_b2_is_not_1_there(b2, low, high):
    """As the recipe says, which also says how to keep it in float32."""
    adam = optax.adam(1e-3, b2=b2)
    wide = optax.GradientTransformation(lambda x: adam.init(optax.tree.cast(x, jnp.float32)), adam.update)
    (narrow, dtype), (expected, _) = (second_moment(adam, dtype) for dtype in ('bfloat16', 'float32'))
    assert dtype == jnp.bfloat16 and low < narrow / expected < high
    found, dtype = second_moment(wide, 'bfloat16')
    assert dtype == jnp.float32 and found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize('update_dtype', ['float16', 'float32'])
@pytest.mark.parametrize(('start', 'rate'), [(0.0, 1e-6), (5e-5, 0.0), (5e-5, 1e-5)])
def test_float16_has_subnormal_numbers(start, rate, update_dtype):
    """x stood at three times its value without any gradient."""
    blocks = def_jax.random_block(4, order='cyclic')
    optimizer = def_jax.error_feedback(blocks, 'workers', inner=optax.identity())
    updates = (rate * jax.random.normal(jax.random.key(0), (12, 2, 64))).astype(update_dtype)
    step = jax.jit(jax.vmap(optimizer.update, axis_name='workers'))
    x = jnp.full((2, 64), start, 'float16')
    begin, state = x.astype(jnp.float32), jax.vmap(optimizer.init)(x)
    for update in updates:
        moved, state = step(update, state, x)
        x = optax.apply_updates(x, moved)
    y = x.astype(jnp.float32) + state.residual.mean(0)
    np.testing.assert_allclose(y, begin + updates.astype(jnp.float32).mean(1).sum(0), atol=1e-8)
    np.testing.assert_allclose(x.astype(jnp.float32), y, atol=20 * rate + 3e-8)


def masters(inner):
    """float32 masters of the parameters, as a trainer of bfloat16 parameters has them."""

    inner = optax.with_extra_args_support(inner)

    def init(params):
        copy = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return copy, inner.init(copy)

    def update(grads, state, params, **extra_args):
        copy, state = state
        updates, state = inner.update(grads, state, copy, **extra_args)
        copy = optax.apply_updates(copy, updates)
        return jax.tree.map(lambda m, x: (m - x).astype(x.dtype), copy, params), (copy, state)

    return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_a_master_copy_inside_is_refused(dtype):
    """It diverged: at the detached point it adds the residual a second time."""
    optimizer = def_jax.error_feedback(def_jax.random_block(16), 'workers', inner=masters(optax.sgd(0.1)))
    with pytest.raises(ValueError, match='inner= keeps a copy of the parameters, such as float32 masters'):
        optimizer.init({'w': jnp.ones(8, dtype)})


@pytest.mark.parametrize(
    'inner',
    [
        optax.contrib.cocob(),
        optax.contrib.madgrad(0.1),
        optax.contrib.mechanize(optax.sgd(1.0)),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1),  # whose parameters for evaluation drifted apart
    ],
    ids=['cocob', 'madgrad', 'mechanize', 'sam', 'schedule_free'],
)
def test_optimizers_that_return_to_a_copy_are_refused(inner):
    """With cocob x went to 1e12. On a quadratic at ratio 16, MADGRAD diverged; SAM ended 3 times as far."""
    with pytest.raises(ValueError, match=r'inner= keeps a copy of the parameters, .* optax\.contrib\.cocob'):
        def_jax.error_feedback(def_jax.random_block(16), 'workers', inner=inner).init(jnp.ones(8))


@pytest.mark.parametrize(
    'inner',
    [
        masters(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())),
        optax.chain(masters(optax.sgd(0.1)), optax.contrib.reduce_on_plateau()),
    ],
    ids=['in the masters', 'after them'],
)
def test_a_copy_is_found_beside_what_wants_the_loss(inner):
    """Its error grew to 1e16; in the second it was scaled by a number of the state."""
    with pytest.raises(ValueError, match='inner= keeps a copy of the parameters'):
        def_jax.error_feedback(def_jax.random_block(16), 'workers', inner=inner).init(jnp.ones(8))


@pytest.mark.parametrize(
    'inner', [optax.lbfgs(), optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(2))]
)
def test_a_search_along_a_line_is_refused(inner):
    """The gradient that it keeps is of a point where x never is."""
    with pytest.raises(ValueError, match=r'searches along a line \(ScaleBy.*linesearch=None'):
        def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=inner).init(jnp.ones(8))


def within_bounds(inner):
    """As a WGAN's critic has: x is clipped after each step."""

    def clipped(updates, params):
        return jax.tree.map(lambda u, x: jnp.clip(x + u, -0.5, 0.5) - x, updates, params)

    return optax.chain(inner, optax.stateless(clipped))


def if_finite(inner):
    """A master copy that is kept only where it is finite."""
    master = masters(inner)

    def update(grads, state, params):
        updates, after = master.update(grads, state, params)
        finite = jnp.isfinite(optax.tree.norm(after))
        zeros = optax.tree.zeros_like(updates)
        return jax.lax.cond(finite, lambda u: u, lambda _: zeros, updates), after

    return optax.GradientTransformation(master.init, update)


@pytest.mark.parametrize(
    'inner',
    [
        optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative()),
        within_bounds(optax.sgd(0.1)),
        if_finite(optax.sgd(0.1)),
    ],
    ids=['not negative', 'clipped', 'if finite'],
)
def test_bounds_of_the_parameters_inside_are_refused(inner):
    """On a quadratic at ratio 16 the first two ran away to 1e9 and more, in silence."""
    with pytest.raises(ValueError, match=r'inner= .* sets them to a bound, .* after the wrapper in a chain'):
        def_jax.error_feedback(def_jax.random_block(16), 'workers', inner=inner).init(jnp.ones(8))


def over_an_axis():
    """SGD of gradients that are summed over a mesh axis, which outside the mapped step has no name."""
    return optax.chain(optax.stateless(lambda updates, _: jax.lax.psum(updates, 'shards')), optax.sgd(0.1))


@pytest.mark.parametrize(
    'inner',
    [
        optax.adamw(0.1, weight_decay=1.0),
        optax.lamb(0.1),
        optax.contrib.prodigy(),
        optax.contrib.muon(0.1),
        optax.inject_hyperparams(optax.adamw)(0.1, weight_decay=1.0),
        over_an_axis(),
    ],
)
def test_optimizers_that_read_parameters_are_not(inner):
    def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=inner).init({'w': jnp.ones((8, 8))})


@pytest.mark.parametrize('ratio', [1, 4])
def test_outer_does_not_act_on_what_was_rounded(ratio):
    """At a small rate, y moves as in float32. Through `outer`, of gain 1.5, it went ten times as far."""
    blocks, outer = def_jax.random_block(ratio, order='cyclic'), optax.sgd(0.3, momentum=0.8)
    optimizer = def_jax.error_feedback(blocks, None, inner=optax.sgd(1e-5), outer=outer)

    def moved(dtype):
        start = jnp.linspace(0.5, 2, 64).astype(dtype)

        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(jnp.ones_like(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        (x, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=400)
        return np.asarray(def_jax.output_params(x, state, None) - start.astype(jnp.float32))

    np.testing.assert_allclose(moved(jnp.bfloat16), moved(jnp.float32), rtol=0.01)


def test_a_state_without_the_array_for_it_is_refused():
    """As one from before the state had it, or made for float32 parameters."""
    blocks, params = def_jax.random_block(4), {'w': jnp.ones(64, jnp.bfloat16)}
    optimizer = def_jax.error_feedback(blocks, None, outer=optax.sgd(1.0, momentum=0.5))
    state = optimizer.init(params)._replace(missing=())
    with pytest.raises(ValueError, match=r"state\.missing\['w'\] is not there, but must be \(64,\)"):
        optimizer.update(params, state, params)
    wide = {'w': jnp.ones(64)}
    optimizer.update(wide, optimizer.init(params), wide)  # what was missing stays in y
