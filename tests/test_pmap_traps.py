"""Idioms of pmap trainers: each trains rightly, or raises an error that says what to do.

States alone are for test_mistakes.py, and what `def_jax.check` finds for test_crossing.py.
"""

import functools

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from pmap_training import (
    DATA,
    DEVICES,
    NUM_WORKERS,
    PARAMS,
    averaged,
    loss_fn,
    plain_step,
    stacked,
    train,
    wrapper,
)

import def_jax


@functools.cache
def trained():
    """The optimizer of most tests, and its state after two steps."""
    optimizer = wrapper()
    return optimizer, train(optimizer, 2)[1]


def one_step(optimizer, state, workers):
    """The state after another step, of so many workers."""
    step = jax.vmap(functools.partial(plain_step, optimizer), in_axes=(None, 0, 0), axis_name='workers')
    return jax.jit(step)(PARAMS, state, DATA[:workers, 3])[1]


def copies_agree(tree):
    return all((x == x[:1]).all() for x in map(np.asarray, jax.tree.leaves(tree)))


def test_b_a_verdict_on_a_step_is_the_same_on_all_workers():
    """One worker's gradient is NaN in the third step, which nobody keeps."""

    def step(optimizer, params, state, batch, verdict=lambda grads: def_jax.all_finite(grads, 'workers')):
        grads = jax.grad(loss_fn)(def_jax.detached_params(params, state), batch)
        bad = (jax.lax.axis_index('workers') == 2) & (state.step == 2)
        grads = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), grads)
        kept = verdict(grads)
        updates, after = optimizer.update(grads, state, params)
        new = optax.apply_updates(params, updates), after
        return jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, (params, state))

    params, state = train(wrapper(), steps=4, step=step)
    assert copies_agree(params) and np.isfinite(params['w']).all()
    assert set(np.asarray(state.step).tolist()) == {2}  # it never gets past it: the step counts what was kept
    always = functools.partial(step, verdict=lambda grads: True)
    params, state = train(wrapper(skip_nonfinite=True, bits=2), steps=4, step=always)
    assert copies_agree(params) and np.isfinite(params['w']).all()
    assert set(state.step.tolist()) == set(state.skipped.tolist()) == {2}
    own = functools.partial(step, verdict=lambda grads: jnp.isfinite(grads['w']).all())
    with pytest.raises(ValueError, match=r'workers have different opt_state\.step, .*def_jax\.all_finite'):
        def_jax.stack_state(train(wrapper(), steps=4, step=own)[1])


def test_c_a_state_that_calls_itself_replicated_is_saved_whole():
    _, state = train(wrapper(), axes=None)
    assert state.residual['w'].sharding.is_fully_replicated  # it is not
    saved = def_jax.stack_state(state)
    expected = train(wrapper())[1]
    np.testing.assert_array_equal(saved.residual['w'], expected.residual['w'])
    np.testing.assert_array_equal(saved.inner[0].mu['w'], expected.inner[0].mu['w'])
    assert saved.step.shape == () and int(saved.step) == 6
    restored = def_jax.unstack_state(saved)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    jax.tree.map(np.testing.assert_array_equal, def_jax.unstack_state(expected), expected)
    everywhere = NamedSharding(jax.make_mesh((4,), ('workers',), devices=DEVICES), P())
    restored = def_jax.unstack_state(jax.device_put(saved, everywhere))
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    with pytest.raises(ValueError, match='unstack_state: all 4 workers have the same residual'):
        def_jax.unstack_state(stacked(jax.tree.map(lambda x: np.asarray(x)[0], expected)))


# What residuals show depends on the bits; moments show it whatever they are.
@pytest.mark.parametrize(
    ('bits', 'inner'),
    [*((bits, optax.identity()) for bits in (1, 2, 8, 32)), (2, optax.scale_by_rms(0.9))],
    ids=['1', '2', '8', '32', 'moments'],
)
@pytest.mark.parametrize('change', [averaged, lambda grads: grads], ids=['averaged', 'right'])
def test_e_the_debug_mode_raises_at_the_second_step(change, bits, inner):
    optimizer = wrapper(inner=inner, bits=bits)
    step = jax.jit(functools.partial(plain_step, optimizer, change=change))

    def run(data):  # under vmap, where the error of a callback arrives at once
        carry = PARAMS, optimizer.init(PARAMS)
        for t in range(2):
            carry = step(*carry, data[t])
            def_jax.debug(*carry, 'workers')

    mapped = jax.vmap(run, axis_name='workers')
    if change is averaged:
        with pytest.raises(ValueError, match='all 4 workers have the same residual'):
            mapped(DATA)
    else:
        mapped(DATA)


