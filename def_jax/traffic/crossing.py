"""Whether a compiled step passes more between workers than the message, read from its HLO."""

from collections import Counter
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jax.tree_util import keystr

from def_jax.mesh.link import is_link
from def_jax.mesh.specs import spec_axes
from def_jax.mesh.worker_mesh import WorkerMesh
from def_jax.traffic.hlo import Collective, collectives
from def_jax.traffic.traced import traffic_of
from def_jax.types import AxisName, PyTree

__all__ = ['check', 'crossing', 'message_bytes']

_MOVES = 'collective-permute', 'all-to-all'


def crossing(compiled: jax.stages.Compiled, workers: WorkerMesh) -> list[Collective]:
    """What a device passes to the collectives between workers, in the order of the program."""
    of_devices = workers.worker_of_devices()
    found = [c.passed(len(of_devices)) for c in collectives(compiled.as_text() or '')]
    return [c for c in found if c.crosses(of_devices)]


def _of_jax(compiled: Any) -> jax.stages.Compiled:
    """The compiled step itself, which NNX and Equinox wrap."""
    inner = getattr(compiled, 'compiled', compiled)
    if not isinstance(inner, jax.stages.Compiled):
        raise TypeError(f'got a {type(compiled).__name__}: pass a compiled step, step.lower(...).compile().')
    return inner


def message_bytes(program: Any, axis_name: AxisName) -> int:
    """What a device passes to collectives over the workers in a traced update, in all its branches."""
    return sum(message.bytes for message in traffic_of(program.jaxpr, axis_name).messages)


def check(compiled: Any, workers: WorkerMesh, message: int, besides: int) -> list[Collective]:
    """`crossing`, if that is no more than `message` bytes and `besides`.

    Raises:
        TypeError: if the program is not compiled.
        ValueError: if it is more, with the largest collectives, the arguments that cause them and the cure.
    """
    compiled = _of_jax(compiled)
    found = crossing(compiled, workers)
    kinds: Counter[str] = Counter()
    for c in found:
        kinds[c.operation] += c.bytes - c.padding
    if (total := kinds.total()) <= message + besides:
        return found
    moves = sum(kinds[kind] for kind in _MOVES) > besides  # no method's message does
    shown = [c for c in found if c.operation in _MOVES or not moves]
    largest = sorted(shown, key=lambda c: -c.bytes)[:3]
    raise ValueError(
        f'at every step a device passes {total:,} bytes to other workers, but the message has {message:,} '
        f'(and besides={besides} are allowed for means of losses): '
        + ', '.join(f'{size:,} by {kind}' for kind, size in kinds.items())
        + '. The largest: '
        + '; '.join(
            f'{c.operation} of {c.bytes:,} bytes' + (f' ({_cut(c.name)})' if c.name else '') for c in largest
        )
        + '. '
        + _cure(compiled, workers, moves, total - message)
    )


def _cut(name: str, most: int = 120) -> str:
    """A name's beginning: XLA joins the names of all that it combines into one collective, without spaces.

    >>> _cut('jit(step)/psum:reduce_sum:reduce_sum', 14)
    'jit(step)/psum…'
    """
    return name if len(name) <= most else f'{name[:most]}…'


def _cure(compiled: jax.stages.Compiled, workers: WorkerMesh, moves: bool, more: int) -> str:
    for verb, tree in (('returns', compiled.out_info), ('takes', _inputs(compiled))):
        for path, state in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_link):
            for name in state.per_worker if is_link(state) else ():
                for below, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, name, ())):
                    if not spec_axes(getattr(leaf.sharding, 'spec', P())) & set(workers.names):
                        return (
                            f'The step {verb} {keystr(path)}.{name}{keystr(below)}, and more state, '
                            'whole on every device. Give jax.jit out_shardings, and jax.device_put, the '
                            'state_shardings(params) of this def_jax.spmd.'
                        )
    if moves:
        return (
            f'This moves arrays between workers, such as a batch that is not divided over {workers.names}: '
            f'give it a sharding whose first axis is divided over {workers.names} before the others.'
        )
    return (
        f'If the {more:,} bytes more are scalars, such as norms of gradients, or means of statistics, such '
        f"as BatchNorm's, allow them by besides={more}. Otherwise take gradients with value_and_grad or "
        'at_points of this def_jax.spmd, pass them to its update as they are, and average only scalars over '
        'workers.'
    )


def _inputs(compiled: jax.stages.Compiled) -> PyTree:
    return jax.tree.map(
        lambda x, to: to and jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),  # None if it is not used
        compiled.args_info,
        compiled.input_shardings,
    )
