"""Gradient functions of other people's trainers on every worker."""

import functools
import re
from contextlib import nullcontext

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from jax import lax
from jax.interpreters import mlir
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_layers import BATCH, SPECS, initial, loss_fn, make_params, spmd
from sharded_workers import AUTO, EXPLICIT

import def_jax


def trace(dist, loss):
    return jax.eval_shape(dist.value_and_grad(loss), *initial(dist), BATCH)


def constrained(mesh):
    """The loss of a model that says how its activations lie, as MaxText's do."""

    def loss(params, batch):
        hidden = jnp.tanh(batch @ params['in'])
        hidden = lax.with_sharding_constraint(hidden, NamedSharding(mesh, P(None, 'shard')))
        return jnp.mean((hidden @ params['out'] - batch) ** 2)

    return loss


def mapped(mesh):
    """A model with tensor parallelism of its own."""

    def loss(params, batch):
        def layer(w_in, w_out, batch):
            return lax.psum(jnp.tanh(batch @ w_in) @ w_out, 'shard')

        specs = (P(None, 'shard'), P('shard'), P())
        layer = jax.shard_map(layer, mesh=mesh, in_specs=specs, out_specs=P())
        predicted = layer(params['in'], params['out'], batch)
        return jnp.mean((predicted - batch) ** 2)

    return loss


def explicit(mesh):
    def loss(params, batch):
        hidden = jnp.tanh(jnp.dot(batch, params['in'], out_sharding=P(None, 'shard')))
        return jnp.mean((jnp.dot(hidden, params['out'], out_sharding=P()) - batch) ** 2)

    return loss


@pytest.mark.parametrize(
    ('kind', 'make'), [(AUTO, constrained), (AUTO, mapped), (EXPLICIT, mapped), (EXPLICIT, explicit)]
)
def test_models_that_place_their_own_arrays(kind, make):
    dist = spmd(kind=kind)
    params, state = initial(dist)
    losses, grads = jax.jit(dist.value_and_grad(make(dist.mesh)))(params, state, BATCH)
    expected = jax.vmap(jax.value_and_grad(loss_fn), (None, 0))(make_params(), BATCH.reshape(2, 8, 8))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, (losses, grads), expected)
    assert grads['in'].sharding.spec == P('workers', None, 'shard')


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_a_constraint_that_names_the_workers_is_refused(kind):
    dist = spmd(kind=kind)

    def loss(params, batch):
        to = NamedSharding(dist.mesh, P('workers'))
        batch = lax.with_sharding_constraint(batch, to) if kind == AUTO else jax.sharding.reshard(batch, to)
        return jnp.mean(batch) * jnp.mean(params['in'])

    with pytest.raises(Exception, match=r"mapped over 'workers' by .*its sharding.* may name only 'shard'"):
        trace(dist, loss)


def test_any_arguments_keys_and_auxiliary_values():
    dist = spmd()
    params, state = initial(dist)

    def loss(params, scale, batch, keys, *, train):
        noise = jax.random.normal(keys['noise'], ()) if train else 0.0
        return scale * loss_fn(params, batch['x']), {'noise': noise, 'rows': jnp.float32(len(batch['x']))}

    grad_fn = dist.at_points(jax.value_and_grad(loss, has_aux=True), split=(2,), keys=(3,))
    key = jax.random.key(3)
    expected = [jax.random.normal(jax.random.fold_in(key, k), ()) for k in range(2)]
    for noise in (key, jax.random.key_data(key)):  # typed, and as PRNGKey makes them
        arguments = params, state, jnp.float32(2), {'x': BATCH}, {'noise': noise}
        (losses, aux), grads = grad_fn(*arguments, train=True)
        np.testing.assert_allclose(aux['noise'], expected)
    assert aux['rows'].tolist() == [8, 8] and grads['in'].shape == (2, 8, 64)
    (_, aux), _ = grad_fn(*arguments, train=False)
    assert not np.any(aux['noise'])
    np.testing.assert_allclose(dist.mean({'loss': losses})['loss'], np.mean(losses))
    with pytest.raises(ValueError, match=r'is int32, but must .* float32 of a count first'):
        dist.mean({'correct': jnp.ones(2, jnp.int32)})
    for mean in (jnp.float32(1), params['in']):  # which are means already
        with pytest.raises(ValueError, match=r'its leading axis must be over 2 workers'):
            dist.mean(mean)


