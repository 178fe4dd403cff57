"""What the tests of compressors and links share: C(tree) of one step, what is sent at each, what arrives."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

import def_jax

KEY = jax.random.PRNGKey(7)


def compress(compressor, tree, step=0, key=KEY):
    """C(tree)."""
    selection = compressor(key, jnp.uint32(step), tree)
    return selection.place(selection.take(tree), tree)


def masks(compressor, like, num_steps, key=KEY):
    """0/1 for each coordinate of `like`, or δ, at every step: leaves [num_steps, ...]."""
    ones, steps = jax.tree.map(jnp.ones_like, like), jnp.arange(num_steps, dtype=jnp.uint32)
    sent = jax.jit(jax.vmap(lambda step: compress(compressor, ones, step, key)))(steps)
    return jax.tree.map(np.asarray, sent)


def feedback(ratio=4, axis_name='workers', blocks=MappingProxyType({}), **options):
    """A link that sends a block of every tensor, with options of `random_block` and of its own."""
    return def_jax.error_feedback(def_jax.random_block(ratio, **blocks), axis_name, **options)


def exchanged(link, updates, params=None):
    """What arrived at every worker, and its state after each step, for updates [K, T, ...]."""

    def worker(updates):
        def step(state, u):
            arrived, state = link.update(u, state, params)
            return state, (arrived, state)

        like = params or jax.tree.map(lambda u: jnp.zeros(u.shape[1:]), updates)
        return jax.lax.scan(step, link.init(like), updates)[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(worker, axis_name='workers'))(updates))


def ones_like(shapes):
    return [jnp.ones(shape) for shape in shapes]
