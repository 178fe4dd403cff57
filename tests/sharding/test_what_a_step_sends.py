"""What steps of `def_jax.spmd` send, as its `check` reads it in their compiled programs."""

import copy
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_layers import BATCH, initial, loss_fn, make_params, spmd
from sharded_workers import step_of

import def_jax


def compiled(dist, step=None, params=None, batch=BATCH, out_shardings=None):
    """A step, by default with the mean of its losses; an argument that is unused is not in the program."""

    def default(params, state, batch):
        params, state, losses = step_of(dist, loss_fn)(params, state, batch)
        return params, state, losses.mean()

    params = initial(dist)[0] if params is None else params
    mapped = jax.jit(lambda unused, *given: (step or default)(*given), out_shardings=out_shardings)
    return mapped.lower(0, params, dist.init(params), batch).compile()


def test_the_message_alone_crosses_workers():
    dist = spmd()
    program = compiled(dist)
    found = dist.check(program)
    shards = jax.tree.map(lambda x: x.addressable_data(0), initial(dist)[0])
    message = def_jax.message_size(def_jax.random_block(4), shards)
    assert sum(c.elements for c in found) == message + 1  # and the mean of the losses
    assert dist.check(types.SimpleNamespace(compiled=program)) == found  # as Equinox wraps it
    with pytest.raises(
        ValueError, match=rf'passes {4 * message + 4:,} bytes .* the message has {4 * message:,}'
    ):
        dist.check(program, besides=0)
    with pytest.raises(TypeError, match=r'got a Lowered: pass a compiled step'):
        dist.check(jax.jit(lambda x: x).lower(1.0))  # whose text has no collectives yet


def test_two_optimizers_in_one_step_are_checked_together():
    dist, other = spmd(), spmd(feedback(8, inner=optax.sgd(0.1)), specs=P())
    params, state = initial(dist)
    critic = jnp.ones((8, 4))
    grads = [jax.tree.map(lambda x: jnp.ones((2, *x.shape)), tree) for tree in (params, critic)]

    def step(grads, params, state, critic, critic_state):
        return dist.update(grads[0], state, params), other.update(grads[1], critic_state, critic)

    grads = jax.device_put(grads, NamedSharding(dist.mesh, P('workers')))
    program = jax.jit(step).lower(grads, params, state, critic, other.init(critic)).compile()
    assert dist.check(program, besides=0, others=[other]) == other.check(program, besides=0, others=[dist])
    for one in (dist, other):
        with pytest.raises(ValueError, match=r'Or .* another optimizer in this step; if so, pass all'):
            one.check(program, besides=0)


def test_an_optimizer_that_takes_no_loss_is_checked_with_its_own_arguments():
    sam = optax.contrib.sam(feedback(4, inner=optax.sgd(0.1)), optax.sgd(0.1), opaque_mode=True)
    arguments = {'grad_fn': lambda x, _: x}
    checked = optax.GradientTransformationExtraArgs(
        sam.init, lambda grads, state, params, **_: sam.update(grads, state, params, **arguments)
    )
    dist = spmd(sam)

    def step(params, state, batch):
        _, grads = dist.value_and_grad(loss_fn)(params, state, batch)
        return dist.update(grads, state, params, **arguments)

    program = compiled(dist, step)
    with pytest.raises(TypeError, match=r'check one that has them: .* grad_fn=lambda x, _: x for optax'):
        dist.check(program)
    assert spmd(checked).check(program, initial(dist)[0], besides=0)


def test_specs_that_were_forgotten_are_found():
    """Parameters are sharded, but `spmd` was not told: each device would send what all of a worker have."""
    dist = spmd(specs=P())
    among_workers = NamedSharding(dist.mesh, P(dist.mesh.axis_names))  # as before there were workers
    for shardings, message in (
        (spmd().shardings, r"takes params\['in'\] in parts of shape .*Pass param_specs"),
        (among_workers, r'divided among workers: jax.device_put\(params, dist.shardings'),
    ):
        program = compiled(dist, step_of(dist, loss_fn), jax.device_put(make_params(), shardings))
        with pytest.raises(ValueError, match=message):
            dist.check(program)


def test_a_batch_whose_examples_change_workers_is_found_however_small():
    dist = spmd()

    def step(params, state, batch):
        batch = jax.lax.with_sharding_constraint(batch, NamedSharding(dist.mesh, P('workers')))
        return step_of(dist, loss_fn)(params, state, batch)

    batch = jax.device_put(BATCH, NamedSharding(dist.mesh, P(('shard', 'workers'))))
    program = compiled(dist, step, batch=batch)
    with pytest.raises(ValueError, match=r"batch that is not divided over \['workers'\]"):
        dist.check(program, besides=0)


def test_state_that_is_not_sharded_over_workers_is_found():
    dist = spmd()
    whole = NamedSharding(dist.mesh, P())
    params, state = initial(dist)
    assert jax.tree.map(lambda x: x.sharding, state) == dist.state_shardings(params)
    shardings = dist.shardings, jax.tree.map(lambda _: whole, state), whole
    with pytest.raises(
        ValueError, match=r"by all-gather.*returns .*inner\[0\].trace\['in'\].*state_shardings\(params\)"
    ):
        dist.check(compiled(dist, out_shardings=shardings))


