"""Messages in flight: what waits for what, and who is left out. Their oracle: test_random_composition.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from perceptron import INITIAL
from sharded_workers import distributed, feedback

import def_jax

BLOCKS = def_jax.random_block(4, order='cyclic')


def test_workers_of_several_devices_move_y_by_the_mean_update():
    """Eq. 8, with 8 bits and 'auto', and with a worker whose update is not finite.

    It is left out on all its devices, and holds its momentum; a schedule's count goes on with the others',
    whose updates count. The next message of all is lost, and sent again.
    """
    options = {'overlap': True, 'skip_nonfinite': True, 'bits': 8, 'detach': 'auto'}
    inner, bad = optax.sgd(lambda count: 0.05 / (1 + count), momentum=0.5), 3
    dist = distributed('2x4', feedback('2x4', def_jax.random_block(2), inner=inner, **options))

    @jax.jit
    def step(params, state, grads):
        updates, state = dist.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, dist.output_params(params, state)

    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    state, y, momentum = jax.jit(dist.init)(params), list(INITIAL), [0 * x for x in INITIAL]
    rng = np.random.default_rng(0)
    for t in range(6):
        grads = [rng.normal(size=(2, *np.shape(x))).astype(np.float32) for x in INITIAL]
        sent = [g.copy() for g in grads]
        if t == bad:
            sent[0][1, 2, 3] = np.nan
        x = jax.tree.map(np.asarray, params)
        params, state, after = step(params, state, sent)
        lives = np.array([1, t != bad]).astype(np.float32)
        for i, (old, new, g) in enumerate(zip(y, after, grads, strict=True)):
            lives_like = lives.reshape(2, *[1] * old.ndim)
            fresh = 0.5 * momentum[i] + g
            momentum[i] = np.where(lives_like > 0, fresh, momentum[i])
            mean = np.mean(fresh * lives_like, 0)
            np.testing.assert_allclose(new, old - 0.05 / (1 + t) * mean, rtol=0, atol=1e-5)
        y = jax.tree.map(np.asarray, after)
        assert optax.tree.get(state, 'left_out').tolist() == [False, t == bad]
        lost = t > bad  # the others hear with the next message
        assert [int(optax.tree.get(state, name)) for name in ('step', 'skipped')] == [t + 1 - lost, lost]
        waits = t in (0, bad + 1)  # for a message, and for another
        assert all(np.array_equal(new, old) == waits for new, old in zip(params, x, strict=True))


@pytest.mark.parametrize('every', [1, 3])
def test_the_first_message_which_is_empty_does_not_count_for_outer(every):
    """Of updates that do not depend on the point, x is the plain run's, one step later, as Adam counts."""
    gradients = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)

    def course(overlap):
        options = {'outer': optax.adam(0.1), 'every': every, 'overlap': overlap}
        optimizer = def_jax.error_feedback(def_jax.identity(), 'workers', inner=optax.sgd(0.1), **options)

        def step(carry, gradient):
            x, state = carry
            updates, state = optimizer.update(gradient, state, x)
            return (x + updates, state), x + updates

        x = jnp.ones(5)
        worker = jax.vmap(lambda g: jax.lax.scan(step, (x, optimizer.init(x)), g)[1], axis_name='workers')
        return np.asarray(jax.jit(worker)(gradients))

    np.testing.assert_allclose(course(True)[:, 1:], course(False)[:, :-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'options', [{}, {'bits': 2, 'detach': 'auto'}, {'outer': optax.sgd(0.7, momentum=0.5), 'every': 2}]
)
def test_the_message_needs_nothing_that_the_step_computes(options):
    """Followed through the traced program, from the gradients on, to the collectives."""
    inner, params = optax.sgd(0.1, momentum=0.9), [jnp.asarray(x) for x in INITIAL]
    optimizer = def_jax.error_feedback(BLOCKS, 'workers', inner=inner, overlap=True, **options)
    update = jax.make_jaxpr(optimizer.update, axis_env=[('workers', 4)])
    program = update(params, optimizer.init(params), params).jaxpr
    late, reached = set(program.invars[: len(params)]), []
    for equation in program.eqns:
        needs = any(value in late for value in equation.invars if not hasattr(value, 'val'))
        parts = map(str, (equation.primitive, *equation.params.values()))
        if any(name in part for part in parts for name in ('psum', 'all_to_all', 'all_gather')):
            reached.append(needs)
        elif needs:
            late.update(equation.outvars)
    assert reached == [False] * (2 if 'bits' in options else 1)


def test_a_block_of_the_update_is_taken_after_the_message():
    """Else XLA for GPUs takes both in one kernel, and the message waits for the gradient."""
    params = {'matrix': jnp.ones((8, 8)), 'bias': jnp.ones(8)}
    blocks = def_jax.random_block(4)
    link = def_jax.error_feedback(blocks, None, overlap=True)
    program = jax.make_jaxpr(link.update)(params, link.init(params), params).jaxpr
    updates, message = set(program.invars[: len(params)]), def_jax.message_size(blocks, params)
    later: list = []  # what follows the barrier of the message
    indices = []
    for equation in program.eqns:
        behind = equation.primitive.name == 'optimization_barrier' and any(
            x.aval.shape == (message,) for x in equation.invars
        )
        if behind or any(x is y for x in equation.invars for y in later):
            later += equation.outvars
        if equation.primitive.name == 'dynamic_slice' and equation.invars[0] in updates:
            indices += [x for x in equation.invars[1:] if isinstance(x, type(program.invars[0]))]
    assert indices and all(any(x is y for y in later) for x in indices)
