"""Meshes of eight devices on which workers of several devices are tested, with the perceptron's sharding."""

import jax
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import def_jax

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
# Mesh, axes over workers, and specs of W1 [4, 6], W2 [6, 3], b1 [6], b2 [3] and a scale.
LAYOUTS = {
    '2x4': ({'workers': 2, 'shard': 4}, 'workers', (P('shard'), P(), P(), P(), P())),
    '2x2x2': (
        {'workers': 2, 'data': 2, 'model': 2},
        'workers',
        (P('data', 'model'), P('model'), P('data'), P(), P()),
    ),
    '(2x2)x2': ({'pod': 2, 'node': 2, 'shard': 2}, ('pod', 'node'), (P('shard'), P('shard'), P(), P(), P())),
    '8x1': ({'workers': 8}, 'workers', (P(),) * 5),
}


def make_mesh(layout, kind=AUTO):
    sizes, _, _ = LAYOUTS[layout]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def mesh_of(workers, shards, kind=AUTO):
    devices = jax.devices()[: workers * shards]
    return jax.make_mesh((workers, shards), ('workers', 'shard'), axis_types=(kind, kind), devices=devices)


def step_of(dist, loss_fn):
    """A step of training, with the losses of all workers."""

    def step(params, state, batch):
        losses, grads = dist.value_and_grad(loss_fn)(params, state, batch)
        updates, state = dist.update(grads, state, params)
        return optax.apply_updates(params, updates), state, losses

    return step


def distributed(layout, optimizer, kind=AUTO):
    _, axis_name, specs = LAYOUTS[layout]
    return def_jax.spmd(optimizer, make_mesh(layout, kind), list(specs), axis_name)


def feedback(layout, compressor, **options):
    return def_jax.error_feedback(compressor, LAYOUTS[layout][1], **options)
