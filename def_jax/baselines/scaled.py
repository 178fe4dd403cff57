"""The compressor of iterate averaging: everything is sent, shrunk."""

import math

import jax
import jax.numpy as jnp

from def_jax.compressors.base import Compressor, Part, Selection
from def_jax.ground.arguments import is_number

__all__ = ['scaled']


def scaled(delta: float) -> Compressor:
    """C(x) = δ·x: sends everything, shrunk. With one worker and λ = 1, x is SGD with iterate averaging.

    Its message holds every element, so it saves no traffic.

    Args:
        delta: δ, in (0, 1].

    Raises:
        ValueError: if `delta` is not in (0, 1].

    Source: Lemma C.1 and Eq. 96.

    >>> import jax, jax.numpy as jnp
    >>> kept = scaled(0.25)(jax.random.PRNGKey(0), jnp.uint32(0), jnp.ones(2))
    >>> kept.place(kept.take(jnp.ones(2)), jnp.ones(2)).tolist()
    [0.25, 0.25]
    """
    if not is_number(delta) or not 0 < delta <= 1:
        raise ValueError(
            f'{delta=} must be a number in (0, 1], the share of the update that is applied each step.'
        )

    def parts(like) -> list[Part]:
        return [Part(math.prod(x.shape), delta**-2) for x in jax.tree.leaves(like)]

    def select(key, step, like, layout) -> Selection:
        del key, step
        sizes = [math.prod(x.shape) for x in jax.tree.leaves(like)]

        def take(tree):
            return layout.join([delta * x.astype(jnp.float32).reshape(-1) for x in jax.tree.leaves(tree)])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            parts = zip(leaves, layout.split(message, sizes), strict=True)
            placed = [(x + (m.reshape(x.shape) - delta * x)).astype(x.dtype) for x, m in parts]
            return jax.tree.unflatten(treedef, placed)

        return Selection(take, replace)

    return Compressor(select, parts, scales=True)
