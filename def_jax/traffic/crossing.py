"""Whether a compiled step passes more between workers than the message, read from its HLO."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.tree_util import keystr

from def_jax.ground.arguments import check_integer
from def_jax.ground.collectives import axis_names
from def_jax.ground.types import AxisName, PyTree
from def_jax.state.ownership import is_link, link_states
from def_jax.state.specs import spec_axes
from def_jax.traffic import Message, traffic
from def_jax.traffic.hlo import Collective, collectives

_MOVES = 'collective-permute', 'all-to-all'


def check(
    compiled: Any,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    axis_name: AxisName = 'workers',
    *,
    besides: int = 256,
    steps: int = 1,
) -> list[Collective]:
    """Raises if a compiled step passes more between workers than the optimizer's message.

    A gradient that is averaged before error feedback is sent whole, and then its block, without an error: by
    a `pmean` that is left over, an `axis_name=` or `pmap_axis_name=` of a helper, Flax's `DynamicScale`.
    This finds it where each device is a worker; for workers of several, see the method of `def_jax.spmd`.

    Args:
        compiled: `step.lower(...).compile()`, by `jax.pmap` or `jax.jit`.
        optimizer: whose `update` the step calls.
        params: of the optimizer, arrays or `jax.ShapeDtypeStruct`: one copy, as `optimizer.init` takes it.
        axis_name: see `error_feedback`.
        besides: bytes that the step may pass in addition, for means of losses and metrics.
        steps: how often the program calls `update`, if it loops over minibatches or steps.

    Returns:
        The collectives, with what a device passes to others. One in a branch counts as if it ran at every
        step, and one in a loop as often as the loop turns, if that is known.

    Raises:
        TypeError: if the step is not compiled: one that is lowered has no collectives yet.
        ValueError: if they pass more, with sizes by kind, the largest collectives and where to look; if
            `axis_name` is not the optimizer's, or `params` are stacked over workers.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_sgd(0.1, 64, 'workers')
    >>> step = jax.pmap(optimizer.update, axis_name='workers', devices=jax.devices()[:1])
    >>> x = jnp.ones(64)
    >>> arguments = jax.tree.map(lambda x: x[None], (x, optimizer.init(x), x))
    >>> def_jax.check(step.lower(*arguments).compile(), optimizer, x)  # one worker sends nothing
    []
    """
    compiled = _of_jax(compiled)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    for state in link_states(_inputs(compiled)):
        if shapes and [x.shape for x in jax.tree.leaves(getattr(state, 'residual', ()))] == shapes:
            raise ValueError(
                f'params have the shapes of the residuals, which are stacked over workers, as {shapes[0]}. '
                'Pass one copy, e.g. jax.tree.map(lambda x: x[0], params) of what jax.pmap holds.'
            )
    header = (compiled.as_text() or '').partition('\n')[0]
    devices = max(map(int, re.findall(r'(?:replica_count|num_partitions)=(\d+)', header)), default=1)
    try:
        sent = traffic(optimizer, params, axis_name, devices).messages if devices > 1 else ()
    except (NameError, ValueError) as error:  # JAX's of an axis that is not bound, or ours
        raise ValueError(f"{axis_name=} must be the optimizer's, which fails over it: {error}") from error
    return check_crossing(compiled, range(devices), sent, besides, axis_names(axis_name), params, steps)


def check_crossing(
    compiled: Any,
    workers: Sequence[int],
    messages: Iterable[Message],
    besides: int,
    names: Sequence[str],
    params: PyTree,
    steps: int,
) -> list[Collective]:
    """`check`, given the worker of each device and what it passes to others over the axes `names`."""
    check_integer('steps', steps, 1, 'calls of update in the program')
    compiled = _of_jax(compiled)
    found = [c for c in collectives(compiled.as_text() or '') if c.crosses(workers)]
    found = [c.passed(len(workers), to_others=True) for c in found]
    wanted, kinds = Counter[str](), Counter[str]()
    for message in messages:
        own = message.bytes // len(set(workers)) if message.operation == 'all-to-all' else 0
        wanted[message.operation] += steps * (message.bytes - own)
    for c in found:
        kinds[c.operation] += c.times * (c.bytes - c.padding)
    if (total := kinds.total()) <= wanted.total() + steps * besides:
        return found
    devices_per_worker = len(workers) // len(set(workers))
    gradient = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)) // devices_per_worker
    moves = 2 * sum(kinds[kind] - wanted[kind] for kind in _MOVES) > total - wanted.total()
    more = [c for c in found if c.operation in _MOVES] if moves else found
    largest = sorted(more, key=lambda c: -c.times * c.bytes)[:3]
    raise ValueError(
        f'{"at every step" if steps == 1 else f"in {steps} steps"} a device passes {total:,} bytes to other '
        f'workers, but the message has {wanted.total():,} (and besides={besides} are allowed for means of '
        'losses): '
        + ', '.join(f'{size:,} by {kind}' for kind, size in kinds.items())
        + '. The largest: '
        + '; '.join(
            f'{c.operation} of {c.bytes:,} bytes'
            + (f', {c.times} times' if c.times > 1 else '')
            + (f' ({c.name[:120]})' if c.name else '')  # XLA joins the names of all that it combines
            for c in largest
        )
        + '. '
        + ('If the program makes several steps, pass steps=. ' if any(c.times > steps for c in found) else '')
        + _cure(compiled, set(names), moves, total - wanted.total(), gradient)
    )


def check_shards(compiled: Any, params: PyTree, names: Collection[str]) -> None:
    """Raises ValueError if a step takes parameters in smaller parts than their shardings, `spmd`'s, say."""
    shapes = jax.tree.flatten(jax.tree.map(jnp.shape, params))

    def are_params(node: Any) -> bool:
        return jax.tree.flatten(jax.tree.map(jnp.shape, node)) == shapes

    taken = filter(are_params, jax.tree.leaves(_inputs(_of_jax(compiled)), is_leaf=are_params))
    found = jax.tree.leaves_with_path(next(taken, None))
    for (path, x), told in zip(found, jax.tree.leaves(params), strict=False):
        part, whole = (each.sharding.shard_shape(x.shape) for each in (x, told))
        if math.prod(part) < math.prod(whole):
            raise ValueError(
                f'the step takes params{keystr(path)} in parts of shape {part}, but param_specs of '
                f'def_jax.spmd says {told.sharding.spec}, parts of shape {whole}: every device would keep '
                'residuals and send a message of that size. '
                + (
                    'Move the parameters, which are divided among workers: jax.device_put(params, '
                    'dist.shardings).'
                    if spec_axes(getattr(x.sharding, 'spec', P())) & set(names)
                    else 'Pass param_specs, e.g. jax.tree.map(lambda x: x.sharding.spec, params).'
                )
            )


