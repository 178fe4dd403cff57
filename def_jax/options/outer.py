"""An outer optimizer: applies the workers' mean message with momentum, block by block."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax.compressors.base import Selection
from def_jax.ground.barriers import materialized
from def_jax.ground.jaxpr import equations
from def_jax.ground.types import PyTree

_VECTOR = jax.ShapeDtypeStruct((7,), jnp.float32)  # stands for a block
# Primitives whose results have the shape of their arguments, and whose elements influence each other.
_MIXING = {'sort', 'rev', 'fft', 'cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp', 'gather'}


def check_outer(outer: Any) -> None:
    """Raises ValueError unless it is None or an elementwise transformation that needs no parameters.

    Reads a traced update and computes nothing: arrays would start JAX before a program has set its devices.
    """
    if outer is None:
        return
    if not isinstance(outer, optax.GradientTransformation):
        raise ValueError(
            f'{outer=} must be an optax.GradientTransformation, such as optax.sgd(0.7, momentum=0.9, '
            'nesterov=True), or None for optax.sgd(1.0).'
        )
    try:
        program = jax.make_jaxpr(lambda x: outer.update(x, outer.init(jnp.zeros_like(x)), None)[0])(_VECTOR)
    except ValueError as error:  # from optax, for transformations that need the parameters
        raise ValueError(
            f'outer cannot be applied to a single block ({error}). It must not need the parameters: '
            'leave weight decay to `inner`.'
        ) from error
    if any(map(_mixes, equations(program.jaxpr))):
        raise ValueError(
            'outer must be elementwise, since it sees one block at a time: no global-norm clipping, no '
            'trust ratio, no orthogonalisation. optax.sgd, with momentum or without, is elementwise.'
        )


class Cut:
    """The state of `outer` cut down to a block, the only entries that are read and written.

    What is not elementwise in it, such as the count of Adam's bias correction, advances with every message,
    and a block's moments only with its own: choose an outer optimizer without bias correction.

    Source: DiLoCo (Douillard et al., 2023), with `every` and `optax.sgd(0.7, momentum=0.9, nesterov=True)`.
    """

    def __init__(self, outer: optax.GradientTransformation, selection: Selection, block: jax.Array):
        self._selection = selection
        # The state for a block, a single vector, is a tree prefix of the whole state: it has a leaf where the
        # whole state has a tree of parameters.
        shape = jax.eval_shape(outer.init, block)
        self._mapped = optax.tree_map_params(
            outer, lambda _: True, shape, transform_non_params=lambda _: False
        )

    def read(self, whole: PyTree) -> PyTree:
        def leaf(mapped, s):
            return self._selection.take(s) if mapped else s

        return jax.tree.map(leaf, self._mapped, whole)

    def write(self, whole: PyTree, own: PyTree) -> PyTree:
        def leaf(mapped, s, b):
            return self._selection.replace(s, b) if mapped else b

        return jax.tree.map(leaf, self._mapped, whole, own)


def applied(outer: optax.GradientTransformation, mean: jax.Array, own: PyTree) -> tuple[jax.Array, PyTree]:
    """What `outer` makes of the mean message as its negated gradient, and its state after it."""
    # In memory together, or XLA for GPUs would compute each of them again, from blocks of all tensors, in
    # every kernel that puts one of them back, and copy those tensors for that.
    return materialized(outer.update(-mean, own))


def _mixes(equation: Any) -> bool:
    """Whether an element of a result may depend on other elements: reductions, sorting, slicing, ..."""
    shapes = [value.aval.shape for value in equation.outvars]
    mixing = equation.primitive.name in _MIXING or any(shape != _VECTOR.shape for shape in shapes)
    return mixing and any(value.aval.shape for value in equation.invars)
