"""Top-k sparsification: each worker sends the elements of largest magnitude, with their indices."""

import jax
import jax.numpy as jnp
import optax

from def_jax.baselines.base import Exchanged, around, gather_largest
from def_jax.ground.arguments import check_ratio
from def_jax.ground.collectives import num_workers
from def_jax.ground.types import AxisName

__all__ = ['top_k']

_CHUNK = 2**16  # elements, so that a place in it takes 16 bits


def top_k(
    ratio: float,
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """Sends the elements of largest magnitude of every tensor, and keeps the rest for later steps.

    It wraps the worker's optimizer, as `error_feedback` does, so that residuals hold updates: the learning
    rate of the step that made them is in them, and with momentum inside, it is accumulated before the choice,
    which Lin et al. (2018) call momentum correction. Take gradients at the parameters.

    The workers choose different elements, so no all-reduce can average them: they are all-gathered, and what
    a worker receives grows with the number of workers. An element is sent in 32 bits, its value in bfloat16
    and its place in 16 bits, so that k = n // ratio; what rounding takes stays in the residual. Tensors of
    more than 65,536 elements are cut into chunks of at most as many, equal in size, with a choice in each.

    Args:
        ratio: bytes of a tensor over the bytes that a worker sends of it, a number >= 1. At least one element
            of each chunk is sent.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        inner: the worker's optimizer, see `error_feedback`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory <https://arxiv.org/abs/1809.07599>`_, 2018,
        Algorithm 1; of every tensor, with momentum before the choice, as Lin et al., `Deep Gradient
        Compression <https://arxiv.org/abs/1712.01887>`_, 2018, but without their masking of momentum.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.top_k(4, None)
    >>> updates, state = link.update(jnp.array([1.0, -3.0, 2.0, 0.5]), link.init(jnp.zeros(4)))
    >>> updates.tolist(), state.residual.tolist()
    ([0.0, -3.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.5])
    """
    ratio = check_ratio(ratio)

    def exchange(pending, carry):
        totals, _, own = gather_largest([_chunks(x) for x in pending], ratio, axis_name)
        workers = num_workers(axis_name)

        def tensors(chunks):
            return [c.reshape(-1)[: x.size].reshape(x.shape) for c, x in zip(chunks, pending, strict=True)]

        return Exchanged([total / workers for total in tensors(totals)], tensors(own), carry)

    return around(inner, axis_name, exchange)


def _chunks(x: jax.Array) -> jax.Array:
    """A tensor as [chunks, elements], with zeros at the end."""
    chunks = max(1, -(-x.size // _CHUNK))
    return jnp.pad(x.reshape(-1), (0, -x.size % chunks)).reshape(chunks, -1)
