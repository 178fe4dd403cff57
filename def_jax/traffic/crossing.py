"""Whether a compiled step passes more between workers or nodes than the message, read from its HLO."""

import contextlib
import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import NamedSharding
from jax.tree_util import keystr

from def_jax.ground.arguments import check_integer
from def_jax.ground.collectives import axis_names
from def_jax.ground.types import AxisName, PyTree
from def_jax.state.ownership import check_surroundings, is_link, link_states, own_leaves
from def_jax.state.specs import spec_axes
from def_jax.traffic import Message, devices_along, devices_per_worker, traced, traffic_of
from def_jax.traffic.drift import check_agreement
from def_jax.traffic.hlo import Collective, collectives
from def_jax.traffic.inputs import bytes_held, check_joined, check_not_stacked, inputs, of_jax
from def_jax.traffic.nodes import crosses, leaving, nodes_of

_MOVES = 'collective-permute', 'all-to-all'
_GROUPED = (
    "convolutions that jax.vmap groups by worker (pass mapping='shard_map' to value_and_grad or at_points of "
    'def_jax.spmd), '
)
_LOOP = (
    'It has a loop: if each turn calls update, pass steps=; if each averages statistics or metrics, average '
    'them after the loop. '
)
_ANOTHER = 'another optimizer in this step; if so, pass all to check.'


class Limits(NamedTuple):
    """Arguments of `check` that say what a program may pass."""

    besides: int
    steps: int
    devices_per_node: int | None


def check(
    compiled: Any,
    optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation],
    params: PyTree,
    axis_name: AxisName = 'workers',
    *,
    besides: int = 256,
    steps: int = 1,
    devices_per_node: int | None = None,
) -> list[Collective]:
    """Raises if a compiled step passes more between workers than the optimizer's message, or x would drift.

    A gradient that is averaged before error feedback is sent whole, and then its block, without an error: by
    a `pmean` that is left over, an `axis_name=` or `pmap_axis_name=` of a helper, Flax's `DynamicScale`.
    It also finds what reaches x without an exchange, as the gradients of what `optax.masked` masks do, even
    where one device simulates the workers by `jax.vmap`. For `def_jax.spmd`, see its method.

    Args:
        compiled: `step.lower(...).compile()`, by `jax.pmap` or `jax.jit`.
        optimizer: whose `update` the step calls; or a sequence of several, as of a GAN's two networks.
        params: of the optimizer, arrays or `jax.ShapeDtypeStruct`: one copy, as `optimizer.init` takes it. Of
            several, a sequence as long.
        axis_name: see `error_feedback`.
        besides: bytes that the step may pass in addition, for means of losses and metrics.
        steps: how often the program calls `update`, if it loops over minibatches or steps.
        devices_per_node: how many neighbours, in the order of the program's devices, share a link. With it,
            what leaves a node must not be more than the message either, wherever a worker's devices lie.

    Warns:
        UserWarning: with `devices_per_node`, if a node holds several workers, each of which sends a message.

    Returns:
        The collectives between workers, or between nodes. `bytes` is the size of what a device contributes:
        its array to an all-reduce, its part to an all-gather, what others get of it to an all-to-all. With
        `devices_per_node`, `node_bytes` is what leaves the node that sends most; with 1, for workers of one
        device, what its link carries. All-reduces, all-gathers and reduce-scatters are counted as rings in
        the devices' order, so that an all-gather by K devices takes K - 1 times its `bytes`; all-to-alls as
        messages straight from device to device. Both are of one execution, of which there are `times`: one in
        a branch counts as if it ran at every step, one in a loop as often as the loop turns, `steps` times if
        that is unknown.

    Raises:
        TypeError: if the step is not compiled: one that is lowered has no collectives yet; or if the
            optimizer is no optax transformation, or needs other extra arguments than `value`.
        ValueError: if they pass more, with sizes by kind, the largest collectives and where to look; if
            an update would differ between workers, or a replicated part of the state; if `axis_name` is not
            the optimizer's, `params` are stacked over workers or not as many as optimizers, or
            `devices_per_node` does not divide the devices.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_sgd(0.1, 64, 'workers')
    >>> step = jax.pmap(optimizer.update, axis_name='workers', devices=jax.devices()[:1])
    >>> x = jnp.ones(64)
    >>> arguments = jax.tree.map(lambda x: x[None], (x, optimizer.init(x), x))
    >>> def_jax.check(step.lower(*arguments).compile(), optimizer, x)  # one worker sends nothing
    []
    """
    compiled = of_jax(compiled)
    if isinstance(optimizer, optax.MultiSteps):  # no transformation, though it has the state of one
        check_surroundings(jax.eval_shape(optimizer.init, params), 'check')
    alone = not isinstance(optimizer, Sequence) or isinstance(optimizer, optax.GradientTransformation)
    optimizers, trees = ([optimizer], [params]) if alone else (list(optimizer), list(params))
    if strange := [each for each in optimizers if not isinstance(each, optax.GradientTransformation)]:
        raise TypeError(
            f'optimizer={strange[0]!r} is no optax transformation, nor are these a sequence of them. Of '
            'def_jax.spmd, call its own check, with others=[...] for further ones.'
        )
    if len(optimizers) != len(trees):
        raise ValueError(
            f'optimizer has {len(optimizers)} elements, but params {len(trees)}: pass those of each.'
        )
    names = axis_names(axis_name)
    for tree in trees:
        check_not_stacked(tree, compiled, names)
    workers, sent = _exchanged(compiled, optimizers, trees, axis_name)
    limits, found = Limits(besides, steps, devices_per_node), _read(compiled, steps)
    for tree in trees:
        check_joined(compiled, found, tree, workers, names, steps * besides)
    return _crossing(compiled, found, workers, sent, limits, names, trees)


