"""The programs that are compiled: a step of a network, of a mapping over workers, of an optimizer."""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from benchmarks.optimizers import Make, update
from benchmarks.trees import Network, gradient, shapes, whole_step
from def_jax.elastic import SHARD_AXIS
from def_jax.sharding.at_points import detaches, point
from def_jax.state.ownership import own_leaves
from def_jax.trainer.state import per_worker
from def_jax.trainer.steps import Steps
from def_jax.trainer.workers.base import AXIS
from def_jax.trainer.workers.sharded import ShardedWorkers, shard_spec
from def_jax.trainer.workers.whole import mapped_axes

__all__ = ['MAPPINGS']

PyTree = Any
WORKERS, VIRTUAL = 'workers', 'virtual'


def _pmap(network: Network, make: Make, devices: np.ndarray, **inside: int) -> Any:
    optimizer, (params, rest) = make(WORKERS, **inside), shapes(network)
    own = own_leaves(optimizer, params)
    axes = mapped_axes(own)
    step = jax.pmap(
        whole_step(network, optimizer),
        axis_name=WORKERS,
        in_axes=(None, axes, None, 0),
        out_axes=(None, axes),
        donate_argnums=(0, 1),
        devices=list(devices.flat),
    )
    state = _stacked(jax.eval_shape(optimizer.init, params), own, devices.size)
    batch = _batch(network, 1)
    batch = jax.ShapeDtypeStruct((devices.size, *batch.shape), batch.dtype)
    return step.lower(params, state, rest, batch)


def _pmap_inside(network: Network, make: Make, devices: np.ndarray) -> Any:
    """A worker is a node."""
    return _pmap(network, make, devices, inside=devices.shape[1])


def _shard_map(
    network: Network, make: Make, devices: np.ndarray, virtual: int = 0, inside: bool = False
) -> Any:
    """As docs/how_to/own_loop.md has it: what is a worker's own is stacked. With `inside`, it is a node."""
    axis_name = (WORKERS, VIRTUAL) if virtual else WORKERS
    optimizer = make(axis_name, inside=SHARD_AXIS) if inside else make(axis_name)
    params, rest = shapes(network)
    own = own_leaves(optimizer, params)
    specs = jax.tree.map(lambda mine: P(WORKERS) if mine else P(), own)
    worker = whole_step(network, optimizer)

    def step(params, state, rest, batch):
        state = jax.tree.map(lambda x, mine: x[0] if mine else x, state, own)
        params, state = worker(params, state, rest, batch)
        return params, jax.tree.map(lambda x, mine: x[None] if mine else x, state, own)

    if virtual:
        step = _virtual(network, optimizer, own, virtual)
    mesh = Mesh(devices if inside else devices.reshape(-1, 1), (WORKERS, SHARD_AXIS))
    each = P((WORKERS, SHARD_AXIS))
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), specs, P(), each),
        out_specs=(P(), specs),
        check_vma=False,
    )
    state = _stacked(jax.eval_shape(optimizer.init, params), own, mesh.shape[WORKERS] * max(1, virtual))
    arguments = (params, P()), (state, specs), (rest, P()), (_batch(network, devices.size), each)
    return jax.jit(mapped, donate_argnums=(0, 1)).lower(*(_placed(mesh, *pair) for pair in arguments))


def _virtual(network: Network, optimizer, own: PyTree, virtual: int) -> Callable:
    """The step of several workers on a device, whose gradients are taken by vmap."""
    axes = mapped_axes(own)

    def step(params, state, rest, batch):
        points = jax.vmap(point, (None, axes), axis_size=virtual)(params, state)
        batch = batch.reshape(virtual, -1, *batch.shape[1:])
        grads = jax.vmap(functools.partial(gradient, network), (0, None, 0))(points, rest, batch)
        mapped = jax.vmap(
            functools.partial(update, optimizer), (None, axes, 0), (None, axes), axis_name=VIRTUAL
        )
        return mapped(params, state, grads)

    return step


