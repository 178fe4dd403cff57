"""One bit an element: signs packed into words, with one magnitude a tensor."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from def_jax.baselines.base import Exchanged, around, from_words, gathered_mean, to_words
from def_jax.ground.types import AxisName, PyTree

__all__ = ['exchange_signs', 'sign_ef']


def sign_ef(
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """Sends the sign of every element and the mean magnitude of every tensor, with error feedback.

    The scaled sign of worker k's pending tensor is mean|p_k|·sign(p_k). Signs of several workers do not add
    up in one bit, so they are all-gathered, 32 to a word, and every worker averages them itself: a message
    has about 1/32 of the dense bytes, and what a worker receives grows with the number of workers.

    It wraps the worker's optimizer, as `error_feedback` does: p_k contains the learning rate, as in the
    paper. Take gradients at the parameters.

    Args:
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        inner: the worker's optimizer, see `error_feedback`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not bound.

    References:
        Karimireddy, Rebjock, Stich and Jaggi, `Error Feedback Fixes SignSGD and other Gradient Compression
        Schemes <https://arxiv.org/abs/1901.09847>`_, 2019, Algorithm 1 (EF-signSGD), gathered from several
        workers as by Vogels et al. (2019).

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.sign_ef(None)
    >>> updates, state = link.update(jnp.array([1.0, -3.0]), link.init(jnp.zeros(2)))
    >>> updates.tolist(), state.residual.tolist()
    ([2.0, -2.0], [-1.0, -1.0])
    """

    def exchange(pending, carry):
        return Exchanged(*exchange_signs(pending, axis_name, lambda x: jnp.mean(jnp.abs(x))), carry)

    return around(inner, axis_name, exchange)


def exchange_signs(
    pending: PyTree, axis_name: AxisName, magnitude: Callable[[jax.Array], jax.Array]
) -> tuple[PyTree, PyTree]:
    """The mean over workers of magnitude(p_k)·sign(p_k), and worker k's own; the sign of 0 is 1.

    Args:
        pending: worker k's tensors p_k, float32.
        axis_name: the axis over workers.
        magnitude: of one tensor, float32 [].

    Returns:
        Two trees like `pending`. The first is the same on all workers.
    """
    leaves = jax.tree.leaves(pending)
    magnitudes = jnp.array([magnitude(leaf) if leaf.size else 0.0 for leaf in leaves], jnp.float32)
    whole, unravel = ravel_pytree(pending)
    message = jnp.concatenate([to_words(whole >= 0, 1), lax.bitcast_convert_type(magnitudes, jnp.uint32)])
    words = len(message) - len(leaves)

    def decoded(message):
        each = lax.bitcast_convert_type(message[words:], jnp.float32)
        scale, _ = ravel_pytree([jnp.full(leaf.shape, m) for m, leaf in zip(each, leaves, strict=True)])
        return jnp.where(from_words(message[:words], 1, whole.size) == 1, scale, -scale)

    mean = gathered_mean(message, decoded, axis_name)
    return unravel(mean), unravel(decoded(message))
