"""Steps for two nodes of eight devices, compiled: prints what leaves a node and errors, as JSON.

A program of its own, since the tests have eight devices.
"""

import json

import jax
import jax.numpy as jnp
import optax
from jax import P, lax

import def_jax

jax.config.update('jax_num_cpu_devices', 16)
NODE = 8
PARAMS = jax.ShapeDtypeStruct((1024, 2048), jnp.float32)
WITHIN = [list(range(NODE)), list(range(NODE, 2 * NODE))]
ACROSS = [[i, i + NODE] for i in range(NODE)]
EVERYWHERE = P(('nodes', 'gpus'))


def pmapped(optimizer, mean=lambda grads: grads):
    def step(grads, state, params):
        updates, state = optimizer.update(mean(grads), state, params)
        return params + updates, state, lax.pmean(jnp.sum(grads), 'workers')

    arguments = PARAMS, jax.eval_shape(optimizer.init, PARAMS), PARAMS
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * NODE, *x.shape), x.dtype), arguments)
    return jax.pmap(step, axis_name='workers').lower(*stacked).compile()


def dense_of_nodes(grads):
    own = lax.psum_scatter(grads.reshape(NODE, -1), 'workers', axis_index_groups=WITHIN)
    own = lax.psum(own, 'workers', axis_index_groups=ACROSS)
    return lax.all_gather(own, 'workers', axis_index_groups=WITHIN).reshape(grads.shape)


def on_axes(sizes):
    """Workers of a node under shard_map, with an axis over nodes and one over the devices of each."""
    optimizer = def_jax.def_sgd(0.1, 64, 'nodes', inside='gpus')
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes))

    def step(grads):
        updates, _ = optimizer.update(grads[0], optimizer.init(grads[0]), grads[0])
        return updates[None]

    options = dict(mesh=mesh, in_specs=EVERYWHERE, out_specs=EVERYWHERE, check_vma=False)
    sharding = jax.sharding.NamedSharding(mesh, EVERYWHERE)
    grads = jax.ShapeDtypeStruct((2 * NODE, *PARAMS.shape), jnp.float32, sharding=sharding)
    program = jax.jit(jax.shard_map(step, **options)).lower(grads).compile()
    return sent(def_jax.check, program, optimizer, PARAMS, 'nodes')


def on_a_mesh(optimizer, spec):
    """`def_jax.spmd` with a node for a worker."""
    mesh = jax.make_mesh((2, NODE), ('nodes', 'gpus'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    dist = def_jax.spmd(optimizer, mesh, spec, 'nodes')

    def step(params, state, batch):
        losses, grads = dist.value_and_grad(lambda p, rows: jnp.mean((rows @ p) ** 2))(params, state, batch)
        updates, state = dist.update(grads, state, params)
        return params + updates, state, losses.mean()

    params = jax.ShapeDtypeStruct(PARAMS.shape, PARAMS.dtype, sharding=dist.shardings)
    place = jax.sharding.NamedSharding(mesh, EVERYWHERE)
    batch = jax.ShapeDtypeStruct((32, 1024), jnp.float32, sharding=place)
    return dist, jax.jit(step).lower(params, dist.abstract_state(params), batch).compile()


def sent(check, *arguments, node=NODE, **options):
    try:
        found = check(*arguments, devices_per_node=node, **options)
    except ValueError as error:
        return str(error)
    return sum(c.node_bytes for c in found)


def main():
    flat = {bits: def_jax.def_sgd(0.1, 64, 'workers', bits=bits) for bits in (2, 32)}
    dense = optax.chain(def_jax.all_reduce_mean('workers'), optax.sgd(0.1))
    inside = def_jax.def_sgd(0.1, 64, 'workers', inside=NODE)
    programs = {name: pmapped(tx) for name, tx in (('2', flat[2]), ('32', flat[32]), ('dense', dense))}
    hierarchical, nodes = pmapped(optax.sgd(0.1), dense_of_nodes), pmapped(inside)
    left_in = pmapped(inside, lambda grads: lax.pmean(grads, 'workers'))
    found = {
        'flat, 2 bits': sent(def_jax.check, programs['2'], flat[2], PARAMS),
        'flat, 32 bits': sent(def_jax.check, programs['32'], flat[32], PARAMS),
        'dense': sent(def_jax.check, programs['dense'], dense, PARAMS),
        'hierarchical': sent(def_jax.check, hierarchical, dense, PARAMS, besides=PARAMS.size * 4),
        'inside': sent(def_jax.check, nodes, inside, PARAMS),
        'left in': sent(def_jax.check, left_in, inside, PARAMS),
        'dense for DEF': sent(def_jax.check, programs['dense'], flat[2], PARAMS),
        'split': sent(def_jax.check, nodes, inside, PARAMS, node=4),
        'does not divide': sent(def_jax.check, nodes, inside, PARAMS, node=3),
    }
    found['shard_map'] = on_axes({'nodes': 2, 'gpus': NODE})
    found['interleaved'] = on_axes({'gpus': NODE, 'nodes': 2})
    for name, spec in (('sharded', P(None, 'gpus')), ('replicated', P())):
        dist, program = on_a_mesh(def_jax.def_sgd(0.1, 64, 'nodes'), spec)
        found[name] = sent(dist.check, program)
    found['HLO'] = programs['2'].as_text()
    print(json.dumps(found))


if __name__ == '__main__':
    main()
