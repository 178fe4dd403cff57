"""EF21: each worker sends the compressed change of its gradient, and all keep the same running sum."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.baselines.base import plus
from def_jax.compressors import Compressor, check_compressor
from def_jax.ground.arguments import check_seed, is_number
from def_jax.ground.collectives import pmean
from def_jax.ground.random import shared_key
from def_jax.ground.types import AxisName, PyTree
from def_jax.state.link import float32_updates, float32_zeros, link

__all__ = ['EF21State', 'GradientAverageState', 'ef21', 'ef21_sgdm']


class EF21State(NamedTuple):
    """State of `ef21`. `local` differs between workers; the other fields do not."""

    step: jax.Array  # uint32 [], number of updates so far
    key: jax.Array  # uint32 [2], shared by all workers; selects the blocks
    local: PyTree  # like params, float32: g_k, worker k's estimate of its own gradient
    mean: PyTree  # like params, float32: g = mean_k g_k

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('local',)

    @property
    def needs_all(self) -> bool:
        """Whether a worker that dies would stay in what the others hold: its g_k in the mean."""
        return True


def ef21(
    compressor: Compressor, axis_name: AxisName, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
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
        An `optax.GradientTransformationExtraArgs` with state `EF21State`.

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
    check_seed(seed)

    def init(params):
        local, mean = float32_zeros(params), float32_zeros(params)  # two: a step may donate its state
        return EF21State(jnp.zeros((), jnp.uint32), shared_key(seed), local, mean)

    def step(updates, state, *_):
        grads = float32_updates(updates, state.local)

        def first():
            # Adding 0·g marks the mean as varying over workers, as shard_map sees it in the other branch.
            return grads, jax.tree.map(lambda mean, g: mean + 0 * g, pmean(grads, axis_name), state.mean)

        def later():
            change = jax.tree.map(jnp.subtract, grads, state.local)
            selection = compressor(state.key, state.step, change)
            message = selection.take(change)
            local = plus(selection, state.local, message)
            return local, plus(selection, state.mean, pmean(message, axis_name))

        local, mean = lax.cond(state.step == 0, first, later)
        return mean, EF21State(state.step + 1, state.key, local, mean)

    return link(init, step, axis_name, EF21State, by_shards=True)


class GradientAverageState(NamedTuple):
    """State of the average before `ef21_sgdm`'s difference."""

    step: jax.Array  # uint32 [], number of updates so far
    average: PyTree  # like params, float32: v_k

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('average',)


def ef21_sgdm(
    compressor: Compressor, axis_name: AxisName, *, averaging: float = 0.1, seed: int = 0
) -> optax.GradientTransformation:
    """EF21 of each worker's running average of its gradients: v_k <- (1 - η)·v_k + η·∇f_k(x; ξ).

    The noise of a single gradient does not shrink near a solution. EF21 compresses the change of the gradient
    and so accumulates a compressor's bias on that noise; it need not converge. Averaging before the
    difference removes the noise first. Use it as `ef21`, without another momentum.

    Args:
        compressor: selects the part of the change to send.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        averaging: η in (0, 1]; 1 is EF21. 1 - η acts as the momentum.
        seed: selects the blocks; must be the same on all workers.

    Returns:
        An `optax.GradientTransformation`, a chain of the average and `ef21`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Fatkhullin, Tyurin and Richtárik, `Momentum Provably Improves Error Feedback!
        <https://arxiv.org/abs/2305.15155>`_, 2023, Algorithm 1 (EF21-SGDM).

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.ef21_sgdm(def_jax.random_block(1), None, averaging=0.5)
    >>> state = link.init(jnp.zeros(2))
    >>> for gradient in (1.0, 3.0):
    ...     updates, state = link.update(jnp.full(2, gradient), state)
    >>> updates.tolist()
    [2.0, 2.0]
    """
    if not is_number(averaging) or not 0 < averaging <= 1:
        raise ValueError(f'{averaging=} must be a number in (0, 1]: η, the weight of the newest gradient.')

    def init(params):
        return GradientAverageState(jnp.zeros((), jnp.uint32), float32_zeros(params))

    def step(updates, state, *_):
        weight, grads = jnp.where(state.step == 0, 1.0, averaging), float32_updates(updates, state.average)
        average = jax.tree.map(lambda v, g: v + weight * (g - v), state.average, grads)
        return average, GradientAverageState(state.step + 1, average)

    return optax.chain(
        link(init, step, axis_name, GradientAverageState), ef21(compressor, axis_name, seed=seed)
    )
