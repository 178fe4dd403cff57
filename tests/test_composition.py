"""error_feedback inside other optax transformations, with odd leaves and dtypes. See also test_common.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback

import def_jax

NUM_WORKERS, NUM_STEPS = 4, 12
SHAPES = {'b': (6,), 's': (), 'w': (8, 6)}
SGD = optax.sgd(0.1, momentum=0.9)
CLOSE = dict(rtol=0, atol=1e-6)  # other fusions, same sums: a few roundings of values of order 1


def make_params(shapes=SHAPES):
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def make_targets(shapes=SHAPES):
    rng = np.random.default_rng(1)
    draw = {name: rng.normal(size=(NUM_WORKERS, NUM_STEPS, *shape)) for name, shape in shapes.items()}
    return jax.tree.map(lambda x: x.astype(np.float32), draw)


def gradient(point, target):
    """Of ½‖point - target‖²: one number per coordinate, so that leaves do not influence each other."""
    return jax.tree.map(jnp.subtract, point, target)


def step(optimizer, params, state, target):
    point = def_jax.detached_params(params, state)
    updates, state = optimizer.update(gradient(point, target), state, params)
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


# --- Two ways to write one optimizer ----------------------------------------------------------------------

DECAY = {'weight_decay': 0.3, 'mask': {'b': False, 's': False, 'w': True}}
BLOCKS = {'order': 'shuffled', 'allocation': 'balanced'}
LINK = {'bits': 2, 'seed': 3}
NESTEROV = optax.sgd(0.3, momentum=0.8, nesterov=True)
ADAMW = optax.chain(
    *(optax.scale_by_rms(0.995, 1e-8, eps_in_sqrt=False, bias_correction=True),),
    *(optax.scale(3.0), optax.add_decayed_weights(**DECAY), optax.scale(-0.1)),
)
DECAYED_SGD = optax.chain(optax.add_decayed_weights(**DECAY), optax.sgd(0.05), optax.scale(2.0))
PAIRS = {
    # Blocks of a quarter in 2 bits; the rate of momentum SGD over 1 - μ, and three times that of AdamW.
    'def_sgd': (
        def_jax.def_sgd(0.05, 64, 'workers', momentum=0.5, **DECAY, **LINK),
        feedback(blocks=BLOCKS, inner=DECAYED_SGD, detach='auto', **LINK),
    ),
    'def_adamw': (
        def_jax.def_adamw(0.1, 64, 'workers', **DECAY, overlap=True, **LINK),
        feedback(blocks=BLOCKS, inner=ADAMW, detach=0.2, outer=NESTEROV, overlap=True, **LINK),
    ),
    'what precedes the wrapper acts on the gradient': (
        optax.chain(optax.clip(0.5), feedback(inner=SGD)),
        feedback(inner=optax.chain(optax.clip(0.5), SGD)),
    ),
}


@pytest.mark.parametrize('name', PAIRS)
def test_two_ways_to_write_one_optimizer(name):
    params, targets = make_params(), make_targets()
    found, expected = (train(optimizer, params, targets)[:2] for optimizer in PAIRS[name])
    chex.assert_trees_all_close(found, expected, **CLOSE)


def test_the_preset_keeps_no_moment():
    for make, like_w in ((def_jax.def_sgd, 1), (def_jax.def_adamw, 3)):  # residual; second moment and `outer`
        state = jax.eval_shape(make(0.1, 64, None).init, make_params())
        assert [x.shape for x in jax.tree.leaves(state)].count(SHAPES['w']) == like_w


def test_detach_can_be_changed_on_the_way():
    """What is injected holds from the next update on, and is the λ of the point after it."""
    factory = optax.inject_hyperparams(def_jax.def_sgd, static_args=('compression', 'bits', 'seed'))
    optimizer = factory(0.1, compression=4, bits=32, axis_name=None, detach=0.0)
    params = {'w': jnp.ones(8)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    updates, state = update(params, state, params)
    residual = optax.tree.get(state, 'residual')['w']
    chex.assert_trees_all_equal(def_jax.detached_params(params, state), params)
    state.hyperparams['detach'] = jnp.float32(1.0)
    _, state = update(jax.tree.map(jnp.zeros_like, updates), state, params)
    after = optax.tree.get(state, 'residual')['w']
    assert np.any(residual) and np.any(after)
    chex.assert_trees_all_equal(def_jax.detached_params(params, state), {'w': 1.0 + after})


def test_multi_transform():
    """Two feedbacks with other ratios, detach values and seeds, and a dense link, each on its own leaves."""
    params, targets = make_params(), make_targets()
    links = {'w': feedback(4, detach=0.1), 'b': feedback(2, detach=0.9, seed=1)}
    dense = {'s': def_jax.all_reduce_mean('workers')}
    optimizer = optax.chain(SGD, optax.multi_transform(links | dense, {name: name for name in SHAPES}))
    x, y, _ = train(optimizer, params, targets)
    chex.assert_trees_all_equal(x['s'], y['s'])
    for name, link in (links | {'s': feedback(1, detach=0)}).items():
        optimizer = optax.chain(SGD, link)
        expected = train(optimizer, {name: params[name]}, {name: targets[name]})[:2]
        chex.assert_trees_all_close(({name: x[name]}, {name: y[name]}), expected, **CLOSE)


def test_complex_parameters_are_trained_as_pairs():
    """`optax.contrib.split_real_and_imaginary` hands them over so; a point has to be complex again."""

    def joined(tree):
        return {name: jax.lax.complex(*pair) for name, pair in tree.items()}

    params, targets = (
        {name: (x, 1 - x) for name, x in tree.items()} for tree in (make_params(), make_targets())
    )
    link = feedback(inner=SGD)
    expected = train(link, params, targets)[:2]
    found = train(optax.contrib.split_real_and_imaginary(link), joined(params), joined(targets))[:2]
    chex.assert_trees_all_close(found, tuple(map(joined, expected)), **CLOSE)


def test_a_mask_may_name_a_whole_branch():
    params = {'a': jnp.ones(8), 'b': {'c': jnp.ones(8), 'd': jnp.ones(2)}}
    link = optax.masked(feedback(axis_name=None), {'a': True, 'b': False})
    _, state = jax.jit(link.update)(params, link.init(params), params)
    points = (def_jax.detached_params(params, state), def_jax.output_params(params, state, None))
    for point in points:
        chex.assert_trees_all_equal(point['b'], params['b'])
        assert jnp.sum(point['a'] != params['a']) == 6  # two were sent


@pytest.mark.parametrize('ratio', [4, 3.3])
def test_messages_of_one_tensor_are_float32_with_x64(ratio):
    with jax.enable_x64(True):
        compressor = def_jax.random_block(ratio)
        link = def_jax.error_feedback(compressor, None)

        def run(x):
            state = link.init(x)
            message = compressor(state.key, jnp.uint32(0), x).take(x)
            updates, state = link.update(x, state)
            return message, updates, state.residual

        chex.assert_type(jax.eval_shape(run, jnp.ones((10, 8), jnp.float32)), jnp.float32)


def test_points_of_bfloat16_parameters_are_rounded_once():
    """1 + (2^-8 + 2^-18) rounds up to the next bfloat16; a residual rounded first makes a tie. y is not."""
    params = jnp.ones(2, jnp.bfloat16)
    state = feedback(axis_name=None, detach=1).init(params)
    state = state._replace(residual=jnp.full(2, 2.0**-8 + 2.0**-18, jnp.float32))
    point, output = def_jax.detached_params(params, state), def_jax.output_params(params, state, None)
    np.testing.assert_array_equal(point.astype(jnp.float32), 1 + 2.0**-7)
    np.testing.assert_array_equal(output, np.float32(1 + 2.0**-8 + 2.0**-18))
    assert (point.dtype, output.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize('params', [{}, {'e': jnp.ones((0, 3)), 'none': None}], ids=['{}', 'empty, None'])
def test_nothing_to_send(params):
    optimizer = def_jax.def_sgd(0.1, 64, 'workers')

    def worker(_):
        after, state = step(optimizer, params, optimizer.init(params), params)
        return after, def_jax.output_params(after, state, 'workers')

    for tree in jax.jit(jax.vmap(worker, axis_name='workers'))(jnp.arange(2)):
        chex.assert_trees_all_equal_structs(tree, params)


@pytest.mark.parametrize(('implementation', 'ratio'), [('rbg', 4), ('unsafe_rbg', 5)])
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