def _mesh_of(compiled: jax.stages.Compiled, axis_name: AxisName, devices: int) -> dict[str, int]:
    """The sizes of the axes of the program's mesh; all devices on the first axis if it has none."""
    names = axis_names(axis_name)
    for sharding in jax.tree.leaves((compiled.input_shardings, compiled.output_shardings)):
        mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
        if mesh is not None and mesh.size == devices and set(names) & set(mesh.axis_names):
            return dict(mesh.shape)
    return {name: devices for name in names[:1] or ('devices',)}


def _exchanged(
    compiled: jax.stages.Compiled,
    optimizers: Sequence[optax.GradientTransformation],
    trees: Sequence[PyTree],
    axis_name: AxisName,
) -> tuple[Sequence[int], Sequence[Message]]:
    """The worker of each device, and what it passes to others in an update, whose results must agree."""
    header = (compiled.as_text() or '').partition('\n')[0]
    devices = max(map(int, re.findall(r'(?:replica_count|num_partitions)=(\d+)', header)), default=1)
    names = axis_names(axis_name)
    mesh = _mesh_of(compiled, axis_name, devices)
    if devices == 1:  # whose workers, if there are any, are simulated
        mesh |= dict.fromkeys(names[:1], _simulated(compiled))
    apart = [name for name in names if mesh.get(name, 1) > 1]  # with several workers
    workers: Sequence[int] = [0]
    sent: list[Message] = []
    for optimizer, params in zip(optimizers, trees, strict=True):
        try:
            with naming_extra_arguments():
                program, arguments, results = traced(optimizer, params, axis_name, mesh)
        except (NameError, ValueError) as error:  # JAX's of an axis that is not bound, or ours
            raise ValueError(
                f"{axis_name=} must be the optimizer's, which fails over it: pass check the axis_name= that "
                "it has. Where jax.vmap simulates a worker's devices, pass their axis as well, e.g. "
                f"('nodes', 'gpus'): {error}"
            ) from error
        messages, together = traffic_of(program, axis_name, mesh).messages, devices_per_worker(program)
        if devices > 1 or messages:  # otherwise it is a single worker's
            own = own_leaves(optimizer, params)
            several = math.prod(mesh[name] for name in apart) > together
            # The devices of a single worker start from the same state.
            check_agreement(program, arguments, results, (True, several and own, False), (False, own), apart)
        if devices > 1:
            workers, sent = _workers(mesh, names, together), [*sent, *messages]
    return workers, sent