def test_a_mean_of_the_gradients_is_found():
    dist = spmd()

    def step(params, state, batch):
        losses, grads = dist.value_and_grad(loss_fn)(params, state, batch)
        norm = optax.tree.norm(dist.mean(grads))
        updates, state = dist.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses.mean(), norm

    batch = jax.device_put(BATCH, NamedSharding(dist.mesh, P('workers')))
    program = compiled(dist, step, batch=batch)
    message = r'all-reduce of .* \(jit.*hold a whole gradient, which has 1,024: look for.*norm of their mean'
    with pytest.raises(ValueError, match=message):
        dist.check(program, besides=16)


@pytest.mark.parametrize('optax_of', [lambda dist: dist, lambda dist: dist.as_optax()])
def test_a_chain_around_it_is_refused_with_its_state(optax_of):
    dist = spmd()
    clip, tx = optax.clip_by_global_norm(1.0), optax_of(dist)
    for around in (optax.chain(clip, tx), optax.named_chain(('clip', clip), ('def', tx))):
        params, state = make_params(), jax.eval_shape(around.init, make_params())
        with pytest.raises(ValueError, match=r'a global norm is too large\. Put the chain into it'):
            jax.eval_shape(dist.value_and_grad(loss_fn), params, state, BATCH)


def test_as_an_optax_transformation_it_is_itself():
    """Also in the copy of what holds it, such as a TrainState, which jit then knows."""
    dist = spmd()
    tx = dist.as_optax()
    assert isinstance(tx, optax.GradientTransformationExtraArgs) and optax.with_extra_args_support(tx) is tx
    params, state = initial(dist)
    assert jax.eval_shape(tx.init, params) == jax.eval_shape(dist.init, params)
    grads = jax.tree.map(lambda p: np.ones((2, *p.shape), 'f4'), params)
    updates = [jax.jit(each.update)(grads, state, params)[0]['in'] for each in (tx, dist)]
    np.testing.assert_array_equal(*updates)
    assert tx == dist.as_optax() == copy.deepcopy(tx) and hash(tx) == hash(copy.copy(dist).as_optax())


def test_a_nan_in_an_accumulated_mean_is_skipped_and_gone():
    dist = spmd(feedback(inner=optax.sgd(0.1), skip_nonfinite=True), accumulate=2)
    params, state = initial(dist)
    grads = jax.tree.map(lambda p: np.ones((2, *p.shape), 'f4'), params)
    step = jax.jit(dist.update)
    for value in (np.nan, 1, 1, 1):
        updates, state = step(jax.tree.map(lambda g, value=value: g * value, grads), state, params)
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(updates))


def test_a_state_goes_on_with_steps_of_more_calls():
    """Each gradient counts in the next message; some never did."""
    optimizer, rng = feedback(inner=optax.sgd(0.1)), np.random.default_rng(0)
    plain = spmd(optimizer)
    params, state = initial(spmd(optimizer, accumulate=2))
    expected = plain.init(params)
    grads = [jax.tree.map(lambda p: rng.normal(size=(2, *p.shape)).astype('f4'), params) for _ in range(9)]
    for every, windows in ((2, [(0, 1)]), (3, [(2,), (3, 4, 5), (6, 7, 8)])):
        step = jax.jit(spmd(optimizer, accumulate=every).update)
        for window in windows:
            for i in window:
                updates, state = jax.block_until_ready(step(grads[i], state, params))
            mean = jax.tree.map(lambda *g: sum(g) / len(g), *(grads[i] for i in window))
            wanted, expected = plain.update(mean, expected, params)
            np.testing.assert_allclose(updates['in'], wanted['in'], rtol=1e-5, atol=1e-7)


def test_accumulation_sends_once():
    optimizer = feedback(inner=optax.sgd(0.1, momentum=0.9))
    dist, plain = spmd(optimizer, accumulate=3), spmd(optimizer)
    params, state = initial(dist)
    rng = np.random.default_rng(0)
    step, expected = jax.jit(dist.update), plain.init(params)
    for _ in range(2):
        grads = [
            jax.tree.map(lambda p: rng.normal(size=(2, *p.shape)).astype('f4'), params) for _ in range(3)
        ]
        for n, grad in enumerate(grads):
            updates, state = jax.block_until_ready(step(grad, state, params))
            assert np.any(updates['in']) == (n == 2)
        mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
        wanted, expected = plain.update(mean, expected, params)
        np.testing.assert_allclose(updates['in'], wanted['in'], rtol=1e-5, atol=1e-7)
        residuals = [optax.tree.get(each, 'residual')['in'] for each in (state, expected)]
        np.testing.assert_allclose(*residuals, rtol=1e-4, atol=1e-6)
    dist.check(step.lower(grads[0], state, params).compile(), params)