def _spmd(network: Network, make: Make, devices: np.ndarray) -> Any:
    """A worker is a node, which shards its model (FSDP)."""
    mesh = Mesh(devices, (WORKERS, SHARD_AXIS), axis_types=(AxisType.Auto,) * 2)
    params, rest = shapes(network)
    param_specs = jax.tree.map(lambda x: shard_spec(x.shape, devices.shape[1]), params)
    dist = def_jax.spmd(make(WORKERS), mesh, param_specs)

    def loss_fn(params, batch):
        return network.loss(fixed | {'params': params}, batch)

    def step(params, opt_state, batch):
        grads = dist.value_and_grad(loss_fn, mapping=mapping)(params, opt_state, batch)[1]
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    mapping = 'shard_map' if network.has_images else 'vmap'  # under vmap, XLA gathers what convolutions read
    fixed = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), rest)
    params = _placed(mesh, params, param_specs)
    batch = _placed(mesh, _batch(network, devices.size), P((WORKERS, SHARD_AXIS)))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, dist.abstract_state(params), batch)


def _trainer(network: Network, make: Make, devices: np.ndarray) -> Any:
    """The trainer's step with `shards_per_worker`: a worker is a node."""
    nodes, each = devices.shape
    optimizer, workers = make(AXIS), ShardedWorkers(list(devices.flat), each)

    def init(key):
        del key
        return {'batch_stats': {}} | dict(network.variables())

    def loss(params, batch_stats, batch, key):
        del key
        variables = {'params': params, 'batch_stats': batch_stats}
        return network.loss(variables, batch['inputs']), ({}, batch_stats)

    variables = jax.eval_shape(init, None)
    own = per_worker(optimizer, variables)
    steps = Steps(
        types.SimpleNamespace(init=init, loss=loss),
        optimizer,
        workers,
        own,
        seed=0,
        points=(),
        detaches=detaches(jax.eval_shape(optimizer.init, variables['params'])),
    )
    mesh = Mesh(devices, (AXIS, SHARD_AXIS), axis_types=(AxisType.Auto,) * 2)
    batch = _batch(network, each)
    batch = jax.ShapeDtypeStruct((nodes, *batch.shape), batch.dtype)
    batch = _placed(mesh, {'inputs': batch}, P(AXIS, SHARD_AXIS))
    return steps.train.lower(workers.abstract(jax.eval_shape(steps.init), own), batch)


def _stage(network: Network, make: Make, devices: np.ndarray) -> Any:
    """The update of one worker alone, its gradients given: nothing is sent."""
    optimizer, (params, _) = make(None), shapes(network)
    mesh = Mesh(devices[0, :1], (WORKERS,))
    arguments = _placed(mesh, (params, jax.eval_shape(optimizer.init, params), params), P())
    return jax.jit(functools.partial(update, optimizer), donate_argnums=(0, 1)).lower(*arguments)


# Functions of a network, an optimizer and the devices [nodes, devices of a node] to a lowered step.
MAPPINGS: dict[str, Callable[..., Any]] = {
    'pmap': _pmap,
    'pmap, a node inside': _pmap_inside,
    'shard_map': _shard_map,
    'shard_map, a node inside': functools.partial(_shard_map, inside=True),
    '2 virtual workers, vmap': functools.partial(_shard_map, virtual=2),
    'spmd, FSDP inside': _spmd,
    'trainer, FSDP inside': _trainer,
    'optimizer stage': _stage,
}


def _batch(network: Network, devices: int) -> jax.ShapeDtypeStruct:
    """32 images a device, or 4 sequences of 1,024 tokens."""
    each, shape = (32, network.batch[1:]) if network.has_images else (4, (1024,))
    dtype = jnp.float32 if network.has_images else jnp.int32
    return jax.ShapeDtypeStruct((each * devices, *shape), dtype)


def _stacked(tree: PyTree, own: PyTree, count: int) -> PyTree:
    """Shapes with an axis over workers for what is a worker's own."""
    return jax.tree.map(
        lambda x, mine: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) if mine else x, tree, own
    )


def _placed(mesh: Mesh, tree: PyTree, specs: PyTree) -> PyTree:
    def place(spec, subtree):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), subtree)

    return jax.tree.map(place, specs, tree, is_leaf=lambda node: isinstance(node, P))
