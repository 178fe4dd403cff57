"""Workers of several devices: the NumPy oracle with its blocks in the devices' shards, and the errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from perceptron import INITIAL, LEARNING_RATES, NUM_STEPS, TOLERANCE, flat, loss_fn, mlp_data

import def_jax

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# Mesh, axes over workers, and specs of W1 [4, 6], W2 [6, 3], b1 [6], b2 [3] and a scale.
LAYOUTS = {
    '2x4': ({'workers': 2, 'shard': 4}, 'workers', (P('shard'), P(), P(), P(), P())),
    '4x2': ({'workers': 4, 'shard': 2}, 'workers', (P(None, 'shard'), P('shard'), P('shard'), P(), P())),
    '2x2x2': ({'workers': 2, 'data': 2, 'model': 2}, 'workers', (P('data', 'model'), P('model'), P('data'), P(), P())),
    '(2x2)x2': ({'pod': 2, 'node': 2, 'shard': 2}, ('pod', 'node'), (P('shard'), P('shard'), P(), P(), P())),
    '8x1': ({'workers': 8}, 'workers', (P(),) * 5),
}  # fmt: skip
SGD = optax.sgd(lambda step: jnp.asarray(LEARNING_RATES, jnp.float32)[step], momentum=0.9)


def make_mesh(layout, kind=AUTO):
    sizes, _, _ = LAYOUTS[layout]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def distributed(layout, optimizer, kind=AUTO):
    _, axis_name, specs = LAYOUTS[layout]
    return def_jax.spmd(optimizer, make_mesh(layout, kind), list(specs), axis_name)


def feedback(layout, compressor, **options):
    return def_jax.error_feedback(compressor, LAYOUTS[layout][1], **options)


def gathered_loss(params, batch):
    """The loss under Explicit axes, where FSDP is a matter of the types."""
    return loss_fn(jax.sharding.reshard(params, P()), batch)


def on_one_device(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def train(dist, num_steps, loss_fn=loss_fn, batches=None):
    """x and y after 0, ..., T steps, each [T + 1, d], and the last state."""
    batches = batches or mlp_data(dist.num_workers)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        _, grads = dist.value_and_grad(loss_fn)(params, state, batch)
        updates, state = dist.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    output = jax.jit(dist.output_params)
    params = jax.device_put([jnp.asarray(x) for x in INITIAL], dist.shardings)
    state = jax.jit(dist.init)(params)
    xs, ys = [], []
    for t in range(num_steps + 1):
        xs.append(flat(on_one_device(params)))
        ys.append(flat(on_one_device(output(params, state))))
        if t < num_steps:
            batch = [x[:, t].reshape(-1, x.shape[-1]) for x in batches]
            params, state = step(params, state, batch)
    return np.stack(xs), np.stack(ys), state


def shard_masks(layout, compressor, num_steps):
    """What multiplies p at every step, [T, d]: the same block in each device's shard."""
    specs = LAYOUTS[layout][2]
    shapes = [
        NamedSharding(make_mesh(layout), s).shard_shape(x.shape) for x, s in zip(INITIAL, specs, strict=True)
    ]
    ones = [jnp.ones(shape) for shape in shapes]

    def at(step):
        selection = compressor(jax.random.PRNGKey(0), step, ones)
        return selection.place(selection.take(ones), ones)

    masks = jax.jit(jax.vmap(at))(jnp.arange(num_steps, dtype=jnp.uint32))
    tiled = [
        np.tile(np.asarray(mask), (1, *(n // part for n, part in zip(x.shape, shape, strict=True))))
        for mask, x, shape in zip(masks, INITIAL, shapes, strict=True)
    ]
    return np.concatenate([mask.reshape(num_steps, -1) for mask in tiled], axis=1).astype(np.float64)


def oracle(layout, compressor, num_steps, **settings):
    num_workers = {'2x4': 2, '4x2': 4, '2x2x2': 2, '(2x2)x2': 4, '8x1': 8}[layout]
    inputs, targets = (x.astype(np.float64) for x in mlp_data(num_workers))

    def gradient(theta, k, t):
        return reference.mlp_gradient(theta, inputs[k, t], targets[k, t])

    masks = shard_masks(layout, compressor, num_steps)
    return reference.algorithm_1(
        np.asarray(flat(INITIAL)),
        gradient,
        masks,
        LEARNING_RATES[:num_steps],
        num_workers=num_workers,
        **settings,
    )


def residuals(state):
    own = on_one_device(optax.tree.get(state, 'residual'))
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in own], axis=1)


@pytest.mark.parametrize(
    ('layout', 'kind', 'compressor', 'options'),
    [
        ('2x4', AUTO, def_jax.random_block(4), {}),
        ('4x2', EXPLICIT, def_jax.random_block(4, order='shuffled'), {'average_every': 3}),
        ('2x2x2', AUTO, def_jax.random_block(3, allocation='balanced'), {'detach': 1.0}),
        ('(2x2)x2', EXPLICIT, def_jax.random_k(4), {}),
        ('8x1', AUTO, def_jax.random_block(4, granularity='model'), {}),
        ('2x2x2', EXPLICIT, def_jax.random_block(4, granularity='model', order='cyclic'), {}),
    ],
)  # fmt: skip
def test_equals_the_oracle(layout, kind, compressor, options):
    decay = 0.05
    optimizer = optax.chain(optax.add_decayed_weights(decay), SGD, feedback(layout, compressor, **options))
    loss = gathered_loss if kind == EXPLICIT else loss_fn
    x, y, state = train(distributed(layout, optimizer, kind), NUM_STEPS, loss)
    settings = {'detach': 0.3, 'momentum': 0.9, 'weight_decay': decay} | options
    expected = oracle(layout, compressor, NUM_STEPS, **settings)
    np.testing.assert_allclose(x, expected.x, **TOLERANCE)
    np.testing.assert_allclose(y, expected.y, **TOLERANCE)
    np.testing.assert_allclose(-residuals(state), expected.e[-1], **TOLERANCE)
