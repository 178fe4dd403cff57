"""Top-k sparsification: each worker sends the elements of largest magnitude, with their indices."""

import optax

from def_jax.baselines.base import Exchanged, feedback, gather_largest
from def_jax.checks import check_ratio
from def_jax.mesh.collectives import num_workers
from def_jax.types import AxisName

__all__ = ['top_k']


def top_k(ratio: float, axis_name: AxisName) -> optax.GradientTransformation:
    """Sends the elements of largest magnitude of every tensor, and keeps the rest for later steps.

    The workers choose different elements, so no all-reduce can average them: values and indices are
    all-gathered, and what a worker receives grows with the number of workers. `ratio` counts the bytes of a
    worker's message; since an index takes as many as a value, k = n // (2·ratio) elements are sent.

    Make it the first link of a chain, with the gradient taken at the parameters: momentum and learning rate
    follow and are the same on all workers.

    Args:
        ratio: bytes of a tensor over the bytes that a worker sends of it, a number >= 1. At least one element
            is sent.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.

    Returns:
        An `optax.GradientTransformation` with state `baselines.ResidualState`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Stich, Cordonnier and Jaggi, `Sparsified SGD with Memory <https://arxiv.org/abs/1809.07599>`_, 2018,
        Algorithm 1; of every tensor, as Lin et al. (2018) do.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.top_k(2, None)
    >>> updates, state = link.update(jnp.array([1.0, -3.0, 2.0, 0.5]), link.init(jnp.zeros(4)))
    >>> updates.tolist(), state.residual.tolist()
    ([0.0, -3.0, 0.0, 0.0], [1.0, 0.0, 2.0, 0.5])
    """
    ratio = check_ratio(ratio)

    def exchange(pending, carry):
        totals, _, own = gather_largest([x.reshape(1, -1) for x in pending], ratio, axis_name)
        workers = num_workers(axis_name)
        update = [total.reshape(x.shape) / workers for total, x in zip(totals, pending, strict=True)]
        sent = [part.reshape(x.shape) for part, x in zip(own, pending, strict=True)]
        return Exchanged(update, sent, carry)

    return feedback(axis_name, exchange)
