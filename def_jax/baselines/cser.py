"""CSER: every step sends a part of the updates, every H steps a part of what has accumulated since."""

import jax
import jax.numpy as jnp
import optax

from def_jax.baselines.base import plus
from def_jax.compressors import Compressor, check_compressor, random_block
from def_jax.error_feedback import error_feedback, wrapped
from def_jax.ground.arguments import check_ratio, is_number
from def_jax.ground.collectives import pmean
from def_jax.ground.random import typed_key
from def_jax.ground.types import AxisName

__all__ = ['cser', 'cser_of_ratio']


def cser(
    compressor: Compressor,
    update_compressor: Compressor,
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
    every: int = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Communication-efficient SGD with error reset, in full.

    With C₂ the `update_compressor`, every worker applies the mean of C₂(u_j) and its own u_k - C₂(u_k), and
    adds the latter to its error. Every H = `every` steps the errors are partially reset: with C₁ the
    `compressor`, each worker replaces C₁(e_k) by its mean. Here x is the part of the models that all workers
    share, and the residual r_k is the error: x + r_k is worker k's own model, at which it takes gradients.
    So this is `error_feedback` with λ = 1 on what C₂ leaves.

    Wrap the worker's optimizer with it. `detached_params` and `output_params` work as for `error_feedback`.

    Args:
        compressor: C₁, selects the part of the errors that is reset.
        update_compressor: C₂, selects the part of the updates that is averaged at once.
        axis_name: the axis over workers, see `error_feedback`.
        inner: the worker's optimizer, see `error_feedback`.
        every: H, steps between resets.
        seed: selects the blocks; must be the same on all workers.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Xie et al., `CSER: Communication-efficient SGD with Error Reset <https://arxiv.org/abs/2007.13221>`_,
        2020, Algorithms 1 and 2.

    >>> import jax.numpy as jnp, def_jax
    >>> blocks = def_jax.random_block(2), def_jax.random_block(4)
    >>> link = def_jax.baselines.cser(*blocks, None, every=2)
    >>> state = link.init(jnp.zeros(8))
    >>> sent = []
    >>> for _ in range(2):
    ...     updates, state = link.update(jnp.ones(8), state)
    ...     sent.append(int((updates != 0).sum()))
    >>> sent[0]  # two by C₂ at every step, and at every second four by C₁
    2
    """
    check_compressor(update_compressor)
    resets = error_feedback(compressor, axis_name, seed=seed, detach=1.0, every=every)

    def step(updates, state, *_):
        # Another key than the link's own: C₁ and C₂ draw independently.
        key = jax.random.key_data(jax.random.fold_in(typed_key(state.key), 1))
        selection = update_compressor(key, state.step, updates)
        message = selection.take(updates)
        rest = selection.replace(updates, jnp.zeros_like(message))  # not 0 · message: NaN would stay
        reset, state = resets.update(rest, state)
        return plus(selection, reset, pmean(message, axis_name)), state

    return wrapped(inner, resets.init, step, axis_name)


def cser_of_ratio(
    ratio: float,
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
    every: int = 1,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """`cser` with random blocks: 1 / ratio of all elements a step, half of them by each compressor."""
    ratio = check_ratio(ratio)
    reset = max(1, 2 * ratio / max(1, every)) if is_number(every) else ratio  # error_feedback checks `every`
    return cser(random_block(reset), random_block(2 * ratio), axis_name, inner=inner, every=every, seed=seed)
