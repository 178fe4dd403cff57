"""Flax NNX: random numbers differ by worker, statistics and auxiliary values agree, on both kinds of axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sharded_workers import AUTO, EXPLICIT

import def_jax

nnx = pytest.importorskip('flax.nnx')
ROWS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dense = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, rows):
        return self.dense(self.dropout(self.norm(rows)))


def optimizer_of(model, kind=AUTO, wrt=nnx.Param):
    from def_jax.nnx import Optimizer

    mesh = jax.make_mesh((2,), ('workers',), axis_types=(kind,), devices=jax.devices()[:2])
    return Optimizer(model, def_jax.spmd(def_jax.def_sgd(0.1, 16, 'workers'), mesh), wrt=wrt)


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_a_step_on_both_kinds_of_axes(kind):
    model = Model(nnx.Rngs(0))
    optimizer = optimizer_of(model, kind)
    devices = {len(x.sharding.device_set) for x in jax.tree.leaves(nnx.state(optimizer))}
    assert devices == {2}  # or what a checkpoint restores would be on others than the model

    def loss_fn(model, rows):
        outputs = model(rows)
        return jnp.mean(outputs**2), {'positive': jnp.sum(rows > 0), 'outputs': outputs}

    @nnx.jit
    def step(model, optimizer, rows):
        (_, aux), grads = optimizer.value_and_grad(loss_fn, has_aux=True)(model, rows)
        optimizer.update(model, grads)
        return aux

    compiled = step.lower(model, optimizer, ROWS).compile()
    with pytest.raises(ValueError, match='allow them by besides='):
        optimizer.tx.check(compiled, besides=0)
    aux = compiled(model, optimizer, ROWS)
    assert aux['positive'] == np.sum(ROWS > 0) / 2  # the mean, of integers too, not the first worker's
    assert aux['outputs'].shape == (2, 4, 2)
    np.testing.assert_allclose(model.norm.mean[...], 0.01 * ROWS.mean(0), rtol=1e-5)
    assert int(model.dropout.rngs.count[...]) == 1


def test_the_loss_is_the_mean_and_the_output_model_is_at_y():
    model = nnx.Linear(6, 2, rngs=nnx.Rngs(0))
    optimizer = optimizer_of(model)

    def loss_fn(model, rows):
        return jnp.mean(model(rows) ** 2)

    loss, grads = optimizer.value_and_grad(loss_fn)(model, ROWS)
    np.testing.assert_allclose(loss, np.mean([loss_fn(model, rows) for rows in np.split(ROWS, 2)]), rtol=1e-6)
    optimizer.update(model, grads)
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    expected = optimizer.tx.output_params(params, nnx.as_pure(optimizer.opt_state))
    kernel = optimizer.output_model(model).kernel[...]
    np.testing.assert_allclose(kernel, expected['kernel'], rtol=1e-6)
    assert np.any(kernel != model.kernel[...])


def test_what_is_frozen_is_neither_sent_nor_rounded():
    model = Model(nnx.Rngs(0))
    frozen = jax.tree.map(jnp.copy, nnx.state(model.norm))
    optimizer = optimizer_of(model, wrt=lambda path, _: path[0] == 'dense')

    @nnx.jit
    def step(model, optimizer, rows):
        model.norm.use_running_average = True
        _, grads = optimizer.value_and_grad(lambda m, rows: jnp.mean(m(rows) ** 2))(model, rows)
        optimizer.update(model, grads)

    compiled = step.lower(model, optimizer, ROWS).compile()
    optimizer.tx.check(compiled, besides=8)
    compiled(model, optimizer, ROWS)
    jax.tree.map(np.testing.assert_array_equal, frozen, nnx.state(model.norm))


def test_the_batch_is_divided_and_not_the_random_numbers():
    """Flax's MNIST example has `loss_fn(model, rngs, batch)`."""
    model = nnx.Linear(6, 2, rngs=nnx.Rngs(0))
    optimizer = optimizer_of(model)

    def loss_fn(model, rngs, rows):
        return jnp.mean(model(rows) ** 2)

    arguments = model, nnx.Rngs(0), ROWS
    with pytest.raises(ValueError, match=r'argument 1, .* the keys of an nnx.Rngs .*, e\.g\. split=\(2,\)'):
        optimizer.value_and_grad(loss_fn)(*arguments)
    with pytest.raises(ValueError, match='names argument 3, but of the 2 after the model'):
        optimizer.value_and_grad(loss_fn, split=(3,))(*arguments)
    with pytest.raises(ValueError, match=r'argument 1 holds an nnx.Rngs, .* the same for all workers'):
        optimizer.value_and_grad(loss_fn, split=(2,))(model, {'keys': nnx.Rngs(0)}, ROWS)
    _, grads = nnx.value_and_grad(loss_fn)(*arguments)
    with pytest.raises(ValueError, match=r'what value_and_grad .* of def_jax\.nnx\.Optimizer'):
        optimizer.update(model, grads)