@pytest.mark.parametrize('inner', [optax.rprop(0.01), optax.sign_sgd(0.01)], ids=['rprop', 'sign_sgd'])
def test_e_the_debug_mode_takes_numbers_that_agree_by_chance(inner):
    """They have a few values alone; it said that gradients were averaged."""
    optimizer = wrapper(inner=inner)

    @jax.jit
    def step(carry, batch):
        carry = plain_step(optimizer, *carry, batch)
        def_jax.debug(*carry, 'workers')
        return carry

    def run(data):
        carry = PARAMS, optimizer.init(PARAMS)
        for t in range(4):
            carry = step(carry, data[t])

    jax.vmap(run, axis_name='workers')(DATA[:2])
    jax.effects_barrier()


def test_residuals_that_agree_by_chance_as_those_of_signs_do_are_no_averages_if_moments_differ():
    def run(own):
        state = wrapper().init(PARAMS)
        inner = jax.tree.map(lambda x: x + own.astype(x.dtype), state.inner)
        ones = jax.tree.map(jnp.ones_like, state.residual)
        def_jax.debug(PARAMS, state._replace(step=jnp.uint32(2), residual=ones, inner=inner), 'workers')

    jax.vmap(run, axis_name='workers')(jnp.arange(4.0))


def test_rows_of_an_embedding_that_only_decay_are_no_averages():
    shapes = {'embedding': (80, 64), 'kernel': (72, 64), 'bias': (8,)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    link = wrapper(inner=optax.trace(0.9))

    def run(own):
        state = link.init(params)
        trace = {name: own * (name == 'kernel') + jnp.ones(shape) for name, shape in shapes.items()}
        inner = state.inner._replace(trace=trace)
        def_jax.debug(params, state._replace(step=jnp.uint32(2), inner=inner), 'workers')

    jax.vmap(run, axis_name='workers')(jnp.arange(2.0))


def test_the_debug_mode_compares_the_parameters():
    link, parameters = wrapper(), jnp.arange(16.0).reshape(2, 8)
    with pytest.raises(ValueError, match='do not agree on params'):
        jax.vmap(lambda x: def_jax.debug(x, link.init(x), 'workers'), axis_name='workers')(parameters)


def test_the_debug_mode_tells_divergence_from_averaged_gradients():
    optimizer = wrapper(inner=optax.sgd(jnp.inf))
    step = jax.jit(functools.partial(plain_step, optimizer))

    def run(data):
        carry = PARAMS, optimizer.init(PARAMS)
        for t in range(2):
            carry = step(*carry, data[t])
            def_jax.debug(*carry, 'workers')

    with pytest.raises(ValueError, match='not finite: training has diverged'):
        jax.vmap(run, axis_name='workers')(DATA)


@pytest.mark.parametrize('resets', [True, False])
def test_the_debug_mode_notices_a_wrapper_that_resets_the_state(resets):
    """`optax.lookahead` makes a new state at every second step here, and the residuals are lost."""
    optimizer = optax.lookahead(wrapper(), 2, 0.5, reset_state=resets)

    def step(params, state, batch):
        grads = jax.grad(loss_fn)(def_jax.detached_params(params.fast, state), batch)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        def_jax.debug(params, state, 'workers')
        return params, state

    def run(data):
        params = optax.LookaheadParams.init_synced(PARAMS)
        carry = params, optimizer.init(params)
        return jax.lax.scan(lambda carry, batch: (step(*carry, batch), None), carry, data)[0]

    mapped = jax.vmap(run, axis_name='workers')
    if resets:
        with pytest.raises(Exception, match=r'debug: .*as optax\.lookahead\(reset_state=True\) does'):
            jax.block_until_ready(mapped(DATA[:, :2]))
    else:
        jax.block_until_ready(mapped(DATA[:, :4]))


def test_a_state_that_has_diverged_alike_is_saved():
    """NaN in a replicated leaf differs from itself, not between workers."""
    optimizer = def_jax.def_adamw(0.1, 64, 'workers')
    state = jax.vmap(optimizer.init)(jnp.ones((2, 8)))
    state = state._replace(outer=jax.tree.map(lambda x: x + jnp.nan, state.outer))
    saved = def_jax.stack_state(state)
    assert np.isnan(jax.tree.leaves(saved.outer)[0]).all()


def test_j_and_k_what_a_copy_of_one_worker_loses_is_refused():
    params, state = train(wrapper(bits=2))
    assert def_jax.stack_state(train(wrapper(average_every=1))[1])  # one residual, but moments of each
    alone, first = flax.jax_utils.unreplicate(state), jax.tree.map(lambda x: x[0], state)
    for tree, words in ((alone, "this is one worker's"), (stacked(alone), 'all 4 workers'), (first, '')):
        with pytest.raises(ValueError, match=rf'stack_state: {words}.* train on from x with a new state'):
            def_jax.stack_state(tree)  # recent JAX copies first to every device
    assert copies_agree((params, state.step, state.key, state.detach))  # which is what may be asserted


@pytest.mark.parametrize(
    'order', [(0, 0, 0, 0), (1, 0, 2, 3), (0, 1), (2, 3)], ids=['copies', 'swapped', 'the first', 'the last']
)
def test_j_a_state_that_belongs_to_another_worker_is_noticed_whenever_it_was_restored(order):
    """Steps make residuals differ that were copies."""
    optimizer, state = trained()
    state = jax.tree.map(lambda x: np.stack([np.asarray(x)[k] for k in order]), state)
    with pytest.raises(ValueError, match=f'workers {", ".join(map(str, order))} of 4|same residual'):
        def_jax.stack_state(state)
    state = one_step(optimizer, state, len(order))
    shown = f'these are states of the workers {", ".join(map(str, order))}, with which others have gone on'
    with pytest.raises(ValueError, match=f'^stack_state: {shown}'):
        def_jax.stack_state(state)
    with pytest.raises(ValueError, match=f'unstack_state: {shown}'):
        def_jax.unstack_state(state)
    with pytest.raises(ValueError, match=f'debug: {shown}'):
        jax.vmap(lambda s: def_jax.debug(PARAMS, s, 'workers'), axis_name='workers')(state)


def test_y_needs_the_residuals_of_all_workers():
    """Of one worker's copy, x + r_k was returned as y."""
    _, state = trained()
    first = jax.tree.map(lambda x: np.asarray(x)[0], state)
    with pytest.raises(ValueError, match=r'output_params: .* worker 0 of 4, .*axis_name=None.*unstack_state'):
        def_jax.output_params(PARAMS, first, None)
    with pytest.raises(ValueError, match=r'error_statistics: .* worker 0 of 4, .*axis_name=None'):
        def_jax.diagnostics.error_statistics(first, None)
    one = def_jax.unstack_state(def_jax.stack_state(state), 1)
    y = def_jax.output_params(PARAMS, jax.tree.map(lambda x: x[0], one), None)
    mean = optax.tree.get(state, 'residual')['w'].mean(0)
    np.testing.assert_allclose(y['w'], PARAMS['w'] + mean, rtol=1e-5)


def test_j_one_copy_of_a_link_without_a_residual_is_refused():
    """EF21's mean would never again be that of what workers hold."""
    optimizer = optax.chain(def_jax.ef21(def_jax.random_block(4), 'workers'), optax.sgd(0.1))
    update = jax.vmap(lambda grads: optimizer.update(grads, optimizer.init(PARAMS))[1], axis_name='workers')
    state = update(jax.tree.map(lambda x: jnp.stack([x * k for k in range(NUM_WORKERS)]), PARAMS))
    assert def_jax.stack_state(state)[0].local['b'].shape == (NUM_WORKERS, 8)
    with pytest.raises(ValueError, match='all 4 workers have the same residual'):
        def_jax.stack_state(stacked(jax.tree.map(lambda x: x[1], state)))


def test_j_other_workers_take_over_a_state_that_is_regrouped():
    optimizer, state = trained()
    for number in (0, -1, 1.5):  # 0 was taken for the number before
        with pytest.raises(ValueError, match=rf'num_workers={number} must be an integer in \[1, '):
            def_jax.unstack_state(state, number)
    state = def_jax.unstack_state(def_jax.stack_state(state), 3)
    assert state.worker.tolist() == [[-1, -1]] * 3
    saved = def_jax.stack_state(state)  # before they have made a step
    np.testing.assert_array_equal(saved.residual['w'], state.residual['w'])
    state = one_step(optimizer, state, 3)
    assert state.worker.tolist() == [[0, 3], [1, 3], [2, 3]]
    def_jax.stack_state(state)
    jax.vmap(lambda s: def_jax.debug(PARAMS, s, 'workers'), axis_name='workers')(state)


@pytest.mark.parametrize('inner', [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=['shapes', 'scalar'])
def test_j_one_workers_state_has_no_axis_over_workers(inner):
    """What a checkpoint holds of it: arrays of the shapes of the parameters, without devices."""
    optimizer = wrapper(inner=inner)
    params = PARAMS if isinstance(inner.init(PARAMS)[0], optax.TraceState) else PARAMS['w']
    alone = jax.tree.map(np.asarray, optimizer.init(params))
    for function in (def_jax.stack_state, def_jax.unstack_state):
        with pytest.raises(
            ValueError, match=rf"{function.__name__}: this is one worker's .* \(16, 8\).*x\[None\]"
        ):
            function(alone)
    saved = def_jax.stack_state(jax.tree.map(lambda x: x[None], alone))
    jax.tree.map(np.testing.assert_array_equal, def_jax.stack_state(saved), saved)
