"""Whether a traced program keeps workers together: over which mesh axes its results vary.

What `jax.shard_map` tells with check_vma=True, of programs whose types do not say it: any optax
transformation may be part of an optimizer, and many would not pass the types' checks.
"""

from collections.abc import Sequence
from typing import Any

import jax

from def_jax.ground.arguments import named_leaves
from def_jax.ground.collectives import axis_names
from def_jax.ground.jaxpr import followed, inner_programs
from def_jax.ground.types import PyTree
from def_jax.state.ownership import each

Axes = frozenset[str]
_UNITES = ('psum', 'psum_invariant', 'pmax', 'pmin', 'all_gather', 'all_gather_invariant')
_DIVIDES = ('all_to_all', 'reduce_scatter', 'ppermute', 'axis_index')


def agreed(
    function: Any, own_in: PyTree, own_out: PyTree, names: Sequence[str], arguments: tuple, weight: int
) -> Any:
    """`function(*arguments)` of one worker, updates and state, after `check_agreement`.

    Raises ValueError as well if argument number `weight` is not None and no result depends on it.
    """
    program = jax.jit(function)
    traced = program.trace(*arguments)
    check_agreement(traced.jaxpr.jaxpr, arguments, traced.out_info, own_in, own_out, names)
    if arguments[weight] is not None:
        own = tuple(i == weight for i in range(len(arguments)))
        given = jax.tree.leaves(each(lambda mine, _: frozenset(['weight'] if mine else ()), own, arguments))
        if not any('weight' in axes for axes in axes_of_results(traced.jaxpr.jaxpr, given)):
            raise ValueError(
                'weight= reaches no link: a transformation around it takes no extra arguments. Make that an '
                'optax.GradientTransformationExtraArgs, whose update passes them on.'
            )
    return program(*arguments)


def check_agreement(
    program: Any, arguments: tuple, results: tuple, own_in: PyTree, own_out: PyTree, names: Sequence[str]
) -> None:
    """Raises ValueError if workers would get different updates, or state, of an update that has been traced.

    `own_in` and `own_out`, booleans, are prefixes of the arguments and of the results, which are updates and
    state: what is per-worker. `names` are the axes over workers.
    """
    given = jax.tree.leaves(each(lambda mine, _: frozenset(names if mine else ()), own_in, arguments))
    parts = zip(('updates', 'opt_state'), jax.tree.broadcast(own_out, results), strict=True)
    own = [(name + path, mine) for name, part in parts for path, mine in named_leaves(part)]
    for (place, mine), axes in zip(own, axes_of_results(program, given), strict=True):
        if axes & set(names) and not mine:
            raise ValueError(
                f"{place} would differ between workers: it depends on a worker's own gradient or state, and "
                'not through what workers exchange. Put the transformation that computes it before '
                'def_jax.error_feedback or into its inner=. optax.masked passes on the gradients of what it '
                'masks: use optax.multi_transform, with optax.set_to_zero() for what is frozen and a link '
                'such as def_jax.all_reduce_mean for what trains.'
            )


def axes_of_results(program: Any, given: Sequence[Axes]) -> list[Axes]:
    """The mesh axes over which the results of a traced program vary, from those of its arguments."""
    return followed(program, given, _of_equation, frozenset[str]())


def _of_equation(equation: Any, given: list[Axes]) -> list[Axes]:
    name, inner = equation.primitive.name, inner_programs(equation)
    everything = frozenset[str]().union(*given)
    if name in _UNITES or name in _DIVIDES:
        over = equation.params.get('axes') or equation.params.get('axis_name')
        over = {axis for axis in axis_names(over) if isinstance(axis, str)}
        united = everything - over if name in _UNITES else everything | over
        return [united] * len(equation.outvars)
    if name == 'cond':
        branches = [axes_of_results(branch, given[1:]) for branch in inner]
        return [given[0].union(*axes) for axes in zip(*branches, strict=True)]
    if name in ('scan', 'while'):  # what a loop is given may reach all of its results
        return [everything] * len(equation.outvars)
    if name == 'custom_vmap_call':  # of `options.overlap`, where the last argument waits for the others
        return given[-1:] * len(equation.outvars)
    if len(inner) == 1 and len(inner[0].invars) == len(given):
        return axes_of_results(inner[0], given)
    return [everything] * len(equation.outvars)
