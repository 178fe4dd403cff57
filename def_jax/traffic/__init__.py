"""What a step sends: as it is traced, here; as it is compiled, in `hlo` and `crossing`."""

from typing import Any, NamedTuple

import jax
import optax

from def_jax.ground.collectives import axis_names
from def_jax.ground.jaxpr import inner_programs
from def_jax.ground.types import AxisName, PyTree
from def_jax.traffic.hlo import Operation

_OPERATIONS: dict[str, Operation] = {
    'psum': 'all-reduce',
    'psum_invariant': 'all-reduce',
    'all_gather': 'all-gather',
    'all_gather_invariant': 'all-gather',
    'all_to_all': 'all-to-all',
    'reduce_scatter': 'reduce-scatter',
    'ppermute': 'collective-permute',
}


class Message(NamedTuple):
    """What one collective takes from a worker."""

    operation: Operation
    bytes: int


class Traffic(NamedTuple):
    """The messages of one update."""

    always: tuple[Message, ...]  # sent at every step
    branches: tuple[tuple[tuple[Message, ...], ...], ...]  # for each conditional, what each branch sends

    @property
    def messages(self) -> tuple[Message, ...]:
        """Those of every step, and those of all branches."""
        return self.always + tuple(m for branches in self.branches for sent in branches for m in sent)


def traffic(
    optimizer: optax.GradientTransformation, params: PyTree, axis_name: AxisName, num_workers: int = 2
) -> Traffic:
    """The messages of one update, traced for K workers along the first axis; nothing is computed.

    Only the length of integer messages depends on K. Messages of nested conditionals count as sent in the
    outer one's branch.

    >>> import jax.numpy as jnp, def_jax
    >>> traffic(def_jax.baselines.top_k(8, 'workers'), jnp.zeros(64), 'workers').always
    (Message(operation='all-gather', bytes=32),)
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update(params):  # with the loss, which some optimizers want
        return optimizer.update(params, optimizer.init(params), params, value=0.0)

    names = axis_names(axis_name)
    axes = [(name, 1 if place else num_workers) for place, name in enumerate(names)]
    return traffic_of(jax.make_jaxpr(update, axis_env=axes)(params).jaxpr, axis_name)


def traffic_of(program: Any, axis_name: AxisName) -> Traffic:
    """The messages over an axis, or a tuple of axes, of a program that has been traced."""
    axes = set(axis_names(axis_name))
    always: list[Message] = []
    branches: list[tuple[tuple[Message, ...], ...]] = []
    for equation in program.eqns:
        inner = [traffic_of(part, axis_name) for part in inner_programs(equation)]
        if (name := equation.primitive.name) == 'cond':
            sent = tuple(part.messages for part in inner)
            branches += [sent] if any(sent) else []
        elif name not in _OPERATIONS:
            always += [message for part in inner for message in part.always]
            branches += [branch for part in inner for branch in part.branches]
        elif (
            axes & set(axis_names(equation.params.get('axes') or equation.params['axis_name']))
            and equation.params.get('axis_size') != 1  # of a gather along one of several names
        ):
            size = sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
            always.append(Message(_OPERATIONS[name], size))
    return Traffic(tuple(always), tuple(branches))
