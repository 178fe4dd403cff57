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


def test_complex_parameters():
    for init in (chain(def_jax.error_feedback(BLOCK, None)).init, def_jax.ef21(BLOCK, None).init):
        with pytest.raises(ValueError, match=r"\['w'\] is complex64, but residuals are float32"):
            init({'w': jnp.ones(3, jnp.complex64)})


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
    apart = optax.chain(
        optax.masked(link, {'w': True, 'b': False}), optax.masked(link, {'w': False, 'b': True})
    )
    def_jax.detached_params(PARAMS, apart.init(PARAMS))


def test_shapes_are_never_broadcast():
    optimizer = chain(def_jax.error_feedback(BLOCK, None))
    state = optimizer.init({'w': jnp.ones(1)})
    with pytest.raises(ValueError, match=r"updates\['w'\] is \(32,\), but the residual .* is \(1,\)"):
        optimizer.update({'w': jnp.ones(32)}, state, {'w': jnp.ones(32)})
    with pytest.raises(ValueError, match=r"params\['w'\] is \(32,\)"):
        def_jax.detached_params({'w': jnp.ones(32)}, state)


def test_stacked_state_outside_of_the_mapped_function():
    """It would give x + r_k of every worker in place of y."""
    optimizer = chain(def_jax.error_feedback(BLOCK, 'workers'))
    state = jax.tree.map(lambda x: np.stack([x, x]), optimizer.init(PARAMS))
    with pytest.raises(ValueError, match=r"params\['b'\] is \(3,\), but the residual .* is \(2, 3\)"):
        def_jax.output_params(PARAMS, state, None)


def test_a_tree_that_has_changed():
    optimizer = chain(def_jax.error_feedback(BLOCK, None))
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match=r"params\['b'\] is missing, but the residual"):
        def_jax.detached_params({'w': PARAMS['w']}, state)


def test_an_optimizer_that_never_communicates():
    with pytest.raises(ValueError, match='holds no link that communicates'):
        def_jax.state_specs(optax.sgd(0.1), PARAMS)


def test_specs_that_name_the_workers():
    optimizer = chain(def_jax.error_feedback(BLOCK, 'workers'))
    with pytest.raises(ValueError, match=r"names \['workers'\], the axis over workers"):
        def_jax.state_specs(optimizer, PARAMS, jax.sharding.PartitionSpec('workers'))
