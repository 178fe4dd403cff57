"""Whether what a compiled step takes lies on the workers' devices as their training needs it."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import P
from jax.tree_util import keystr

from def_jax.ground.types import PyTree
from def_jax.state.ownership import link_states
from def_jax.state.specs import spec_axes
from def_jax.traffic.hlo import Collective


def of_jax(compiled: Any) -> jax.stages.Compiled:
    """The compiled step itself, which NNX and Equinox wrap."""
    inner = getattr(compiled, 'compiled', compiled)
    if not isinstance(inner, jax.stages.Compiled):
        raise TypeError(f'got a {type(compiled).__name__}: pass a compiled step, step.lower(...).compile().')
    return inner


def inputs(compiled: jax.stages.Compiled) -> PyTree:
    """Shapes and shardings of a step's arguments; None for those that it does not use."""
    return jax.tree.map(
        lambda x, to: to and jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        compiled.args_info,
        compiled.input_shardings,
    )


def bytes_held(tree: PyTree) -> int:
    """What a device holds of arrays."""

    def held(x: Any) -> tuple[int, ...]:
        sharding = getattr(x, 'sharding', None)
        return x.shape if sharding is None else sharding.shard_shape(x.shape)

    return sum(math.prod(held(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _taken(compiled: jax.stages.Compiled, params: PyTree) -> PyTree:
    """The first of a step's arguments that is like the parameters, or None."""
    shapes = jax.tree.flatten(jax.tree.map(jnp.shape, params))

    def are_params(node: Any) -> bool:
        return jax.tree.flatten(jax.tree.map(jnp.shape, node)) == shapes

    return next(filter(are_params, jax.tree.leaves(inputs(compiled), is_leaf=are_params)), None)


def check_not_stacked(params: PyTree, compiled: jax.stages.Compiled, names: Sequence[str]) -> None:
    """Raises ValueError if parameters are stacked as residuals are, or residuals are not."""
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    for state in link_states(inputs(compiled)):
        residual = jax.tree.leaves(getattr(state, 'residual', ()))
        if shapes and [x.shape for x in residual] == shapes:
            spec = getattr(residual[0].sharding, 'spec', None)
            if spec is not None and not spec_axes(spec) & set(names):
                raise ValueError(
                    f'the step takes residuals as if all workers had the same, with {spec}: one would be '
                    f'kept for all. Stack the state over {list(names)} by the specs of def_jax.state_specs.'
                )
            raise ValueError(
                f'params have the shapes of the residuals, which are stacked over workers, as {shapes[0]}. '
                'Pass one copy, e.g. jax.tree.map(lambda x: x[0], params) of what jax.pmap holds.'
            )


def check_joined(
    compiled: jax.stages.Compiled,
    found: Sequence[Collective],
    params: PyTree,
    workers: Sequence[int],
    names: Sequence[str],
    few: int,
) -> None:
    """Raises ValueError if a worker's devices have data of their own and one x, but join no gradients.

    Of the step's collectives, those among them pass less than the parameters have, and than `few` bytes.
    """

    def axes(tree: PyTree) -> set[str]:
        """Axes inside a worker over which something is divided."""
        specs = [getattr(x.sharding, 'spec', P()) for x in jax.tree.leaves(tree)]
        return {name for spec in specs for name in spec_axes(spec)} - set(names)

    taken = _taken(compiled, params)
    own = axes(inputs(compiled)) - axes(taken)
    if taken is None or not own:
        return
    joined = sum(
        c.times * c.bytes
        for c in found
        if any(len({workers[i] for i in group}) < len(group) for group in c.groups or [range(len(workers))])
    )
    if joined < min(bytes_held(params), few):
        raise ValueError(
            f'the devices of a worker have data of their own, divided over {sorted(own)}, but exchange '
            f'{joined:,} bytes: each takes a gradient of its own, and their copies of x drift apart. Pass '
            f'inside={min(own)!r} to the optimizer, or average gradients over it before.'
        )


def check_shards(compiled: Any, params: PyTree, names: Collection[str]) -> None:
    """Raises ValueError if a step takes parameters in smaller parts than their shardings, `spmd`'s, say."""
    found = jax.tree.leaves_with_path(_taken(of_jax(compiled), params))
    for (path, x), told in zip(found, jax.tree.leaves(params), strict=False):
        part, whole = (each.sharding.shard_shape(x.shape) for each in (x, told))
        if math.prod(part) < math.prod(whole):
            raise ValueError(
                f'the step takes params{keystr(path)} in parts of shape {part}, but param_specs of '
                f'def_jax.spmd says {told.sharding.spec}, parts of shape {whole}: every device would keep '
                'residuals of that size. '
                + (
                    'Move the parameters, which are divided among workers: jax.device_put(params, '
                    'dist.shardings).'
                    if spec_axes(getattr(x.sharding, 'spec', P())) & set(names)
                    else 'Pass param_specs, e.g. jax.tree.map(lambda x: x.sharding.spec, params).'
                )
            )
