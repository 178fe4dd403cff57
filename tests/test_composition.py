"""error_feedback inside other optax transformations, with odd leaves and dtypes, compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import def_jax

NUM_WORKERS, NUM_STEPS = 4, 12
SHAPES = {'b': (6,), 's': (), 'w': (8, 6)}
CLOSE = dict(rtol=0, atol=1e-6)  # other fusions, same sums: a few roundings of values of order 1


def make_params(dtype=jnp.float32, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def make_targets(shapes=SHAPES):
    rng = np.random.default_rng(1)
    draw = {name: rng.normal(size=(NUM_WORKERS, NUM_STEPS, *shape)) for name, shape in shapes.items()}
    return jax.tree.map(lambda x: x.astype(np.float32), draw)


def feedback(ratio=4, axis_name='workers', **kwargs):
    return def_jax.error_feedback(def_jax.random_block(ratio), axis_name, **kwargs)


def gradient(point, target):
    """Of ½‖point - target‖²: one number per coordinate, so that leaves do not influence each other."""
    return jax.tree.map(lambda x, t: x - t.astype(x.dtype), point, target)


def step(optimizer, params, state, target):
    point = def_jax.detached_params(params, state)
    updates, state = optimizer.update(gradient(point, target), state, point)
    return optax.apply_updates(params, updates), state


def train(optimizer, params, targets):
    """x and y after every step, leaves [K, T, ...], and the final state."""

    def worker(targets):
        def body(carry, target):
            params, state = step(optimizer, *carry, target)
            return (params, state), (params, def_jax.output_params(params, state, 'workers'))

        (_, state), (x, y) = jax.lax.scan(body, (params, optimizer.init(params)), targets)
        return x, y, state

    return jax.jit(jax.vmap(worker, axis_name='workers'))(targets)


def sgd():
    return optax.sgd(0.1, momentum=0.9)


def subtree(tree, names):
    return {name: tree[name] for name in names}


# --- Before the feedback in a chain -----------------------------------------------------------------------


def test_clipping_and_schedule_before_the_feedback():
    """Gradient clipping is local to the worker; trajectories equal the oracle with clipped gradients."""
    rates = np.linspace(0.1, 0.01, NUM_STEPS)
    schedule = optax.linear_schedule(0.1, 0.01, NUM_STEPS - 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(schedule, momentum=0.9), feedback())
    params, targets = make_params(), make_targets()
    x, y, _ = train(optimizer, params, targets)

    def flat(tree, lead=0):
        return np.concatenate([np.reshape(leaf, (*leaf.shape[:lead], -1)) for leaf in tree.values()], axis=-1)

    def clipped(point, k, t):
        g = point - flat(targets, 2)[k, t]
        return g / max(1.0, np.linalg.norm(g))

    select = def_jax.random_block(4)
    ones = jax.tree.map(jnp.ones_like, params)
    chosen = [select(jax.random.PRNGKey(0), jnp.uint32(t), ones) for t in range(NUM_STEPS)]
    masks = [flat(c.place(c.take(ones), ones)) for c in chosen]
    expected = reference.algorithm_1(
        flat(params), clipped, masks, rates, num_workers=NUM_WORKERS, detach=0.3, momentum=0.9
    )
    for worker in range(NUM_WORKERS):
        np.testing.assert_allclose(flat(x, 2)[worker], expected.x[1:], **CLOSE)
        np.testing.assert_allclose(flat(y, 2)[worker], expected.y[1:], **CLOSE)


def test_def_sgd_is_the_chain():
    options = {'order': 'shuffled', 'allocation': 'balanced'}
    link = def_jax.error_feedback(def_jax.random_block(4, **options), 'workers', detach=0.5, seed=3)
    by_hand = optax.chain(optax.add_decayed_weights(0.1), sgd(), link)
    alias = def_jax.def_sgd(0.1, 4, 'workers', momentum=0.9, weight_decay=0.1, detach=0.5, seed=3, **options)
    params, targets = make_params(), make_targets()
    chex.assert_trees_all_equal(train(alias, params, targets), train(by_hand, params, targets))


def test_no_momentum_keeps_no_buffer():
    params, targets = make_params(), make_targets()
    for momentum in (None, 0):
        alias = def_jax.def_sgd(0.1, 4, 'workers', momentum=momentum)
        assert not optax.tree.get_all_with_path(alias.init(params), 'trace')
    expected = train(optax.chain(optax.sgd(0.1), feedback()), params, targets)[:2]
    chex.assert_trees_all_equal(train(alias, params, targets)[:2], expected)


@pytest.mark.parametrize('b1', [0.9, 0, 0.0])
def test_def_adamw_is_the_chain(b1):
    mask = {'b': False, 's': False, 'w': True}
    blocks = def_jax.random_block(4, order='shuffled', allocation='balanced')
    nesterov = optax.sgd(0.3, momentum=0.8, nesterov=True)
    by_hand = optax.chain(
        optax.adamw(0.1, b1=b1, b2=0.995, weight_decay=0.3, mask=mask),
        def_jax.error_feedback(blocks, 'workers', detach=0.2, seed=3, outer=nesterov),
    )
    alias = def_jax.def_adamw(0.1, 4, 'workers', b1=b1, weight_decay=0.3, mask=mask, seed=3)
    params, targets = make_params(), make_targets()
    assert bool(optax.tree.get_all_with_path(alias.init(params), 'mu')) == bool(b1)
    actual, expected = train(alias, params, targets)[:2], train(by_hand, params, targets)[:2]
    chex.assert_trees_all_close(actual, expected, **CLOSE)


# --- inject_hyperparams -----------------------------------------------------------------------------------


def test_inject_hyperparams_around_the_inner_optimizer():
    schedule = optax.linear_schedule(0.1, 0.01, NUM_STEPS)
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule, momentum=0.9)
    params, targets = make_params(), make_targets()
    actual = train(optax.chain(injected, feedback()), params, targets)[:2]
    expected = train(optax.chain(optax.sgd(schedule, momentum=0.9), feedback()), params, targets)[:2]
    chex.assert_trees_all_close(actual, expected, **CLOSE)


INJECTED_DEF_SGD = optax.inject_hyperparams(def_jax.def_sgd, static_args=('ratio', 'seed', 'axis_name'))


def test_inject_hyperparams_around_def_sgd():
    schedule = optax.linear_schedule(0.1, 0.01, NUM_STEPS)
    arguments = dict(ratio=4, axis_name='workers', weight_decay=0.01, detach=0.5, seed=2)
    params, targets = make_params(), make_targets()
    actual = train(INJECTED_DEF_SGD(learning_rate=schedule, **arguments), params, targets)[:2]
    expected = train(def_jax.def_sgd(schedule, **arguments), params, targets)[:2]
    chex.assert_trees_all_close(actual, expected, **CLOSE)


@pytest.mark.parametrize(('make', 'name'), [(def_jax.def_sgd, 'momentum'), (def_jax.def_adamw, 'b1')])
def test_no_moment_under_inject_hyperparams_keeps_no_buffer(make, name):
    params = make_params()
    factory = optax.inject_hyperparams(make, static_args=('ratio',))
    with pytest.raises(ValueError, match=rf'{name}=.* is an array.* Pass {name}=None, or static_args'):
        factory(0.1, 4, None, **{name: 0.0}).init(params)
    sizes = [
        sum(x.size for x in jax.tree.leaves(init(params)) if x.size > 1)
        for init in (factory(0.1, 4, None, **{name: None}).init, make(0.1, 4, None, **{name: 0.0}).init)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize('ratio', [4, 3.3])
def test_messages_of_one_tensor_are_float32_with_x64(ratio):
    with jax.enable_x64(True):
        link = def_jax.error_feedback(def_jax.random_block(ratio), None)
        x = jnp.ones((10, 8), jnp.float32)
        selection = def_jax.random_block(ratio)(link.init(x).key, jnp.uint32(0), x)
        assert selection.take(x).dtype == jnp.float32
        updates, state = link.update(x, link.init(x))
        assert updates.dtype == state.residual.dtype == jnp.float32


def test_detach_can_be_changed_on_the_way():
    """What is injected holds from the next update on, and is the λ of the point after it."""
    optimizer = INJECTED_DEF_SGD(learning_rate=0.1, ratio=4, axis_name=None, detach=0.0)
    params = {'w': jnp.ones(8)}
    state = optimizer.init(params)
    updates, state = jax.jit(optimizer.update)(params, state, params)
    residual = optax.tree.get(state, 'residual')['w']
    chex.assert_trees_all_equal(def_jax.detached_params(params, state), params)
    state.hyperparams['detach'] = jnp.float32(1.0)
    _, state = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, updates), state, params)
    after = optax.tree.get(state, 'residual')['w']
    assert np.any(residual) and np.any(after)
    chex.assert_trees_all_equal(def_jax.detached_params(params, state), {'w': 1.0 + after})


def test_injecting_the_ratio_names_the_remedy():
    optimizer = optax.inject_hyperparams(def_jax.def_sgd)(learning_rate=0.1, ratio=4, axis_name=None)
    with pytest.raises(ValueError, match=r"ratio=.*static_args=\('ratio',\)"):
        optimizer.init(jnp.ones(8))


# --- masked, multi_transform, MultiSteps, flatten ---------------------------------------------------------


def test_masked_leaves_bypass_the_compression():
    compressed = {'b': False, 's': True, 'w': True}
    bypass = jax.tree.map(lambda leaf: not leaf, compressed)
    optimizer = optax.chain(
        sgd(),
        optax.masked(feedback(), compressed),
        optax.masked(def_jax.all_reduce_mean('workers'), bypass),
    )
    params, targets = make_params(), make_targets()
    x, y, _ = train(optimizer, params, targets)
    chex.assert_trees_all_equal(x['b'], y['b'])
    names = ['s', 'w']
    alone = train(optax.chain(sgd(), feedback()), subtree(params, names), subtree(targets, names))
    chex.assert_trees_all_close((subtree(x, names), subtree(y, names)), alone[:2], **CLOSE)
    mean = jax.tree.map(lambda t: np.broadcast_to(t.mean(0), t.shape), targets)  # uncompressed, by optax
    optimizer = optax.chain(sgd(), feedback(ratio=1, detach=0))
    chex.assert_trees_all_close(x['b'], train(optimizer, params, mean)[0]['b'], **CLOSE)


def test_multi_transform():
    """Two feedbacks, each on its own leaves, with other ratios, detach values and seeds."""
    params, targets = make_params(), make_targets()
    labels = {'b': 'second', 's': 'first', 'w': 'first'}
    both = {'first': feedback(4, detach=0.1), 'second': feedback(2, detach=0.9, seed=1)}
    x, y, _ = train(optax.chain(sgd(), optax.multi_transform(both, labels)), params, targets)
    for label, names in (('first', ['s', 'w']), ('second', ['b'])):
        optimizer = optax.chain(sgd(), both[label])
        expected = train(optimizer, subtree(params, names), subtree(targets, names))[:2]
        chex.assert_trees_all_close((subtree(x, names), subtree(y, names)), expected, **CLOSE)


def test_a_mask_may_name_a_whole_branch():
    params = {'a': jnp.ones(8), 'b': {'c': jnp.ones(8), 'd': jnp.ones(2)}}
    link = optax.masked(def_jax.error_feedback(def_jax.random_block(4), None), {'a': True, 'b': False})
    _, state = link.update(params, link.init(params), params)
    points = (def_jax.detached_params(params, state), def_jax.output_params(params, state, None))
    for point in points:
        chex.assert_trees_all_equal(point['b'], params['b'])
        assert jnp.sum(point['a'] != params['a']) == 6  # two were sent


def test_multi_steps_equals_a_hand_accumulated_gradient():
    """Within an accumulation the point stays; the residual, the block and λ move at the emitting call."""
    chain = optax.chain(sgd(), feedback())
    every, params, targets = 3, make_params(), make_targets()
    x, y, state = train(optax.MultiSteps(chain, every), params, targets)
    grouped = jax.tree.map(lambda t: t.reshape(NUM_WORKERS, -1, every, *t.shape[2:]).mean(2), targets)
    expected_x, expected_y, expected = train(chain, params, grouped)
    emitted = jax.tree.map(lambda leaf: leaf[:, every - 1 :: every], (x, y))
    chex.assert_trees_all_close(emitted, (expected_x, expected_y), **CLOSE)
    before = jax.tree.map(lambda leaf: leaf[:, every - 2 :: every][:, 1:], x)
    chex.assert_trees_all_equal(before, jax.tree.map(lambda leaf: leaf[:, every - 1 :: every][:, :-1], x))
    for name in ('step', 'key', 'detach'):
        chex.assert_trees_all_equal(optax.tree.get(state, name), optax.tree.get(expected, name))


def test_flatten_is_one_block_of_the_whole_tree():
    params, targets = make_params(), make_targets()
    x, y, _ = train(optax.flatten(optax.chain(sgd(), feedback())), params, targets)
    optimizer = optax.chain(
        sgd(), def_jax.error_feedback(def_jax.random_block(4, granularity='model'), 'workers')
    )
    chex.assert_trees_all_close((x, y), train(optimizer, params, targets)[:2], **CLOSE)


@pytest.mark.parametrize('wrap', [optax.flatten, lambda optimizer: optimizer], ids=['flatten', 'plain'])
@pytest.mark.parametrize('shape', [(3, 4), (1, 12), ()], ids=str)
def test_parameters_that_are_a_single_array(shape, wrap):
    optimizer = wrap(optax.chain(sgd(), feedback(axis_name=None)))
    params = jnp.ones(shape)
    updates, state = optimizer.update(params, optimizer.init(params), params)
    point, y = def_jax.detached_params(params, state), def_jax.output_params(params, state, None)
    chex.assert_shape((updates, point, y), shape)
    np.testing.assert_allclose(optax.apply_updates(y, updates), jnp.full(shape, 0.9), rtol=1e-6)


def test_fields_are_found_in_a_chain():
    params = make_params()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1), feedback(detach=0.25))
    for wrapped in (optimizer, optax.MultiSteps(optimizer, 2)):
        state = wrapped.init(params)
        chex.assert_trees_all_equal_shapes(optax.tree.get(state, 'residual'), params)
        assert optax.tree.get(state, 'detach') == 0.25


# --- Dtypes and odd leaves --------------------------------------------------------------------------------


def test_updates_keep_their_dtypes_and_the_residual_is_float32():
    params = make_params(jnp.bfloat16) | {'s': jnp.float32(1.0), 'b': jnp.ones(6, jnp.float16)}
    optimizer = optax.chain(sgd(), feedback(axis_name=None))

    def run(params, state):
        point = def_jax.detached_params(params, state)
        updates, state = optimizer.update(point, state, point)
        return point, updates, state, def_jax.output_params(params, state, None)

    before = optimizer.init(params)
    point, updates, state, y = jax.jit(run)(params, before)
    for tree in (point, updates, y):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
    chex.assert_trees_all_equal_dtypes(optax.tree.get(state, 'residual'), jax.tree.map(jnp.float32, params))


def test_residual_of_bfloat16_parameters_does_not_lose_small_updates():
    """400 updates of 2^-10 add up exactly; a bfloat16 residual would stop growing at 256 of them."""
    params, optimizer = jnp.zeros(1024, jnp.bfloat16), optax.chain(optax.sgd(2.0**-10), feedback(1024, None))

    def body(state, _):
        return optimizer.update(jnp.ones_like(params), state)[1], None

    state, _ = jax.lax.scan(body, optimizer.init(params), length=400)
    assert optax.tree.get(state, 'residual').min() == -400 / 1024


def test_points_of_bfloat16_parameters_are_rounded_once():
    """1 + (2^-8 + 2^-18) rounds up to the next bfloat16; a residual rounded first would make a tie."""
    params = jnp.ones(2, jnp.bfloat16)
    state = feedback(axis_name=None, detach=1).init(params)
    state = state._replace(residual=jnp.full(2, 2.0**-8 + 2.0**-18, jnp.float32))
    for point in (def_jax.detached_params(params, state), def_jax.output_params(params, state, None)):
        np.testing.assert_array_equal(point.astype(jnp.float32), 1 + 2.0**-7)


def test_empty_scalar_and_small_leaves():
    """Zero-size leaves send nothing; leaves below the ratio send one element; y moves as uncompressed."""
    shapes = {'e': (0, 3), 'f': (0,), 'one': (1, 1), 's': (), 'w': (5, 3)}
    params, targets = make_params(shapes=shapes), make_targets(shapes)
    optimizer = optax.chain(optax.sgd(0.1), feedback(64, detach=1.0, average_every=1))
    x, y, _ = train(optimizer, params, targets)
    uncompressed = train(optax.chain(optax.sgd(0.1), feedback(1, detach=0)), params, targets)
    chex.assert_trees_all_close(y, uncompressed[0], **CLOSE)
    for name, shape in shapes.items():
        moved = np.sum(np.diff(x[name][0], axis=0) != 0, axis=tuple(range(1, len(shape) + 1)))
        np.testing.assert_array_equal(moved, min(1, np.prod(shape)))


@pytest.mark.parametrize('params', [{}, {'e': jnp.ones((0, 3))}, {'none': None}], ids=['{}', 'empty', 'None'])
def test_nothing_to_send(params):
    optimizer = def_jax.def_sgd(0.1, 64, 'workers')

    def worker(_):
        after, state = step(optimizer, params, optimizer.init(params), params)
        return after, def_jax.output_params(after, state, 'workers')

    for tree in jax.vmap(worker, axis_name='workers')(jnp.arange(2)):
        chex.assert_trees_all_equal_structs(tree, params)


@pytest.mark.parametrize(('implementation', 'ratio'), [('threefry2x32', 5), ('rbg', 4), ('unsafe_rbg', 5)])
def test_workers_draw_the_same_blocks_with_any_random_generator(implementation, ratio):
    """Also where vmap maps the state itself: JAX's rbg generators draw other numbers for each batch entry."""
    with jax.default_prng_impl(implementation):
        optimizer, params = feedback(ratio), jnp.zeros((NUM_WORKERS, 64))
        one = optimizer.init(params[0])
        state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (NUM_WORKERS, *leaf.shape)), one)
        update = jax.jit(jax.vmap(optimizer.update, axis_name='workers'))
        for _ in range(3):
            updates, state = update(jnp.ones_like(params), state)
            params = params + updates
    np.testing.assert_array_equal(params, jnp.broadcast_to(params[0], params.shape))


