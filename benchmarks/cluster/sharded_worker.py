"""One node of `benchmarks.sharded`: a process with several CPU devices, connected to the other by gloo."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from benchmarks.cluster import timing
from benchmarks.cluster.jax_side import Variant, finish, meet, start

LEARNING_RATE = 1e-4  # nothing is learned; values only have to stay finite and normal


def loss_fn(params, batch):
    x = batch
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return jnp.mean((x @ params[-1] - batch) ** 2)


def program(variant: Variant, nodes: list[int]) -> dict[str, int]:
    """Bytes that a device holds and needs, and that it passes between the nodes and within one."""
    memory, sent = variant.program.memory_analysis(), variant.sent()
    between = sum(c.bytes for c in sent if c.crosses(nodes))
    return {
        'held': memory.argument_size_in_bytes,
        'temporary': memory.temp_size_in_bytes,
        'between': between,
        'within': sum(c.bytes for c in sent) - between,
    }


def make_steps(job, mesh, params):
    """For each variant, its step and the sharded state that it carries; AdamW in all."""
    inner = optax.adamw(LEARNING_RATE)

    def train(axes, init, gradient, update):
        """A step on parameters of whose matrices the first axis is sharded."""
        start = jax.tree.map(lambda x: global_array(x, NamedSharding(mesh, P(axes))), params)
        shardings = jax.tree.map(lambda x: x.sharding, start)

        def step(state, batch):
            params, opt_state = state
            updates, opt_state = update(gradient(params, opt_state, batch), opt_state, params)
            params = optax.apply_updates(params, updates)
            return jax.lax.with_sharding_constraint(params, shardings), opt_state

        return step, (start, jax.jit(init)(start))

    def fsdp():
        gradient = jax.grad(loss_fn)
        axes = 'nodes', 'devices'
        return train(axes, inner.init, lambda params, _, batch: gradient(params, batch), inner.update)

    def across(optimizer):
        dist = def_jax.spmd(optimizer, mesh, P('devices'), axis_name='nodes')
        grads_of = dist.value_and_grad(loss_fn)
        return train('devices', dist.init, lambda *arguments: grads_of(*arguments)[1], dist.update)

    def feedback(ratio):
        return across(def_jax.error_feedback(def_jax.random_block(ratio), 'nodes', inner=inner))

    return {
        'fsdp': fsdp,
        'dense': functools.partial(across, optax.chain(def_jax.all_reduce_mean('nodes'), inner)),
        'def16': functools.partial(feedback, 16),
        'def64': functools.partial(feedback, 64),
        'def_q64': functools.partial(across, def_jax.def_adamw(LEARNING_RATE, 64, 'nodes')),
    }


def global_array(x, sharding):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def main() -> None:
    job = timing.read_job()
    start(job)
    shape = (job['num_workers'], job['devices'])
    mesh = jax.make_mesh(shape, ('nodes', 'devices'), axis_types=(AxisType.Auto,) * 2)
    barrier, rng = meet(), np.random.default_rng(0)
    params = [
        (rng.standard_normal(pair, np.float32) * (2 / pair[0]) ** 0.5).astype(np.float32)
        for pair in itertools.pairwise(job['sizes'])
    ]
    examples = rng.standard_normal((job['batch'], job['sizes'][0]), np.float32)
    batch = global_array(examples, NamedSharding(mesh, P(('nodes', 'devices'))))
    nodes = np.repeat(np.arange(shape[0]), shape[1]).tolist()
    steps = make_steps(job, mesh, params)
    variants = {}
    for name in job['variants']:
        step, state = steps[name]()
        variants[name] = Variant(jax.jit(step, donate_argnums=0), state, batch)
    found = timing.measure(variants, barrier, job)
    for name, variant in variants.items():
        found[name]['hlo'] = program(variant, nodes)
    finish(job, params, {'variants': found})


if __name__ == '__main__':
    main()
