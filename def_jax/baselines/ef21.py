"""EF21: each worker sends the compressed change of its gradient, and all keep the same running sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.checks import check_compressor, check_floating, check_seed, check_state, check_updates
from def_jax.collectives import AxisName, check_axis_name, pmean
from def_jax.compressors import Compressor, shared_key

PyTree = Any

__all__ = ['EF21State', 'ef21']


class EF21State(NamedTuple):
    """State of `ef21`. `local` differs between workers; the other fields do not."""

    step: jax.Array  # uint32 [], number of updates so far
    key: jax.Array  # uint32 [2], shared by all workers; selects the blocks
    local: PyTree  # like params, float32: g_k, worker k's estimate of its own gradient
    mean: PyTree  # like params, float32: g = mean_k g_k

    @property
    def per_worker(self) -> tuple[str, ...]:
        """The fields that differ between workers, see `ownership`."""
        return ('local',)


def ef21(compressor: Compressor, axis_name: AxisName, *, seed: int = 0) -> optax.GradientTransformation:
    """Replaces the gradient with EF21's estimate: g_k <- g_k + C(∇f_k(x) - g_k), g = mean_k g_k.

    Make it the first link of a chain, with the gradient taken at the parameters themselves; momentum and
    learning rate follow and are the same on all workers. g_k starts as the first gradient, which costs one
    dense all-reduce; later steps send only the compressor's message. With random blocks it does not converge
    on deep networks (Section 5); it is included for comparison.

    Args:
        compressor: selects the part of the change to send.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        seed: selects the blocks; must be the same on all workers.

    Returns:
        An `optax.GradientTransformation` with state `EF21State`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Richtárik, Sokolov and Fatkhullin, `EF21: A New, Simpler, Theoretically Better, and Practically
        Faster Error Feedback <https://arxiv.org/abs/2106.05203>`_, 2021, Algorithm 2.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> optimizer = optax.chain(def_jax.ef21(def_jax.random_block(2), None), optax.sgd(1.0))
    >>> state = optimizer.init(jnp.zeros(4))
    >>> updates, state = optimizer.update(jnp.ones(4), state)
    >>> updates.tolist()  # the first gradient is sent in full
    [-1.0, -1.0, -1.0, -1.0]
    """
    check_compressor(compressor)
    check_axis_name(axis_name)
    check_seed(seed)

    def init_fn(params) -> EF21State:
        check_floating(params, 'params')

        def zeros():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)

        return EF21State(jnp.zeros((), jnp.uint32), shared_key(seed), zeros(), zeros())

    def update_fn(updates, state, params=None):
        del params
        check_state(state, EF21State)
        check_updates(updates, state.local)
        check_floating(updates, 'updates')
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), updates)

        def first():
            # Adding 0·g marks the mean as varying over workers, as shard_map sees it in the other branch.
            return grads, jax.tree.map(lambda mean, g: mean + 0 * g, pmean(grads, axis_name), state.mean)

        def later():
            change = jax.tree.map(jnp.subtract, grads, state.local)
            selection = compressor(state.key, state.step, change)
            message = selection.take(change)
            local = selection.add(state.local, message)
            return local, selection.add(state.mean, pmean(message, axis_name))

        local, mean = lax.cond(state.step == 0, first, later)
        updates = jax.tree.map(lambda g, u: g.astype(u.dtype), mean, updates)
        return updates, EF21State(state.step + 1, state.key, local, mean)

    return optax.GradientTransformation(init_fn, update_fn)
