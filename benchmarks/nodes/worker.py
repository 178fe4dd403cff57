"""One process of `benchmarks.nodes`: updates without a model, on fixed gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from benchmarks.cluster import jax_side, network, timing
from benchmarks.cluster.jax_side import AXIS, Variant, on_workers, place
from benchmarks.cluster.workloads import LEARNING_RATE
from def_jax.ground.collectives import divided, pmean
from def_jax.presets import block_ratio
from def_jax.traffic.nodes import nodes_of

COMPRESSION, BITS = 64, 2
# As `def_sgd` selects.
BLOCKS = def_jax.random_block(block_ratio(COMPRESSION, BITS), order='shuffled', allocation='balanced')


def make_updates(inside: int):
    """For each variant under one axis over all devices, its update and its optimizer's `init`.

    `inside` is how many devices a node has.
    """
    sgd = optax.sgd(LEARNING_RATE, momentum=0.9)

    def averaged(mean):
        """Momentum SGD on gradients averaged by `mean`."""
        return lambda grads, state, params: sgd.update(mean(grads), state, params), sgd.init

    def hierarchical(grads):
        across, within = divided(AXIS, inside)
        grads, restored = ravel_pytree(grads)
        rows = grads.reshape(inside, -1) / lax.axis_size(AXIS)
        mine = lax.psum(lax.psum_scatter(rows, AXIS, **within.options), AXIS, **across.options)
        return restored(lax.all_gather(mine, AXIS, **within.options).reshape(-1))

    def linked(optimizer):
        return optimizer.update, optimizer.init

    def_q = functools.partial(def_jax.def_sgd, LEARNING_RATE, COMPRESSION, bits=BITS)
    return {
        'local_sgd': averaged(lambda grads: grads),
        'local_def_q': linked(def_q(None)),
        'mean_inside': averaged(lambda grads: pmean(grads, divided(AXIS, inside)[1])),
        'def_q': linked(def_q(AXIS)),
        'def_q_inside': linked(def_q(AXIS, inside=inside)),
        'dense': averaged(lambda grads: lax.pmean(grads, AXIS)),
        'dense_nodes': averaged(hierarchical),
        'powersgd': linked(optax.chain(def_jax.baselines.powersgd(COMPRESSION, AXIS), sgd)),
    }


def under_one_axis(update, init, params, grads) -> Variant:
    def step(state, grads):
        params, opt_state = state
        updates, opt_state = update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return Variant(on_workers(step), place((params, init(params))), place(grads))


def under_spmd(spec: P, params, grads, nodes: int) -> Variant:
    """DEF-Q between nodes, on gradients that are a node's already."""
    devices = np.array(jax.devices()).reshape(nodes, -1)
    mesh = Mesh(devices, ('nodes', 'inside'), axis_types=(AxisType.Auto,) * 2)
    optimizer = def_jax.def_sgd(LEARNING_RATE, COMPRESSION, 'nodes', bits=BITS)
    dist = def_jax.spmd(optimizer, mesh, spec, axis_name='nodes')

    def laid(x, *axes):
        """An array of which each device makes its own part."""
        sharding = NamedSharding(mesh, P(*axes, *spec))
        stacked = np.broadcast_to(x, (*[nodes] * len(axes), *x.shape))
        return jax.make_array_from_callback(stacked.shape, sharding, lambda index: stacked[index])

    params, grads = jax.tree.map(laid, params), jax.tree.map(lambda x: laid(x, 'nodes'), grads)

    def step(state, grads):
        params, opt_state = state
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return Variant(jax.jit(step, donate_argnums=0), (params, dist.init(params)), grads)


def make_variants(job: dict[str, Any], hidden: int):
    """All variants for an MLP's parameters with so many hidden units and half as many inputs and outputs."""
    params = jax.tree.map(
        np.asarray, jax_side.mlp_params(jax.random.key(0), (hidden // 2, hidden, hidden // 2))
    )
    rng = np.random.default_rng(job['worker'])
    grads = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), params)
    nodes = job['num_workers'] // job['per_node']
    updates = make_updates(job['per_node'] * job['devices'])
    found = {}
    for name in job['variants']:
        if name in updates:
            found[name] = under_one_axis(*updates[name], params, grads)
        else:
            spec = P('inside') if name == 'fsdp' else P()
            found[name] = under_spmd(spec, params, grads, nodes)
    return params, found


def leaving(variant: Variant, job: dict[str, Any]) -> int:
    """Bytes of a step that leave the node that sends most, as the program's collectives run."""
    nodes = nodes_of(jax.device_count(), job['per_node'] * job['devices'])
    passed = [c.passed(len(nodes), nodes=nodes) for c in variant.sent()]
    return sum(c.times * c.node_bytes for c in passed)


def measured(job: dict[str, Any], variants: dict[str, Variant], barrier: Callable[[], None]) -> dict:
    """For each rate of the links, what `timing.measure` reports of the variants."""
    slow = {name: each for name, each in variants.items() if name.startswith('dense')}
    fast = {'nothing': lambda: None} | {name: each for name, each in variants.items() if name not in slow}
    found = {}
    for rate in job['rates']:
        if job['worker'] % job['per_node'] == 0:
            network.shape(job['worker'] // job['per_node'], rate)
        found[rate] = timing.measure(fast, barrier, job)
        found[rate] |= timing.measure(slow, barrier, job | job['slow'])
    return found


def main() -> None:
    job = timing.read_job()
    jax_side.start(job)
    barrier = jax_side.meet()
    report = {}
    for hidden in job['hidden']:
        params, variants = make_variants(job, hidden)
        report[hidden] = {
            'params': sum(x.size for x in jax.tree.leaves(params)),
            'message': def_jax.message_size(BLOCKS, params),
            'leaving': {name: leaving(each, job) for name, each in variants.items()},
            'rates': measured(job, variants, barrier),
        }
    timing.write_report(job, report)
    jax.distributed.shutdown()


if __name__ == '__main__':
    main()
