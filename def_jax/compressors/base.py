"""Linear compressors: which coordinates of a pytree travel in one step.

A compressor C of the paper is, here, a function `select(key, step, like)` that returns a `Selection`:
`take` packs the coordinates that C keeps into one message, `replace` puts a message in their place. The
choice depends on the shared key, the step and the shapes, never on the values nor on the worker: hence
C(a) + C(b) = C(a + b) (Assumption 3.3), the messages of all workers line up, and one all-reduce of the
message averages C over the workers without sending an index.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.compressors.orders import AGE_SHARES

PyTree = Any

__all__ = [
    'Compressor',
    'Selection',
    'concatenate',
    'message_size',
    'num_parts',
    'sampled_energy',
    'shared_key',
    'split',
    'typed_key',
]


class Selection(NamedTuple):
    """The coordinates that one step sends: C(x) = place(take(x), x)."""

    take: Callable[[PyTree], jax.Array]  # tree -> message, float32 [B]
    # tree x, message -> x - C(x) + the message at its place
    replace: Callable[[PyTree, jax.Array], PyTree]
    # message -> float32 [], an estimate of ‖tree‖² if every coordinate were like those that were taken
    energy: Callable[[jax.Array], jax.Array]
    age_shares: tuple[float, float] = AGE_SHARES['random']
    # message -> the blocks of all tensors, which it holds one after the other, or itself
    parts: Callable[[jax.Array], Sequence[jax.Array]] = lambda message: [message]

    def place(self, message: jax.Array, like: PyTree) -> PyTree:
        """The message at its place in zeros of `like`'s shapes and dtypes."""
        return self.replace(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), message)

    def add(self, tree: PyTree, message: jax.Array) -> PyTree:
        """The tree plus the message at its place."""
        return self.replace(tree, self.take(tree) + message)


Compressor = Callable[[jax.Array, jax.Array, PyTree], Selection]  # shared key, step, like


# The generator is named and not JAX's default: under vmap the 'rbg' generators draw other numbers for each
# entry of the batch, so that workers with equal keys would choose different blocks.
_GENERATOR = 'threefry2x32'


def shared_key(seed: int | jax.Array) -> jax.Array:
    """The key, uint32 [2], that every worker makes from the same seed."""
    return jax.random.key_data(jax.random.key(seed, impl=_GENERATOR))


def typed_key(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=_GENERATOR)


def message_size(
    compressor: Compressor,
    params: PyTree,
    mesh: Mesh | AbstractMesh | None = None,
    param_specs: PyTree = P(),  # noqa: B008
) -> int:
    """Number of elements B that one step sends for `params`; nothing is computed.

    Args:
        compressor: any compressor of this module.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        mesh: with `param_specs` as for `def_jax.spmd`, if a worker is several devices.
        param_specs: a PartitionSpec for all parameters, or a pytree of them.

    Returns:
        B, the size of the message of one worker; with a mesh, of one device.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> params = {'w': jnp.ones((512, 10)), 'b': jnp.ones(10)}
    >>> message_size(def_jax.random_block(64), params)
    81
    >>> mesh = jax.sharding.AbstractMesh((2, 4), ('workers', 'shard'))
    >>> message_size(def_jax.random_block(64), params, mesh, {'w': jax.P('shard'), 'b': jax.P()})
    21
    """
    if mesh is not None:

        def shard(spec, tree):
            sharding = NamedSharding(mesh, spec)
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(sharding.shard_shape(x.shape), x.dtype), tree)

        params = jax.tree.map(shard, param_specs, params, is_leaf=lambda node: isinstance(node, P))

    return sum(part.size for part in _parts(compressor, params))


def num_parts(compressor: Compressor, params: PyTree) -> int:
    """Number of parts of a message, see `Selection.parts`; nothing is computed."""
    return len(_parts(compressor, params))


def _parts(compressor: Compressor, params: PyTree) -> Sequence[jax.ShapeDtypeStruct]:
    def parts(tree):
        selection = compressor(shared_key(0), jnp.uint32(0), tree)
        return selection.parts(selection.take(tree))

    return jax.eval_shape(parts, params)


def sampled_energy(
    counts: Sequence[int], parts: Callable[[jax.Array], Sequence[jax.Array]]
) -> Callable[[jax.Array], jax.Array]:
    """`Selection.energy` of tensors that send one coordinate in `counts`, in `parts` of the message."""

    def energy(message):
        squares = [jnp.vdot(part, part) for part in parts(message)]
        return jnp.vdot(jnp.array(squares), jnp.array(counts)) if squares else jnp.float32(0)

    return energy


def concatenate(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.zeros(0, jnp.float32), *parts])


def split(message: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    ends = np.cumsum(sizes, dtype=np.int64)
    return [
        lax.slice_in_dim(message, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)
    ]
