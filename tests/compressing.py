"""What the tests of compressors share: C(tree) of one step, and what is sent at each."""

import jax
import jax.numpy as jnp
import numpy as np

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


def ones_like(shapes):
    return [jnp.ones(shape) for shape in shapes]