@jax.tree_util.register_pytree_node_class
class Key:
    """As kauldron's keys are: a node that takes a number for a seed."""

    def __init__(self, key):
        self.key = jax.random.PRNGKey(key) if isinstance(key, int) else key

    def tree_flatten(self):
        return [self.key], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


@pytest.mark.parametrize('mapping', ['vmap', 'shard_map'])
def test_keys_in_nodes_of_other_libraries(mapping):
    dist = spmd()
    params, state = initial(dist)
    run = dist.at_points(lambda p, batch, key: jax.random.normal(key.key), keys=(2,), mapping=mapping)
    expected = [jax.random.normal(jax.random.fold_in(jax.random.PRNGKey(3), k)) for k in range(2)]
    np.testing.assert_allclose(run(params, state, BATCH, Key(3)), expected)


def test_keyword_arguments_have_any_name():
    names = dict.fromkeys(('grad_fn', 'split', 'keys', 'params', 'opt_state', 'point'), 1.0)
    dist = spmd()
    run = dist.at_points(lambda p, batch, **named: 0 * jnp.sum(batch) + sum(named.values()))
    assert run(*initial(dist), BATCH, **names).tolist() == [6, 6]


def test_positions_and_mappings_are_checked():
    for message, split, *keys in (
        (r'split=\(0,\) must be a tuple of positions', (0,)),
        ('split=1 must be a tuple', 1),
        ('both name argument 1', (1,), (1,)),
    ):
        with pytest.raises(ValueError, match=message):
            spmd().at_points(jax.grad(loss_fn), split, *keys)
    with pytest.raises(ValueError, match=r"mapping='pmap' must be 'vmap' \(.*\) or 'shard_map' \("):
        spmd().value_and_grad(loss_fn, mapping='pmap')


def convolved(images, kernel):
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(images, kernel, (1, 1), 'SAME', dimension_numbers=dimensions)


def test_convolutions_stay_ordinary_by_shard_map():
    """By vmap they are grouped by worker, with a warning."""
    dist = spmd(specs=P())
    params = {'kernel': jnp.ones((3, 3, 2, 4)) / 10}

    def loss(params, images):
        return jnp.mean(convolved(images, params['kernel']) ** 2)

    images = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)
    state = dist.init(params)
    grouped = '(feature|batch)_group_count = 2'
    for mapping in ('vmap', 'shard_map'):
        run = jax.jit(dist.value_and_grad(loss, mapping=mapping))
        with pytest.warns(UserWarning, match="mapping='shard_map'") if mapping == 'vmap' else nullcontext():
            lowered = run.lower(params, state, images)
        assert bool(re.search(grouped, lowered.as_text())) == (mapping == 'vmap')
        with pytest.raises(ValueError, match='groups by worker') if mapping == 'vmap' else nullcontext():
            dist.check(lowered.compile(), params)
        losses, _ = run(params, state, images)
        np.testing.assert_allclose(losses, [loss(params, part) for part in np.split(images, 2)], rtol=1e-5)


