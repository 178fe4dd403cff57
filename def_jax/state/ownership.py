"""The states of links, and which leaves of an optimizer's state are per-worker: those that they name."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.tree_util import GetAttrKey

from def_jax.ground.jaxpr import factors
from def_jax.ground.types import PyTree
from def_jax.state.specs import specs_like, tree_of_specs

_ACCUMULATE = (
    'Accumulate gradients before the optimizer, or by accumulate= of def_jax.spmd; or take local steps, '
    'which is another method, by every=... of def_jax.error_feedback.'
)
_ACCUMULATING = {optax.MultiStepsState: 'optax.MultiSteps', optax.ApplyEvery: 'optax.apply_every'}
_AROUND: dict[type, str] = {
    optax.ApplyIfFiniteState: 'optax.apply_if_finite, which decides on each worker for itself: workers would '
    'wait for each other forever. Pass skip_nonfinite=True to def_jax.error_feedback instead: it skips the '
    'step on all of them.',
    optax.MultiStepsState: 'optax.MultiSteps, which communicates at every step and may skip some on one '
    f'worker alone. {_ACCUMULATE}',
    optax.contrib.MechanicState: 'optax.contrib.mechanize, which scales updates by what it learns from a '
    "worker's own gradients: copies of x would drift apart. Tune the learning rate without it.",
    optax.ConditionallyTransformState: 'optax.conditionally_transform, which at other steps passes on a '
    "worker's own gradients to x: its copies would drift apart. optax.conditionally_mask lets x stand there.",
    optax.contrib.SAMState: 'optax.contrib.sam(opaque_mode=False), which moves x to a point of each worker '
    'and back, but for rounding: copies of x would drift apart. Pass opaque_mode=True, and as grad_fn= '
    'lambda x, _: jax.grad(loss_fn)(def_jax.detached_params(x, opt_state), batch).',
}


# States of optimizers or of their parts; plain optax.sgd has none by which to know it.
_OPTIMIZERS = (
    *(optax.TraceState, optax.ScaleByAdamState, optax.ScaleByLionState, optax.ScaleByRmsState),
    *(optax.ScaleByRStdDevState, optax.ScaleByRssState, optax.ScaleByAdaDeltaState, optax.FactoredState),
    *(optax.ScaleByAmsgradState, optax.ScaleByBeliefState, optax.ScaleByNovogradState),
    optax.contrib.MuonState,
)

# Of optimizers that return to parameters that they keep, by arithmetic that `factors` cannot follow.
_COPYING = (
    *(optax.contrib.COCOBState, optax.contrib.MadgradState),
    *(optax.contrib.MechanicState, optax.contrib.SAMState, optax.contrib.ScheduleFreeState),
)

# They keep the gradient where their search ended.
_SEARCHING = optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState


class AccumulatedState(NamedTuple):
    """The mean of the gradients of a step's calls so far, their number, and the sum of their weights."""

    mean: PyTree  # like the parameters, float32
    calls: jax.Array  # int32 []
    weight: jax.Array  # float32 []


def _of_types(types: tuple[type, ...], tree: PyTree) -> Iterator[str]:
    """The names of those types of which a node of a tree is."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, types))
    return (type(node).__name__ for node in nodes if isinstance(node, types))


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


def no_residual(opt_state: PyTree, caller: str) -> ValueError:
    """The error for a state without a link's, or for the dicts that orbax restores without a target."""
    if optax.tree.get_all_with_path(opt_state, 'residual'):
        return ValueError(
            f'{caller}: opt_state holds no residual of error_feedback, only a field of that name: it was '
            'restored without a target. Restore it into the structure of optimizer.init(params): pass '
            'that state to the checkpointer as its target, or use jax.tree.unflatten.'
        )
    return ValueError(
        f'{caller}: opt_state holds no residual. Pass the state of an optimizer that contains '
        'def_jax.error_feedback(...), as its init or update returned it. Without error feedback, as with '
        'all_reduce_mean, workers have the same state: one copy is enough.'
    )