def _of_jax(compiled: Any) -> jax.stages.Compiled:
    """The compiled step itself, which NNX and Equinox wrap."""
    inner = getattr(compiled, 'compiled', compiled)
    if not isinstance(inner, jax.stages.Compiled):
        raise TypeError(f'got a {type(compiled).__name__}: pass a compiled step, step.lower(...).compile().')
    return inner


def _cure(compiled: jax.stages.Compiled, names: set[str], moves: bool, more: int, gradient: int) -> str:
    for verb, tree in (('returns', compiled.out_info), ('takes', _inputs(compiled))):
        for path, state in jax.tree.leaves_with_path(tree, is_leaf=is_link):
            for name in state.per_worker if is_link(state) else ():
                for below, leaf in jax.tree.leaves_with_path(getattr(state, name, ())):
                    spec = getattr(leaf.sharding, 'spec', None)
                    if spec is not None and not spec_axes(spec) & names:
                        return (
                            f'The step {verb} {keystr(path)}.{name}{keystr(below)}, and more state, '
                            'whole on every device. Give jax.jit out_shardings, and jax.device_put, the '
                            'state_shardings(params) of def_jax.spmd.'
                        )
    if moves:
        return (
            f'This moves arrays between workers, such as a batch that is not divided over {sorted(names)}: '
            f'give it a sharding whose first axis is divided over {sorted(names)} before the others.'
        )
    where = (
        'a jax.lax.pmean or psum of gradients, DynamicScale(axis_name=...), the pmap_axis_name= of brax or '
        'an axis_name= of another helper, or output_params in the step, and take that out. With '
        'def_jax.spmd, pass what its value_and_grad or at_points return to its update as it is.'
    )
    if more >= gradient:
        return f'The {more:,} bytes more hold a whole gradient, which has {gradient:,}: look for {where}'
    return (
        f'If the {more:,} bytes more are scalars, such as norms, or means of statistics, such as '
        f"BatchNorm's, allow them by besides={more}. Otherwise look for {where}"
    )


def _inputs(compiled: jax.stages.Compiled) -> PyTree:
    """Shapes and shardings of a step's arguments; None for those that it does not use."""
    return jax.tree.map(
        lambda x, to: to and jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        compiled.args_info,
        compiled.input_shardings,
    )
