"""The problem on which trajectories are compared: the perceptron of `reference`, as JAX trains it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import reference

NUM_STEPS = 50
LEARNING_RATES = np.where(np.arange(NUM_STEPS) < 30, 0.02, 0.002)  # one drop
# A step rounds values of size 1 to 10 to a relative 2^-24 = 6e-8, and at these learning rates it does not
# amplify the roundings of earlier steps: the largest difference over all cases is 2e-6. A wrong sign, point
# or block shows at 1e-2.
TOLERANCE = dict(rtol=0, atol=5e-6)
RNG = np.random.default_rng(0)
INITIAL = tuple(0.5 * RNG.normal(size=shape).astype(np.float32) for shape in reference.MLP_SHAPES)
mlp_data = functools.partial(reference.mlp_data, num_steps=NUM_STEPS)


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(tree)])


def loss_fn(params, batch):
    w1, w2, b1, b2, scale = params
    inputs, targets = batch
    return 0.5 * jnp.mean(jnp.sum((scale * (jnp.tanh(inputs @ w1 + b1) @ w2 + b2) - targets) ** 2, axis=1))


@functools.cache
def multipliers(compressor, seed=0, num_steps=NUM_STEPS):
    """What multiplies p at every step, as the oracle takes it: [T, d]."""
    ones = jax.tree.map(jnp.ones_like, INITIAL)

    def at(step):
        selection = compressor(jax.random.PRNGKey(seed), step, ones)
        return flat(selection.place(selection.take(ones), ones))

    return np.asarray(jax.jit(jax.vmap(at))(jnp.arange(num_steps, dtype=jnp.uint32)), np.float64)
