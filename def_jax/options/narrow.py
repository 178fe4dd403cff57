"""Parameters narrower than float32: what rounds x goes to the residual, on all workers alike.

x + u is rounded to the dtype of x, and an update below half a unit in its last place is lost, in dense
training too. Here what is missing from x afterwards joins the residual of every worker. So y = x + mean_k r_k
is a float32 master copy of the parameters, for no memory and no traffic.
"""

from collections.abc import Callable, Sequence

import jax

from def_jax.ground.barriers import rounded
from def_jax.ground.types import PyTree

Split = Callable[[jax.Array], Sequence[jax.Array]]  # a message, float32 [M], into the parts of its tensors


def is_narrow(tree: PyTree) -> bool:
    """Whether an array is narrower than float32."""
    return any(x.dtype.itemsize < 4 for x in jax.tree.leaves(tree))


def settled(
    mean: jax.Array, x: jax.Array, updates: PyTree, params: PyTree, apart: Split, join: Callable
) -> tuple[jax.Array, jax.Array]:
    """What x is told to move by, float32 [M], and what of the mean is missing from x after it.

    `x` is the block of the parameters. It moves as by `optax.apply_updates`, updates and x in their dtypes.
    """
    dtypes = [(u.dtype, p.dtype) for u, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True)]

    def moved(mean, x, dtypes):
        update = rounded(mean, dtypes[0])
        return update, mean - (rounded(x + update, dtypes[1]) - x)

    if len(set(dtypes)) == 1:
        return moved(mean, x, dtypes[0])
    parts = [moved(*part) for part in zip(apart(mean), apart(x), dtypes, strict=True)]
    update, missing = (join(column) for column in zip(*parts, strict=True))
    return update, missing