@contextlib.contextmanager
def naming_extra_arguments() -> Iterator[None]:
    """Says how to check an optimizer that can't be traced with a loss as its only extra argument."""
    try:
        yield
    except TypeError as error:
        raise TypeError(
            'the optimizer must take update(grads, state, params, value=loss). If it takes other extra '
            'arguments instead, check one that has them: optax.GradientTransformationExtraArgs('
            'optimizer.init, lambda grads, state, params, **_: optimizer.update(grads, state, params, '
            f'name=argument)), e.g. grad_fn=lambda x, _: x for optax.contrib.sam. It fails by: {error}'
        ) from error


def _simulated(compiled: jax.stages.Compiled) -> int:
    """How many workers `jax.vmap` simulates on a device, as the state of a step tells; 2 at least."""
    found = [getattr(state, 'worker', None) for state in link_states(inputs(compiled))]
    return max([2, *(x.shape[0] for x in found if x is not None and len(x.shape) == 2)])


def _workers(mesh: dict[str, int], names: Sequence[str], together: int) -> Sequence[int]:
    """The worker of each device of a mesh, where so many neighbours are one."""
    along = devices_along(mesh, names or tuple(mesh))
    workers = np.empty(along.size, int)
    workers[along] = np.arange(along.shape[1]) // together
    return workers.tolist()


def check_crossing(
    compiled: Any,
    workers: Sequence[int],
    messages: Iterable[Message],
    limits: Limits,
    names: Sequence[str],
    params: Sequence[PyTree],
) -> list[Collective]:
    """`check`, given the worker of each device, what it passes to others over `names`, and all parameters."""
    compiled = of_jax(compiled)
    return _crossing(compiled, _read(compiled, limits.steps), workers, messages, limits, names, params)


def _read(compiled: jax.stages.Compiled, steps: int) -> list[Collective]:
    check_integer('steps', steps, 1, 'calls of update in the program')
    return collectives(compiled.as_text() or '', steps)


