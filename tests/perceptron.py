"""The problem on which trajectories are compared: the perceptron of `reference`, as JAX trains it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reference
from compressing import masks
from jax.sharding import PartitionSpec as P

import def_jax
from def_jax.ground.collectives import vary_if_tracked
from def_jax.ground.random import shared_key, typed_key

NUM_STEPS = 50
LEARNING_RATES = np.where(np.arange(NUM_STEPS) < 30, 0.02, 0.002)  # one drop
# A step rounds values of size 1 to 10 to a relative 2^-24 = 6e-8, and at these learning rates it does not
# amplify the roundings of earlier steps: the largest difference over all cases is 2e-6. A wrong sign, point
# or block shows at 1e-2.
TOLERANCE = dict(rtol=0, atol=5e-6)
RNG = np.random.default_rng(0)
INITIAL = tuple(0.5 * RNG.normal(size=shape).astype(np.float32) for shape in reference.MLP_SHAPES)
START = np.concatenate([np.ravel(x) for x in INITIAL]).astype(np.float64)  # for the oracles
mlp_data = functools.partial(reference.mlp_data, num_steps=NUM_STEPS)


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(tree)])


def loss_fn(params, batch):
    w1, w2, b1, b2, scale = params
    inputs, targets = batch
    return 0.5 * jnp.mean(jnp.sum((scale * (jnp.tanh(inputs @ w1 + b1) @ w2 + b2) - targets) ** 2, axis=1))


def gradient(num_workers, num_steps=NUM_STEPS):
    """The gradient of each worker at each step, as oracles take it."""
    inputs, targets = (x.astype(np.float64) for x in mlp_data(num_workers, num_steps=num_steps))
    return lambda theta, k, t: reference.mlp_gradient(theta, inputs[k, t], targets[k, t])


def learning_rate(step):
    return jnp.asarray(LEARNING_RATES, jnp.float32)[step]


def at_x(params, state):
    """The point of methods without feedback."""
    del state
    return params


def x_y_residual(axis_name='workers'):
    """What `train` observes of error feedback, each [d]."""

    def observe(params, state):
        y = def_jax.output_params(params, state, axis_name)
        return flat(params), flat(y), flat(optax.tree.get(state, 'residual'))

    return observe


def train(optimizer, batches, observe, *, point=def_jax.detached_params, varying=None, bare=False):
    """What one worker observes after 0, ..., T steps of the loop of the README: each [T + 1, ...].

    `varying` is the axis over workers under shard_map's types, which demand of a scan that what will differ
    between workers is marked though it starts equal. `bare`: the optimizer is a chain that ends in a link
    without an inner optimizer; its weight decay must be given the point.
    """

    def step(carry, batch):
        params, state = carry
        at = point(params, state)
        updates, state = optimizer.update(jax.grad(loss_fn)(at, batch), state, at if bare else params)
        params = optax.apply_updates(params, updates)
        return (params, state), observe(params, state)

    params = jax.tree.map(jnp.asarray, INITIAL)
    state = optimizer.init(params)
    if varying and bare:
        trace = optax.tree.get(state, 'trace')
        state = optax.tree.set(state, trace=vary_if_tracked(trace, varying))
    first = observe(params, state)
    _, rest = jax.lax.scan(step, (params, state), batches)
    return jax.tree.map(lambda z, zs: jnp.concatenate([z[None], zs]), first, rest)


def mapped(mapping, worker, num_workers):
    """A function from all batches and from settings to x, y and residual of all workers, each [K, T + 1, d].

    `worker(batches, settings, axis_name=…, varying=…)` gives those of one.
    """
    axes = {'pmap of vmap': ('devices', 'workers'), 'one worker': None}.get(mapping, 'workers')
    own = functools.partial(worker, axis_name=axes)
    vmap = jax.vmap(own, in_axes=(0, None), axis_name='workers')
    if mapping == 'vmap':
        return jax.jit(vmap)
    if mapping == 'pmap':
        return jax.pmap(own, in_axes=(0, None), axis_name='workers')
    if mapping == 'one worker':
        run = jax.jit(own)
        return lambda batches, settings: [z[None] for z in run([z[0] for z in batches], settings)]
    if mapping == 'pmap of vmap':
        run = jax.pmap(vmap, in_axes=(0, None), axis_name='devices')

        def nested(batches, settings):
            found = run([z.reshape(2, len(z) // 2, *z.shape[1:]) for z in batches], settings)
            return [z.reshape(num_workers, *z.shape[2:]) for z in found]

        return nested

    def sharded(batches, settings):
        x, y, residual = own([z[0] for z in batches], settings, varying='workers' if types else None)
        return x, y, residual[None]

    types = mapping == 'shard_map with types'
    mesh = jax.sharding.Mesh(jax.devices()[:num_workers], ('workers',))
    specs = (P('workers'), P()), (P(), P(), P('workers'))  # x and y are replicated, as their types say
    run = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=types))

    def stacked(batches, settings):
        x, y, residual = run(batches, settings)
        return [*(np.broadcast_to(z, (num_workers, *z.shape)) for z in (x, y)), residual]

    return stacked


def vmapped(worker, batches):
    """A worker's function on all of them at once, jitted."""
    return jax.jit(jax.vmap(worker, axis_name='workers'))(batches)


def x_and_own(optimizer, batches):
    """x [T + 1, d], which all workers have, and, where λ is 1, each one's own model x + r_k [T + 1, K, d]."""

    def observe(params, state):
        return flat(params), flat(def_jax.detached_params(params, state))

    x, own = map(np.asarray, vmapped(lambda batches: train(optimizer, batches, observe), batches))
    np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape))
    return x[0], own.swapaxes(0, 1)


@functools.cache
def multipliers(compressor, seed=0, num_steps=NUM_STEPS, folded=False, flattened=False):
    """What multiplies p at every step, as the oracle takes it: [T, d]. `folded`: in CSER's second draw."""
    key = jax.random.PRNGKey(seed)
    if folded:
        key = jax.random.key_data(jax.random.fold_in(typed_key(shared_key(seed)), 1))
    like = START if flattened else INITIAL
    sent = jax.tree.leaves(masks(compressor, like, num_steps, key))
    return np.concatenate([mask.reshape(num_steps, -1) for mask in sent], axis=1).astype(np.float64)
