"""An optimizer's state as it is saved: per-worker values stacked over workers, replicated ones once."""

from typing import Any

import jax
import numpy as np

from def_jax.mesh.link import is_link, link_states, per_worker_leaves
from def_jax.types import PyTree

__all__ = ['stack_state', 'unstack_state']


def stack_state(opt_state: PyTree) -> PyTree:
    """The state to save, from what a step of `jax.pmap`, `jax.shard_map` or `jax.jit` returns.

    Taking one worker's copy, as `flax.jax_utils.unreplicate` or `[0]` do, loses the residuals of all others.
    A state of `out_axes=None` calls itself replicated, and reading it returns one worker's, though its shards
    differ; here, these are read one by one.

    Args:
        opt_state: with a leading axis [K] on every leaf, as from `jax.pmap`; on the residual and all else
            that is per-worker, as from `jax.shard_map` with `state_specs`; or on none, as from
            `out_axes=None`. Of several processes, each saves the workers of its own devices.

    Returns:
        The state in NumPy arrays. Per-worker leaves are stacked over workers, [K, ...]; the others are as
        `init` makes them.

    Raises:
        ValueError: if the state holds nothing that is per-worker.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(2), 'workers')
    >>> state = jax.pmap(optimizer.init)(jnp.zeros((1, 4)))
    >>> saved = def_jax.stack_state(state)
    >>> saved.residual.shape, saved.step.shape
    ((1, 4), ())
    """
    own = per_worker_leaves(_checked(opt_state, 'stack_state'))
    everywhere = np.ndim(link_states(opt_state)[0].step) == 1

    def leaf(mine: bool, x: Any) -> np.ndarray:
        if mine:
            return _copies(x) if _is_hidden(x) else np.asarray(x)
        return _copies(x)[0] if _is_hidden(x) else np.asarray(x[0] if everywhere else x)

    return jax.tree.map(leaf, own, opt_state)


def unstack_state(saved: PyTree, num_workers: int | None = None) -> PyTree:
    """Undoes `stack_state` for `jax.pmap`: every leaf with a leading axis [K].

    For `jax.shard_map`, pass the saved state as it is to `jax.device_put` with `state_specs`. With another
    number of workers, each gets the mean of what the old ones had, so x stays where it is, and y up to
    rounding.

    Args:
        saved: from `stack_state`.
        num_workers: K; by default, that of the saved state.

    Raises:
        ValueError: if all workers of several have one residual that is not zero: it was one worker's copy
            that was saved.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(2), 'workers')
    >>> saved = def_jax.stack_state(jax.pmap(optimizer.init)(jnp.zeros((1, 4))))
    >>> def_jax.unstack_state(saved, num_workers=3).residual.shape
    (3, 4)
    """
    own = per_worker_leaves(_checked(saved, 'unstack_state'))
    before = next(
        len(x) for x, mine in zip(jax.tree.leaves(saved), jax.tree.leaves(own), strict=True) if mine
    )
    workers = num_workers or before
    for state in link_states(saved):
        residuals = [np.asarray(x) for x in jax.tree.leaves(getattr(state, 'residual', ()))]
        if before > 1 and any(x.any() for x in residuals) and all((x == x[:1]).all() for x in residuals):
            raise ValueError(
                f'unstack_state: all {before} workers have the same residual, so what was saved is the copy '
                'of one of them. Save def_jax.stack_state(opt_state), without flax.jax_utils.unreplicate; '
                'or train on from x with a new state, optimizer.init(params).'
            )

    def leaf(mine: bool, x: Any) -> np.ndarray:
        x = np.asarray(x)
        if not mine:
            return np.broadcast_to(x, (workers, *x.shape))
        if workers == before:
            return x
        return np.broadcast_to(x.mean(0, dtype=np.float64).astype(x.dtype), (workers, *x.shape[1:]))

    return jax.tree.map(leaf, own, saved)


def _checked(opt_state: PyTree, caller: str) -> PyTree:
    if not any(is_link(node) and node.per_worker for node in link_states(opt_state)):
        raise ValueError(f'{caller}: opt_state holds no residual, so nothing in it differs between workers.')
    return opt_state


def _is_hidden(x: Any) -> bool:
    """Whether an array has a copy on each device, which may differ though its type says that they don't."""
    return isinstance(x, jax.Array) and x.sharding.is_fully_replicated and len(x.sharding.device_set) > 1


def _copies(x: jax.Array) -> np.ndarray:
    shards = sorted(x.addressable_shards, key=lambda shard: shard.device.id)
    return np.stack([np.asarray(shard.data) for shard in shards])