def test_convolutions_take_what_lies_on_explicit_axes_as_arguments():
    """Statistics that were a mean over workers at the step before, for one."""
    dist = spmd(kind=EXPLICIT, specs=P())
    on_mesh = functools.partial(jax.device_put, device=NamedSharding(dist.mesh, P()))
    params = on_mesh({'kernel': jnp.ones((3, 3, 1, 4))})

    def grad_fn(params, scale, images, bias):
        return jnp.mean(scale * convolved(images, params['kernel']) + bias)

    images = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
    state, scale, bias = dist.init(params), on_mesh(jnp.arange(4.0)), on_mesh(jnp.ones(4))
    expected = [grad_fn(params, scale, part, bias) for part in np.split(images, 2)]
    divided = jax.device_put(scale, NamedSharding(dist.mesh, P('workers')))
    run = functools.partial(dist.at_points, mapping='shard_map')
    for given in (scale, divided):
        losses = run(grad_fn, split=(2,))(params, state, given, images, bias=bias)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)

    def closes_over(params, images):
        return grad_fn(params, scale, images, bias)

    with pytest.raises(Exception, match=r'takes arrays such as batch_stats as arguments and must not close'):
        jax.eval_shape(run(closes_over), params, state, images)
    with pytest.raises(Exception, match=r"Convolutions on Explicit axes, .* need mapping='shard_map'"):
        jax.eval_shape(dist.at_points(closes_over), params, state, images)


def kernel_of(primitive):
    """tanh as a kernel with a gradient but without a rule for vmap, as those of other people's are."""

    @jax.custom_vjp
    def kernel(x):
        return primitive(x)

    def backward(y, g):
        return (g * (1 - y**2),)

    kernel.defvjp(lambda x: (primitive(x),) * 2, backward)
    return kernel


def own_primitive():
    primitive = jax.extend.core.Primitive('kernel_without_rules')
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(jnp.tanh, multiple_results=False))
    return primitive.bind


def host_callback(x):
    return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
@pytest.mark.parametrize(
    ('primitive', 'shape'),
    [(own_primitive(), (2, 4)), (own_primitive(), (8, 1)), (host_callback, (8,))],
    ids=['kernel-2x4', 'kernel-8x1', 'callback-8'],
)
def test_what_vmap_cannot_map_runs_by_shard_map(kind, primitive, shape):
    names = ('workers', 'shard')[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))
    dist = def_jax.spmd(feedback(inner=optax.sgd(0.1)), mesh, P())
    params, state = initial(dist)
    kernel = kernel_of(primitive)

    def loss(params, batch):
        return jnp.mean((kernel(batch @ params['in']) @ params['out'] - batch) ** 2)

    found = jax.jit(dist.value_and_grad(loss, mapping='shard_map'))(params, state, BATCH)
    parts = BATCH.reshape(shape[0], -1, 8)
    expected = jax.vmap(jax.value_and_grad(loss_fn), (None, 0))(make_params(), parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)
    with pytest.raises(NotImplementedError, match=r"callbacks .*need mapping='shard_map', an argument of"):
        jax.eval_shape(dist.value_and_grad(loss), params, state, BATCH)


@pytest.mark.parametrize('form', ['prefix', 'shardings', 'metadata'])
def test_specs_as_the_ecosystem_has_them(form):
    """One for a whole branch, shardings in their place, and Flax's boxes, also around the parameters."""
    nn = pytest.importorskip('flax.linen')
    params = {name: {'kernel': x} for name, x in make_params().items()}
    boxes = {name: {'kernel': nn.Partitioned(x, tuple(SPECS[name]))} for name, x in make_params().items()}
    specs = {
        'prefix': SPECS,
        'shardings': {name: {'kernel': NamedSharding(spmd().mesh, spec)} for name, spec in SPECS.items()},
        'metadata': nn.get_partition_spec(boxes),
    }
    dist = spmd(feedback(inner=optax.adam(0.1)), specs=specs[form])
    state = dist.init(params)
    assert state.residual['in']['kernel'].sharding.spec == P('workers', None, 'shard')
    if form == 'metadata':
        state = dist.init(boxes)
        assert state.residual['out']['kernel'].value.sharding.spec == P('workers', 'shard')
