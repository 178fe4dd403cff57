"""An update whose part before the links is taken at one point, and whose part after them at another.

Before a link, everything is per-worker: gradients and moments, and the detached point at which weight decay
is taken. What all workers apply must not depend on any of this but through a link. So what follows a link, or
lies around it, is given x. What depends on a worker's values even so, like a step size estimated from its
gradient, is refused: the workers' copies of x would drift apart.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.extend.core import jaxpr_as_fun

from def_jax.checks import check_extra_arguments, named_leaves
from def_jax.mesh.link import is_link, link_states
from def_jax.mesh.memory import in_memory
from def_jax.mesh.ownership import own_leaves, state_specs
from def_jax.mesh.shards import Shards, Tape
from def_jax.mesh.spmd.at_points import point
from def_jax.mesh.worker_mesh import WorkerMesh
from def_jax.traffic.traced import inner_programs
from def_jax.types import PyTree

__all__ = ['depends_on', 'run', 'update']

# Operations that pass their inputs to a program one by one.
_CALLS = (
    'jit',
    'pjit',
    'closed_call',
    'core_call',
    'custom_jvp_call',
    'custom_vjp_call',
    'remat',
    'checkpoint',
)


def run(
    workers: WorkerMesh,
    optimizer: optax.GradientTransformationExtraArgs,
    specs: PyTree,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    extra_args: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """`update` on all workers, over which `grads` and the per-worker leaves of `state` are stacked.

    Args:
        workers: how the mesh divides into workers.
        specs: of the parameters.
    """
    check_extra_arguments(extra_args, params, workers.num_workers)
    own = own_leaves(optimizer, params)
    shards = Shards(workers.axis_name, workers.inside, specs)
    arrays = {name: x for name, x in extra_args.items() if not callable(x)}
    others = {name: x for name, x in extra_args.items() if callable(x)}

    def worker(grads, state, params, arrays):
        updates, state = update(optimizer, in_memory(grads), state, params, shards, arrays | others)
        return updates, in_memory(state)

    mapped = workers.map(worker, (True, own, False, False), (False, own))
    placed = specs, state_specs(optimizer, params, specs, workers.axis_name)
    return workers.auto(mapped, placed)(grads, state, params, arrays)


def update(
    optimizer: optax.GradientTransformationExtraArgs,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    shards: Shards,
    extra_args: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """One update of one worker.

    Args:
        optimizer: a transformation that contains links.
        grads: the worker's own.
        state: the worker's own.
        params: x.
        shards: how a worker's devices share the parameters.
        extra_args: the same on all workers.

    Raises:
        ValueError: if a link gets no `shards`; if updates or replicated state would differ between workers,
            as they may if a link lies in a branch or a loop.
    """
    tape = Tape()
    extra_args = extra_args | {'shards': shards._replace(tape=tape)}
    updates, new_state = optimizer.update(grads, state, point(params, state), **extra_args)
    if len(link_states(tape.states)) < len(link_states(state)):
        raise ValueError(
            'a wrapper of the optimizer keeps the extra argument `shards` from the link, which would then '
            'send whole tensors. Put the wrapper around the transformations before the link. In place of '
            'optax.MultiSteps, pass accumulate=... to def_jax.spmd.'
        )
    last = state[-1] if type(state) is tuple and state else state
    from_links = {id(leaf) for leaf in jax.tree.leaves(tape.results)}
    if is_link(last) and all(id(leaf) in from_links for leaf in jax.tree.leaves(updates)):
        return updates, new_state  # nothing follows

    def follow(results, grads, state, params):
        tape.rewind(results)
        return optimizer.update(grads, state, params, **extra_args)

    arguments = tape.results, grads, state, params
    program, shapes = jax.make_jaxpr(follow, return_shape=True)(*arguments)
    followed = jaxpr_as_fun(program)(*jax.tree.leaves(arguments))
    updates, after = jax.tree.unflatten(jax.tree.structure(shapes), followed)
    differ = jax.tree.unflatten(jax.tree.structure(shapes), _per_worker(program.jaxpr, arguments))
    _check_agreement(differ, own_leaves(optimizer, params))
    new_state = jax.tree.map(lambda d, own, x: own if d else x, differ[1], new_state, after)
    return updates, new_state


def _per_worker(program: Any, arguments: tuple[PyTree, ...]) -> list[bool]:
    """Which outputs of `follow` depend on a worker's own values, other than through a link."""
    results, grads, state, params = arguments

    def flags(node):
        return jax.tree.map(lambda _: is_link(node), node)

    # State outside of links starts alike on all workers, and stays so unless an update shows otherwise.
    own = jax.tree.leaves(jax.tree.map(flags, state, is_leaf=is_link))
    inputs = [False] * len(jax.tree.leaves(results)) + [True] * len(jax.tree.leaves(grads))
    shared = [False] * len(jax.tree.leaves(params))
    while True:
        outputs = depends_on(program, [*inputs, *own, *shared])
        now = [a or b for a, b in zip(own, outputs[len(outputs) - len(own) :], strict=True)]
        if now == own:
            return outputs
        own = now


def depends_on(program: Any, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs of a traced program depend on some of its inputs.

    >>> import jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda x, y: (jnp.sin(x), jax.jit(jnp.add)(x, y)))(1.0, 2.0)
    >>> depends_on(program.jaxpr, [False, True])
    [False, True]
    """
    found = {var for var, flag in zip(program.invars, inputs, strict=True) if flag}

    def flags(atoms):
        return [not hasattr(atom, 'val') and atom in found for atom in atoms]  # literals have a value

    for equation in program.eqns:
        given, inner = flags(equation.invars), inner_programs(equation)
        outputs = [any(given)] * len(equation.outvars)
        if any(given) and equation.primitive.name in _CALLS and len(inner) == 1:
            outputs = depends_on(inner[0], given)
        found |= {var for var, flag in zip(equation.outvars, outputs, strict=True) if flag}
    return flags(program.outvars)


def _check_agreement(differ: tuple[PyTree, PyTree], own: PyTree) -> None:
    updates, state = differ
    replicated = jax.tree.map(lambda d, mine: d and not mine, state, own)
    wrong = [f'updates{path}' for path, d in named_leaves(updates) if d]
    wrong += [f'opt_state{path}' for path, d in named_leaves(replicated) if d]
    if wrong:
        raise ValueError(
            f"{wrong[0]} would differ between workers: it depends on a worker's own gradient or state, other "
            'than through a link, or on a link in a branch (`lax.cond`) or a loop. Put the transformation '
            'that computes it, or the wrapper, before the link in the chain, or average its gradient with '
            'def_jax.all_reduce_mean.'
        )