@pytest.mark.parametrize('by_name', [False, True])
def test_random_numbers_differ_by_worker(by_name):
    """Whether an `nnx.Rngs` is given by position or by name, and its counts advance."""
    model, rngs = nnx.Linear(6, 2, rngs=nnx.Rngs(0)), nnx.Rngs(0)

    def loss_fn(model, rows, rngs):
        return jnp.mean(model(rows) ** 2), jax.random.normal(rngs.noise(), (2,))

    grad_fn = optimizer_of(model).value_and_grad(loss_fn, has_aux=True)
    (_, noise), _ = grad_fn(model, ROWS, rngs=rngs) if by_name else grad_fn(model, ROWS, rngs)
    expected = [jax.random.fold_in(nnx.Rngs(0).default.key[...], k) for k in range(2)]
    expected = [jax.random.normal(jax.random.fold_in(key, 0), (2,)) for key in expected]
    np.testing.assert_allclose(noise, expected, rtol=1e-6)
    assert int(rngs.default.count[...]) == 1


def test_a_complex_variable_is_the_mean_of_the_workers():
    model = Model(nnx.Rngs(0))
    model.phase = nnx.Variable(jnp.zeros((), jnp.complex64))

    def loss_fn(model, rows):
        model.phase[...] = 1j * rows.sum()
        return jnp.mean(model(rows) ** 2)

    optimizer_of(model).value_and_grad(loss_fn)(model, ROWS)
    np.testing.assert_allclose(model.phase[...], 0.5j * ROWS.sum(), rtol=1e-5)


def test_a_variable_that_takes_the_value_of_another_has_it():
    model = Model(nnx.Rngs(0))
    model.now, model.before = nnx.Variable(jnp.array(2.0)), nnx.Variable(jnp.array(0.0))

    def loss_fn(model, rows):
        model.before[...] = model.now[...]
        return jnp.mean(model(rows) ** 2)

    optimizer_of(model).value_and_grad(loss_fn)(model, ROWS)
    assert model.before[...] == 2


def test_a_new_variable_is_refused_by_its_name():
    model = Model(nnx.Rngs(0))

    def loss_fn(model, rows):  # as `sow` does
        model.dense.seen = nnx.Intermediate(rows)
        return jnp.mean(model(rows) ** 2)

    with pytest.raises(ValueError, match=r'a new variable, dense\.seen, in the model'):
        optimizer_of(model).value_and_grad(loss_fn)(model, ROWS)


def test_stacked_layers_have_stacked_keys():
    """`nnx.scan` runs layers that `nnx.vmap` made, so their random numbers are arrays of keys."""

    @nnx.vmap
    def layers(rngs):
        return Model(rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def through(rows, layer):
        return layer(rows) @ jnp.ones((2, 6))

    model = layers(nnx.Rngs(0).split(3))

    def loss_fn(model, rows):
        return jnp.mean(through(rows, model) ** 2), jax.random.key_data(model.dropout.rngs.key[...])

    gradients = optimizer_of(model).value_and_grad(loss_fn, has_aux=True)
    (_, keys), _ = gradients(model, ROWS)
    assert len(np.unique(keys, axis=None)) == keys.size  # of two workers and three layers
    assert jnp.all(model.dropout.rngs.count[...] == 1)
