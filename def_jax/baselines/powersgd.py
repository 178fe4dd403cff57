"""PowerSGD: the workers agree on a low-rank approximation of their mean gradient by one power iteration."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from def_jax.baselines.base import Exchanged, feedback, matrix_shape
from def_jax.ground.arguments import check_integer, check_ratio, check_seed
from def_jax.ground.collectives import pmean
from def_jax.ground.random import shared_key, typed_key
from def_jax.ground.types import AxisName

__all__ = ['factored', 'powersgd', 'rank_of_ratio']

_LEAST_RATIO = 2  # a matrix whose factors are not half as large is sent as it is, as in PyTorch's hook


def powersgd(
    ratio: float, axis_name: AxisName, *, rank: int = 0, seed: int = 0
) -> optax.GradientTransformation:
    """Approximates the workers' mean of every matrix by P·Qᵀ, with error feedback and a warm start.

    A tensor of two or more axes counts as the matrix of its last axis by all others. With M_k the pending
    matrix of worker k and Q the factor of the step before, P = orthonormal(mean_k M_k·Q) and
    Q ← mean_k M_kᵀ·P; all apply P·Qᵀ, and worker k keeps M_k - P·Qᵀ. Vectors, scalars and matrices whose
    factors are not at least twice smaller are averaged as they are. A step takes two all-reduces: of all P
    with the tensors that are not factored, and of all Q.

    Make it the first link of a chain, with the gradient taken at the parameters: momentum and learning rate
    follow and are the same on all workers.

    Args:
        ratio: elements of the model over those that a worker sends, a number >= 1. It selects the largest
            rank that sends no more, or rank 1 if none does. Ignored if `rank` is given.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        rank: r, the number of columns of P and Q; a smaller matrix uses its own rank. 0 derives it.
        seed: draws the first Q; must be the same on all workers.

    Returns:
        An `optax.GradientTransformation` with state `baselines.ResidualState`; its carry holds every Q.

    Raises:
        ValueError: if an argument is out of range; in `init`, if the rank is above that of every matrix; in
            `update`, if `axis_name` is not bound.

    References:
        Vogels, Karimireddy and Jaggi, `PowerSGD: Practical Low-Rank Gradient Compression for Distributed
        Optimization <https://arxiv.org/abs/1905.13727>`_, 2019, Algorithms 1 and 2; what is factored, and the
        residual against the mean, as in PyTorch's `powerSGD_hook`.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.powersgd(4, None, rank=1)
    >>> gradient = jnp.outer(jnp.arange(8.0), jnp.ones(6))  # has rank 1
    >>> updates, state = link.update(gradient, link.init(gradient))
    >>> bool(jnp.allclose(updates, gradient, atol=1e-5)), state.carry.shape
    (True, (6, 1))
    """
    ratio = check_ratio(ratio)
    check_seed(seed)
    check_integer('rank', rank, 0, 'the columns of a factor, 0 to derive it from ratio')

    def init_carry(params):
        leaves, treedef = jax.tree.flatten(params)
        shapes = [leaf.shape for leaf in leaves]
        _check_rank(rank, shapes)
        columns = rank or rank_of_ratio(ratio, shapes)
        key = typed_key(shared_key(seed))
        drawn = [
            jax.random.normal(
                jax.random.fold_in(key, i), (matrix_shape(shape)[1], _rank(columns, shape)), jnp.float32
            )
            if factored(columns, shape)
            else jnp.zeros((), jnp.float32)  # a place in the tree that checkpoints can store
            for i, shape in enumerate(shapes)
        ]
        return jax.tree.unflatten(treedef, drawn)

    def exchange(pending, carry):
        factors, treedef = jax.tree.flatten(carry)
        matrices = {
            i: pending[i].reshape(matrix_shape(pending[i].shape)) for i, q in enumerate(factors) if q.ndim
        }
        whole = {i: x for i, x in enumerate(pending) if i not in matrices}
        first, unravel = ravel_pytree(({i: matrix @ factors[i] for i, matrix in matrices.items()}, whole))
        products, means = unravel(pmean(first, axis_name))
        left = {i: jnp.linalg.qr(product)[0] for i, product in products.items()}
        second, unravel = ravel_pytree({i: matrix.T @ left[i] for i, matrix in matrices.items()})
        right = unravel(pmean(second, axis_name)) if matrices else {}
        approximated = {i: (left[i] @ right[i].T).reshape(pending[i].shape) for i in left}
        places = range(len(pending))
        update = [(approximated | means)[i] for i in places]
        sent = [(approximated | whole)[i] for i in places]
        factors = [right.get(i, q) for i, q in enumerate(factors)]
        return Exchanged(update, sent, jax.tree.unflatten(treedef, factors))

    return feedback(axis_name, exchange, init_carry=init_carry)


def factored(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of that shape is sent as two factors of that rank.

    >>> factored(2, (3, 3, 16, 32)), factored(2, (144,)), factored(64, (144, 32))
    (True, False, False)
    """
    if len(shape) < 2:
        return False
    rows, columns = matrix_shape(shape)
    return (rows + columns) * _rank(rank, shape) * _LEAST_RATIO < rows * columns


def rank_of_ratio(ratio: float, shapes: list[tuple[int, ...]]) -> int:
    """The largest rank with which tensors of those shapes send at most 1 / ratio of their elements, or 1."""

    def sent(rank):
        sizes = 0
        for shape in shapes:
            if factored(rank, shape):
                sizes += sum(matrix_shape(shape)) * _rank(rank, shape)
            else:
                sizes += math.prod(shape)
        return sizes

    room = sum(map(math.prod, shapes)) / ratio
    rank, most = 1, _largest_rank(shapes)
    while rank < most and sent(rank + 1) <= room:
        rank += 1
    return rank


def _rank(rank: int, shape: tuple[int, ...]) -> int:
    return min(rank, *matrix_shape(shape))


def _largest_rank(shapes: list[tuple[int, ...]]) -> int:
    return max((min(matrix_shape(shape)) for shape in shapes if len(shape) > 1), default=0)


def _check_rank(rank: int, shapes: list[tuple[int, ...]]) -> None:
    most = _largest_rank(shapes)
    if most and rank > most:
        raise ValueError(
            f'{rank=} is above the rank of every matrix in the parameters, which is at most {most}. Choose a '
            'smaller one, or all_reduce_mean to send everything.'
        )
