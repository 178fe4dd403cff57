"""What a contender sends and keeps, read from its update before it is compiled."""

from typing import Any

import jax

import def_jax
from benchmarks.league.contenders import WORKERS, Contender, Problem
from def_jax.mesh.ownership import own_leaves
from def_jax.traffic import traffic

__all__ = ['costs', 'kept']

# Fields of states, as the page's legend names them.
_LETTERS = {
    'trace': 'm',
    'mu': 'm',
    'nu': 'v',
    'residual': 'r',
    'carry': 'q',
    'average': 'a',
    'local': 'g',
    'mean': 'g',
}


def costs(problem: Problem, contender: Contender) -> dict[str, Any]:
    """Bytes a step, as passed to the collectives and as sent on a ring, and the optimizer's state."""
    params, method, steps = problem.params, def_jax.get_method(contender.method), problem.steps
    size = sum(x.size for x in jax.tree.leaves(params))
    optimizer = contender.optimizer(problem.inner(0.1, **contender.inner))
    found = traffic(optimizer, params, 'workers', WORKERS)
    every = contender.options.get('every', 1)
    first = method.dense_steps(contender.options)

    def total(measure):
        always, message, dense = found.sizes(every, measure)
        return always + message / every + (dense - message) * first / steps

    state = jax.eval_shape(optimizer.init, params)
    own = own_leaves(optimizer, params)
    kept = [(x.size / size, mine) for x, mine in zip(*map(jax.tree.leaves, (state, own)), strict=True)]
    return {
        'payload': total(lambda message: message.bytes),
        'wire': total(lambda message: message.wire_bytes(WORKERS)),
        'dense': 4 * size,
        'own_state': round(sum(share for share, mine in kept if mine), 2),
        'shared_state': round(sum(share for share, mine in kept if not mine), 2),
    }


def kept(problem: Problem, contender: Contender) -> tuple[str, str]:
    """What a checkpoint holds of the optimizer besides scalars: per-worker and replicated."""
    optimizer = contender.optimizer(problem.inner(0.1, **contender.inner))
    state = jax.eval_shape(optimizer.init, problem.params)
    own = jax.tree.leaves(own_leaves(optimizer, problem.params))
    found: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for (path, leaf), mine in zip(jax.tree_util.tree_leaves_with_path(state), own, strict=True):
        names = [getattr(part, 'name', getattr(part, 'key', None)) for part in path]
        field = next((_LETTERS[name] for name in names if name in _LETTERS), None)
        if field and leaf.ndim:
            found[mine]['o' if 'outer' in names else field] = None
    return ' '.join(found[True]), ' '.join(found[False])