def _crossing(
    compiled: jax.stages.Compiled,
    every: Sequence[Collective],
    workers: Sequence[int],
    messages: Iterable[Message],
    limits: Limits,
    names: Sequence[str],
    params: Sequence[PyTree],
) -> list[Collective]:
    nodes, steps = None, limits.steps
    if limits.devices_per_node is not None:
        nodes = nodes_of(len(workers), limits.devices_per_node)
    sent = [m for m in messages if crosses(m.groups, workers)]
    found = [
        c.passed(len(workers), to_others=True, nodes=nodes or ())
        for c in every
        if c.crosses(workers) or (nodes and c.crosses(nodes))
    ]
    gradient = min(map(bytes_held, params))
    across = [c for c in found if c.crosses(workers)]
    wanted = Counter[str]()
    for m in sent:
        size = len(m.groups[0]) if m.groups else len(set(workers))
        own = m.bytes // size if m.operation == 'all-to-all' else 0
        wanted[m.operation] += steps * (m.bytes - own)
    cure = functools.partial(_cure, compiled, set(names), gradient=gradient)
    _compare('device', 'workers', [(c, c.bytes) for c in across], wanted, limits, cure)
    if nodes:
        wanted = Counter[str]()
        for m in sent:
            wanted[m.operation] += steps * leaving(m.operation, m.bytes, m.groups, nodes)
        if sent and len(set(workers)) > len(set(nodes)):
            warnings.warn(
                f'{len(set(workers))} workers are on {len(set(nodes))} nodes: those of one share a link, and '
                'each sends a message. As one worker, by inside= or a mesh axis within, they send one.',
                stacklevel=3,
            )
        if split := [c for c in found if c not in across]:
            cure = functools.partial(_cure_of_order, split[0], len(workers) // len(set(workers)), limits)
        _compare('node', 'nodes', [(c, c.node_bytes) for c in found], wanted, limits, cure)
    return found


def _compare(
    who: str,
    others: str,
    found: Sequence[tuple[Collective, int]],
    wanted: Counter[str],
    limits: Limits,
    cure: Callable[[bool, int], str],
) -> None:
    """Raises ValueError if collectives pass more bytes than are wanted of each kind, and `besides`."""
    besides, steps = limits.besides, limits.steps
    kinds = Counter[str]()
    for c, size in found:
        kinds[c.operation] += c.times * (size - c.padding * size // max(c.bytes, 1))
    if (total := kinds.total()) <= wanted.total() + steps * besides:
        return
    moves = 2 * sum(kinds[kind] - wanted[kind] for kind in _MOVES) > total - wanted.total()
    more = [each for each in found if each[0].operation in _MOVES] if moves else found
    largest = sorted(more, key=lambda each: -each[0].times * each[1])[:3]
    raise ValueError(
        f'{"at every step" if steps == 1 else f"in {steps} steps"} a {who} passes {total:,} bytes to other '
        f'{others}, but the message has {wanted.total():,} (and {besides=} are allowed for means of '
        'losses): '
        + ', '.join(f'{size:,} by {kind}' for kind, size in kinds.items())
        + '. The largest: '
        + '; '.join(
            f'{c.operation} of {size:,} bytes'
            + (f', {c.times} times' if c.times > 1 else '')
            + (f' ({c.name[:120]})' if c.name else '')  # XLA joins the names of all that it combines
            for c, size in largest
        )
        + '. '
        + (_LOOP * any(c.times > steps for c, _ in found))
        + cure(moves, total - wanted.total())
    )


def _cure_of_order(collective: Collective, size: int, limits: Limits, moves: bool, more: int) -> str:
    del moves, more
    if (together := limits.devices_per_node) and together % size:
        return f'devices_per_node={together} cuts workers of {size} devices apart: pass a multiple of {size}.'
    return (
        f'Devices of one worker exchange data from node to node, as {collective.groups[0]} do: order the '
        'devices of the mesh, or of jax.pmap, node by node.'
    )


def _cure(compiled: jax.stages.Compiled, names: set[str], moves: bool, more: int, gradient: int) -> str:
    for verb, tree in (('returns', compiled.out_info), ('takes', inputs(compiled))):
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
            f'give it a sharding whose first axis is divided over {sorted(names)} before the others. Or it '
            f'is the message of {_ANOTHER}'
        )
    grouped = _GROUPED * bool(re.search('(?:feature|batch)_group_count=', compiled.as_text() or ''))
    where = grouped + (
        'a jax.lax.pmean or psum of gradients, DynamicScale(axis_name=...), the pmap_axis_name= of brax or '
        'an axis_name= of another helper, or output_params in the step, and take that out. With '
        'def_jax.spmd, pass what its value_and_grad or at_points return to its update as it is, and take the '
        f'norm of their mean, if you log it, in a program of its own. Or look for {_ANOTHER}'
    )
    if more >= gradient:
        return f'The {more:,} bytes more hold a whole gradient, which has {gradient:,}: look for {where}'
    return (
        f"The {more:,} bytes more are less than a gradient's {gradient:,}. If they are scalars, such as "
        "norms or averaged metrics, 4 bytes each, or BatchNorm's means and variances, 8 a channel, allow "
        f'them by besides={more}. Otherwise look for {where}'
    )