# --- Compiled once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(('dtype', 'average_every'), [(jnp.float32, 0), (jnp.bfloat16, 2)])
def test_jit_compiles_once(dtype, average_every):
    optimizer = optax.chain(sgd(), feedback(axis_name=None, average_every=average_every))
    params = make_params(dtype)
    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(lambda *carry: step(optimizer, *carry), n=1))
    carry = (params, optimizer.init(params))
    for _ in range(4):
        carry = once(*carry, params)
    assert optax.tree.get(carry[1], 'residual')['w'].dtype == jnp.float32


def test_pmap_compiles_once():
    optimizer, params, targets = def_jax.def_sgd(0.1, 4, 'workers'), make_params(), make_targets()
    init = jax.pmap(lambda _: (params, optimizer.init(params)), axis_name='workers')
    chex.clear_trace_counter()
    once = jax.pmap(
        chex.assert_max_traces(lambda *carry: step(optimizer, *carry), n=1),
        axis_name='workers',
        donate_argnums=(0, 1),
    )
    carry = init(jnp.arange(NUM_WORKERS))
    for t in range(4):
        carry = once(*carry, jax.tree.map(lambda leaf, t=t: leaf[:, t], targets))
    expected = train(optimizer, params, targets)[0]
    chex.assert_trees_all_close(carry[0], jax.tree.map(lambda leaf: leaf[:, 3], expected), **CLOSE)


def test_eval_shape_of_the_whole_step():
    optimizer, params = def_jax.def_sgd(0.1, 64, None, weight_decay=0.1), make_params()

    def whole(params):
        return step(optimizer, params, optimizer.init(params), params)

    abstract = jax.eval_shape(whole, jax.eval_shape(lambda: params))
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, whole(params))