def own_leaves(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """`per_worker_leaves` of `optimizer.init(params)`; a ValueError without a link, or with a misplaced one.

    >>> import jax.numpy as jnp, def_jax
    >>> own_leaves(def_jax.ef21(def_jax.random_block(2), None), jnp.zeros(4))
    EF21State(step=False, key=False, local=True, mean=False)
    """
    state = abstract_state(optimizer, params)
    if not link_states(state):
        raise ValueError(
            'the optimizer holds no link that communicates, so its workers would drift apart. Wrap it in '
            'def_jax.error_feedback(..., inner=...), or put def_jax.all_reduce_mean(...) first in the chain.'
        )
    check_surroundings(state, 'def_jax')
    return per_worker_leaves(state)


def per_worker_leaves(opt_state: PyTree) -> PyTree:
    """Booleans like the state: True where links say that workers differ, and before a chain's first link."""

    def flags(node: Any) -> PyTree:
        if is_link(node):
            named = [(GetAttrKey(name),) for name in node.per_worker]
            return jax.tree.map_with_path(lambda path, _: path[:1] in named, node)
        if not is_chain(node):
            return False
        parts = chained(node)
        first = min(i for i, part in enumerate(parts) if link_states(part))
        own = *[True for _ in parts[:first]], *map(per_worker_leaves, parts[first:])
        return jax.tree.unflatten(jax.tree.structure(node), jax.tree.leaves(jax.tree.broadcast(own, parts)))

    def is_chain(node: Any) -> bool:
        return bool(link_states(chained(node)))

    return jax.tree.map(flags, opt_state, is_leaf=lambda node: is_link(node) or is_chain(node))


def chained(node: Any) -> tuple[Any, ...]:
    """The states of a chain's transformations, also of `optax.named_chain`; none for another node."""
    return tuple(node.values()) if isinstance(node, OrderedDict) else node if type(node) is tuple else ()


def state_specs(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    param_specs: PyTree = P(),  # noqa: B008
    axis_name: str | tuple[str, ...] = 'workers',
) -> PyTree:
    """PartitionSpecs of an optimizer's state, stacked over workers, for `jax.shard_map` or `jax.jit`.

    Args:
        optimizer: a transformation that communicates, such as `error_feedback`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        param_specs: how each worker shards the parameters over its devices, in any form that `spmd` takes.
        axis_name: the mesh axis over workers, or a tuple of axes.

    Returns:
        A pytree like `optimizer.init(params)`. The specs of per-worker leaves start with `axis_name`, since
        workers are stacked along a new leading axis; those of replicated leaves do not.

    Raises:
        ValueError: if the optimizer contains no link, a spec names the workers' axis, or `param_specs` has
            another structure than `params`.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> blocks = def_jax.random_block(2)
    >>> specs = state_specs(def_jax.error_feedback(blocks, 'workers', inner=optax.trace(0.9)), jnp.zeros(4))
    >>> tuple(specs.inner.trace), tuple(specs.residual), tuple(specs.step)
    (('workers',), ('workers',), ())
    """
    specs = tree_of_specs(param_specs, params, axis_name)
    like = specs_like(abstract_state(optimizer, params), params, specs)
    return each(lambda mine, spec: P(axis_name, *spec) if mine else spec, own_leaves(optimizer, params), like)


def abstract_state(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Shapes and dtypes of `optimizer.init(params)`, wherever the parameters lie."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    return jax.eval_shape(optimizer.init, shapes)


def each(function: Callable, own: PyTree, *trees: PyTree) -> PyTree:
    """`function(mine, *leaves)` over the leaves of trees, of which `own`, booleans, is a prefix.

    >>> each(lambda mine, x: x if mine else -x, {'a': True, 'b': False}, {'a': [1, 2], 'b': 3})
    {'a': [1, 2], 'b': -3}
    """
    # Not by a tree of booleans like the first: nodes of other libraries, such as keys, may refuse these.
    return jax.tree.map(
        lambda mine, *parts: jax.tree.map(functools.partial(function, mine), *parts), own, *trees
    )


def check_accumulation(state: PyTree, where: str) -> None:
    """Raises ValueError if a state is of an optimizer that accumulates gradients over steps."""
    for node in jax.tree.leaves(state, is_leaf=lambda node: type(node) in _ACCUMULATING):
        if type(node) in _ACCUMULATING:
            raise ValueError(
                f'{where} {_ACCUMULATING[type(node)]}, whose updates are zero but for every so many steps: a '
                f'message would be sent at each of them. {_ACCUMULATE}'
            )


def check_no_copy(inner: optax.GradientTransformation, params: PyTree) -> None:
    """Raises ValueError if a worker's optimizer returns something less the parameters.

    It then sets the parameters, to a copy in its state, as of float32 masters, or to a bound. Given the
    detached point, it would add the residual a second time, and training runs away.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), params)
    update, state, program = optax.with_extra_args_support(inner).update, (), None
    try:
        state = jax.eval_shape(inner.init, shapes)
        program = jax.make_jaxpr(lambda x, g, s: update(g, s, x, value=0.0)[0])(shapes, shapes, state)
    except NameError:  # of a mesh axis that is not known here
        return
    except TypeError:  # it needs other extra arguments
        pass
    if kind := next(_of_types(_SEARCHING, state), None):
        raise ValueError(
            f'inner= searches along a line ({kind}) on its own worker, and ends where x does not go: steps '
            'and gradients that it keeps are of no use there. Pass linesearch=None to optax.lbfgs.'
        )
    if any(_of_types(_COPYING, state)) or (program is not None and _returns_to_a_copy(program, shapes)):
        raise ValueError(
            'inner= keeps a copy of the parameters, such as float32 masters, or sets them to a bound, and '
            'returns what is missing to it: at the detached point that counts the residual twice, and may '
            'diverge. Leave the copy out: of narrow parameters, def_jax.output_params is a float32 master '
            'copy already. Put a bound, such as optax.keep_params_nonnegative, after the wrapper in a chain, '
            'and optax.contrib.schedule_free around the wrapper. Optimizers like optax.contrib.cocob, '
            'madgrad, mechanize and sam cannot do without: pass another.'
        )


def _returns_to_a_copy(program: Any, params: PyTree) -> bool:
    """Whether a traced update, of parameters first, has them with a minus."""
    count = len(jax.tree.leaves(params))
    given = [1.0] * count + [0.0] * (len(program.jaxpr.invars) - count)
    return any(-1 in found for found in factors(program.jaxpr, given))


def check_not_chained(opt_state: PyTree, like: PyTree) -> None:
    """Raises ValueError if a state like `like`, of `def_jax.spmd`, is a part of a chain's."""
    if jax.tree.structure(like) in map(jax.tree.structure, chained(opt_state)):
        raise ValueError(
            'def_jax.spmd stands in an optax.chain: it takes gradients stacked over workers, so what '
            'precedes it sees those of all workers at once, and a global norm is too large. Put the chain '
            'into it: def_jax.spmd(optax.chain(optax.clip_by_global_norm(1.0), ..., link), mesh).'
        )


def check_surroundings(opt_state: PyTree, caller: str, *, in_spmd: bool = False) -> None:
    """Raises ValueError if what surrounds a link, or `in_spmd` precedes it, can't work, as states tell."""

    def is_around(node):
        kept = getattr(node, 'cache', node)  # of SAM: x, or None with opaque_mode, which does not move it
        return type(node) in _AROUND and kept is not None

    for node in jax.tree.leaves(opt_state, is_leaf=is_around):
        if is_around(node) and link_states(node):
            raise ValueError(f'{caller}: the optimizer that communicates is inside {_AROUND[type(node)]}')

    for chain in _chains_around(opt_state):
        place = next(i for i, part in enumerate(chain) if _feedback(part))
        links, before, after = _feedback(chain[place]), chain[:place], chain[place + 1 :]
        if links[0] is not chain[place]:  # within masked, and what is masked beside it may have other tensors
            before, after = (
                tuple(x for x in parts if type(x) is not optax.MaskedState) for parts in (before, after)
            )
        for where, part in (('before', before), ('after', after)):
            check_accumulation(part, f'{caller}: the chain has, {where} def_jax.error_feedback,')
        for link in links:
            _check_between(link, before, after, caller, in_spmd)


def _feedback(node: Any) -> list[Any]:
    """The states of links with error feedback in a part of a chain."""
    return [state for state in link_states(node) if hasattr(state, 'inner')]


def _chains_around(opt_state: PyTree) -> Iterator[tuple[Any, ...]]:
    """The states of each chain's transformations, of chains that links with error feedback are in."""

    def is_chain(node):
        return any(map(_feedback, chained(node)))

    for chain in map(chained, filter(is_chain, jax.tree.leaves(opt_state, is_leaf=is_chain))):
        yield chain
        for part in chain:
            yield from _chains_around(part)


def _check_between(
    link: Any, before: Sequence[Any], after: Sequence[Any], caller: str, in_spmd: bool
) -> None:
    """Raises ValueError if a link can't stand between these in a chain."""
    bare = isinstance(link.inner, optax.EmptyState)  # around no optimizer
    if bare and not all(map(link_states, after)):
        raise ValueError(
            f'{caller}: something stands after def_jax.error_feedback in the chain, which has no inner=: '
            'an optimizer there is given updates in place of gradients. Pass it as inner= instead.'
        )
    if not bare and (kind := next(_of_types(_OPTIMIZERS, before), None)):
        raise ValueError(
            f'{caller}: an optimizer, or a part of one ({kind}), precedes another such as def_sgd in the '
            'chain. Two whole optimizers both negate, and x would climb. Pass all of it to '
            'def_jax.error_feedback as inner=.'
        )
    if not bare and any(_of_types((optax.ScaleByScheduleState,), after)):
        raise ValueError(
            f'{caller}: a schedule (optax.scale_by_schedule or scale_by_learning_rate) follows the link in '
            'the chain, and would scale what waits in the residual anew at every step. Give it to the preset '
            'as learning_rate, or put it into inner=.'
        )
    # A mean of gradients is taken at the detached point, and begins anew after a step that is skipped.
    held = [part for part in before if not (is_link(part) or isinstance(part, AccumulatedState))]
    leaves = jax.tree.leaves(held)
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    skips = not isinstance(link.skipped, tuple)  # and what precedes keeps a NaN for good
    alone = link.worker.shape[:-1]  # of one number, or of one for every worker
    moments = floats if bare else [leaf for leaf in floats if leaf.shape != alone]
    if moments and (skips or (bare and in_spmd)):
        why = 'skip_nonfinite does not hold it' if skips else 'it sees x, not the detached point'
        raise ValueError(
            f'{caller}: a transformation with a state of its own precedes the link in the chain, where '
            f'{why}. Pass it as inner=, e.g. error_feedback(..., inner=optax.sgd(0.1, momentum=0.9)).'
        )
