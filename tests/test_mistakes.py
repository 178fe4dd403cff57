"""Mistakes that a user of the library can make, and the errors that name them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import def_jax

BLOCK = def_jax.random_block(4)
PARAMS = {'w': jnp.ones((4, 8)), 'b': jnp.ones(3)}


def chain(*links):
    return optax.chain(optax.sgd(0.1, momentum=0.9), *links)


@pytest.mark.parametrize('maker', [def_jax.random_block, def_jax.random_k, def_jax.scaled, def_jax.identity])
def test_a_compressor_that_was_not_called(maker):
    for link in (def_jax.error_feedback, def_jax.ef21):
        with pytest.raises(ValueError, match=rf'compressor={maker.__name__} must be called first'):
            link(maker, 'workers')
    def_jax.error_feedback(maker(1) if maker is not def_jax.identity else maker(), 'workers')


def test_a_state_restored_without_a_target():
    state = chain(def_jax.error_feedback(BLOCK, None)).init(PARAMS)
    as_dicts = {'0': {}, '1': {name: value for name, value in state[1]._asdict().items()}}
    with pytest.raises(ValueError, match=r'holds no residual .* restored without a target'):
        def_jax.detached_params(PARAMS, as_dicts)


def test_two_links_on_the_same_tensor():
    link = def_jax.error_feedback(BLOCK, None)
    state = chain(link, link).init(PARAMS)
    for read in (def_jax.detached_params, lambda p, s: def_jax.output_params(p, s, None)):
        with pytest.raises(ValueError, match=r"two error_feedback links act on \['b'\]"):
            read(PARAMS, state)
    apart = optax.chain(*(optax.masked(link, {'w': w, 'b': not w}) for w in (True, False)))
    def_jax.detached_params(PARAMS, apart.init(PARAMS))


def test_a_state_of_other_parameters():
    """Shapes are never broadcast."""
    optimizer = chain(def_jax.error_feedback(BLOCK, None))
    state, wide = optimizer.init({'w': jnp.ones(1), 'b': jnp.ones(1)}), {'w': jnp.ones(32), 'b': jnp.ones(1)}
    with pytest.raises(ValueError, match=r"^params\['w'\] is \(32,\), but the residual .* is \(1,\)"):
        optimizer.update(wide, state, wide)
    with pytest.raises(ValueError, match=r"params\['w'\] is \(32,\)"):
        def_jax.detached_params(wide, state)
    with pytest.raises(ValueError, match=r"params\['b'\] is missing, but the residual"):
        def_jax.detached_params({'w': jnp.ones(1)}, state)


def test_impossible_specs():
    with pytest.raises(ValueError, match='holds no link that communicates'):
        def_jax.state_specs(optax.sgd(0.1), PARAMS)
    optimizer = chain(def_jax.error_feedback(BLOCK, 'workers'))
    with pytest.raises(ValueError, match=r"names \['workers'\], the axis over workers"):
        def_jax.state_specs(optimizer, PARAMS, jax.sharding.PartitionSpec('workers'))


@pytest.mark.parametrize('leaf', [jnp.arange(3), jnp.ones(3, bool), 1.0, 'x', jax.random.key(0), jnp.tanh])
def test_parameters_that_are_no_floating_point_arrays(leaf):
    """An integer would take the message truncated, and lose what the residual gave up for it."""
    for link in (def_jax.error_feedback(BLOCK, None), def_jax.ef21(BLOCK, None)):
        with pytest.raises(ValueError, match=r"params\['a'\] is .*, but must be a floating-point array"):
            link.init({'a': leaf, 'w': jnp.ones(3)})


@pytest.mark.parametrize(
    ('factor', 'words'), [(1j, 'would lose its imaginary part'), (True, 'must be a floating-point array')]
)
def test_updates_that_are_no_floating_point_arrays(factor, words):
    updates = jax.tree.map(lambda x: jnp.full(x.shape, factor), PARAMS)
    for link in (def_jax.error_feedback(BLOCK, None), def_jax.ef21(BLOCK, None)):
        with pytest.raises(ValueError, match=words):
            link.update(updates, link.init(PARAMS))


def test_a_tensor_that_has_no_residual():
    more = PARAMS | {'new': jnp.ones(2)}
    for link in (def_jax.error_feedback(BLOCK, None), def_jax.ef21(BLOCK, None)):
        with pytest.raises(ValueError, match=r"updates\['new'\] has no residual in opt_state"):
            link.update(more, link.init(PARAMS))
    with pytest.raises(ValueError, match=r"params\['new'\] has no residual in opt_state"):
        def_jax.detached_params(more, chain(def_jax.error_feedback(BLOCK, None)).init(PARAMS))


def test_a_state_of_another_link():
    feedback, ef21 = def_jax.error_feedback(BLOCK, None), def_jax.ef21(BLOCK, None)
    for link, state in (
        *((feedback, state) for state in (None, (), chain(feedback).init(PARAMS), ef21.init(PARAMS))),
        (feedback, feedback.init(PARAMS)._asdict()),
        (ef21, feedback.init(PARAMS)),
    ):
        with pytest.raises(ValueError, match=rf'state is a {type(state).__name__}, but must be \w+State'):
            link.update(PARAMS, state)


def test_a_flattened_state_may_be_numpy():
    state = optax.chain(optax.sgd(0.1), optax.flatten(def_jax.error_feedback(BLOCK, None))).init(PARAMS)
    read = def_jax.detached_params(PARAMS, jax.tree.map(np.asarray, state))
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, PARAMS)


@pytest.mark.parametrize('method', ['sgd', 'ef21'])
def test_an_option_that_no_method_has(method):
    with pytest.raises(ValueError, match=r"option='evrey' is unknown; .* Did you mean 'every'\?"):
        def_jax.METHODS[method].optimizer(optax.identity(), optax.sgd(0.1), None, BLOCK, evrey=3)
