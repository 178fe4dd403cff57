"""What `jax.shard_map` knows with check_vma=True: the axes over which a value varies, by its type.

Its gradients with respect to values that do not vary over workers are summed over them, which is what data
parallelism without compression wants. A method that compresses needs per-worker gradients, before that
sum, so here the sum is an error.
"""

import functools
from typing import Any

import jax
from jax import lax

from def_jax.checks import named_leaves
from def_jax.types import AxisName, PyTree

__all__ = [
    'DETACHED',
    'OWN_PARAMS',
    'axis_names',
    'check_not_summed',
    'check_shared',
    'start_varying',
    'vary_if_tracked',
    'varying_axes',
]

# Where to take the gradient: with error feedback after the optimizer, and without.
DETACHED = 'def_jax.detached_params(params, opt_state)'
OWN_PARAMS = "jax.lax.pcast(params, axis_name, to='varying')"


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The axes over workers as a tuple: one for a name, none for None."""
    if axis_name is None:
        return ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """The axes over which leaves vary by their types: none unless shard_map checks them."""
    return frozenset[str]().union(*map(_axes_of, jax.tree.leaves(tree)))


def vary_if_tracked(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The tree, of a type that varies over `axis_name` where types say so."""
    tracked = _tracked(axis_name)
    return jax.tree.map(lambda x: lax.pcast(x, tuple(tracked - _axes_of(x)), to='varying'), tree)


def start_varying(params: PyTree, axes: frozenset[str]) -> PyTree:
    """A per-worker copy of the parameters, whose gradient is per-worker, too.

    Differentiating through the copy, back to the replicated parameters, raises ValueError.
    """
    return jax.tree.map(
        lambda x: _own_copy(tuple(sorted(missing)), x) if (missing := axes - _axes_of(x)) else x, params
    )


def check_not_summed(updates: PyTree, axis_name: AxisName, point: str) -> None:
    """Raises ValueError if the updates of all workers have been summed; `point` is where to differentiate."""
    tracked = _tracked(axis_name)
    for path, leaf in named_leaves(updates):
        if tracked - _axes_of(leaf):
            raise ValueError(
                f'updates{path} is the same on all workers: with check_vma=True, '
                f'jax.shard_map has summed its gradient over {axis_name!r}. {_remedy(point)}'
            )


def check_shared(value: jax.Array, name: str, axis_name: AxisName) -> None:
    """Raises ValueError if a value that must be replicated varies between workers, as types tell."""
    if _tracked(axis_name) & _axes_of(value):
        raise ValueError(
            f'{name} of opt_state differs between workers, by its type, but must be replicated. Stack only '
            'per-worker leaves: in_specs and out_specs of def_jax.state_specs(optimizer, params).'
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _own_copy(axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    return lax.pcast(x, axes, to='varying')


def _own_copy_forward(axes, x):
    return _own_copy(axes, x), None


def _own_copy_backward(axes, _, gradient):
    del gradient
    raise ValueError(
        'detached_params: the gradient is taken with respect to replicated parameters, and with '
        f'check_vma=True jax.shard_map would sum it over {axes}. ' + _remedy(DETACHED)
    )


_own_copy.defvjp(_own_copy_forward, _own_copy_backward)


def _remedy(point: str) -> str:
    return f'Take it at a per-worker point: jax.grad(loss_fn)(point, batch) with point = {point}.'


def _tracked(axis_name: AxisName) -> frozenset[str]:
    """The workers' axes, if types here tell what varies over them."""
    if axis_name is None:
        return frozenset()
    names = axis_names(axis_name)
    try:
        return frozenset(names) & varying_axes([lax.axis_index(name) for name in names])
    except NameError:  # not mapped here
        return frozenset()


def _axes_of(x: Any) -> frozenset[str]:
    kind = jax.typeof(x)
    kind = getattr(kind, 'manual_axis_type', None)  # before JAX 0.10 it is `vma` itself
    return kind.varying if kind is not None else getattr(jax.typeof(x), 'vma', frozenset())
