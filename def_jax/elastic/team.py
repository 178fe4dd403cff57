"""The workers of all live processes as one."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

from def_jax.elastic import transfer
from def_jax.elastic.group import Group, Incarnations, changes, divided, everywhere, grouped, name_of, names
from def_jax.elastic.roll_call import Answers, Call, RollCall, identity_of, replica_sums
from def_jax.elastic.service import (
    DiedError,
    DifferError,
    FailedError,
    GivenUpError,
    RefusedError,
    TooFewError,
    end,
    failed,
    has_ended,
    meeting,
)
from def_jax.error_feedback import ErrorFeedbackState
from def_jax.ground.arguments import check_integer, named_leaves
from def_jax.ground.random import is_typed
from def_jax.ground.types import PyTree
from def_jax.sharding import Spmd, spmd
from def_jax.state.ownership import abstract_state, link_states, own_leaves, state_specs
from def_jax.state.regrouping import released
from def_jax.state.specs import tree_of_specs

__all__ = ['Team']

_MOST_RETRIES = 10  # of a step that failed though nobody has died
_PAUSE = 0.2  # seconds between two looks at who lives


class _Joined(NamedTuple):
    """Who computes, and from what."""

    group: Group
    step: int
    state: Any  # parameters and optimizer state, arrays on the group's mesh
    receive: Any = ()  # of this process's workers: whether each has a state, and whether it leads


class Team:
    """The workers of all processes, and the state of this process's own.

    Every process makes a team from the same arguments and calls its methods in the same order. So does a
    newcomer, whose state and step are replaced by the others'.

    Args:
        optimizer: a chain with a link, as for `def_jax.spmd`.
        params: the initial parameters, or a checkpoint's: a pytree of NumPy arrays, the same everywhere.
        opt_state: a checkpoint's state, stacked over workers, as `fetch` returned it; None for a new one. If
            the number of workers differs, every worker gets the mean of the per-worker leaves.
        step: how many steps `params` and `opt_state` have had.
        workers: how many workers each process has.
        shards: how many devices each worker is; `param_specs` may name the axis 'shard'.
        param_specs: as for `def_jax.spmd`.
        axis_name: the mesh axis over workers.
        min_workers: with fewer, all wait, for `patience` seconds; then `TooFewError` is raised.
        identity: text that all processes must have in common, such as the configuration and the data's
            checksum. Versions, shapes and dtypes are compared without it.
        secret: what a process must know to be given the state; None for the environment variable
            DEF_JAX_SECRET. It does not cover the arrays on their way, which who reaches the connections can
            read and change. With it, what all should have alike is compared when others come or die, and in
            `fetch`; a change that reached all alike is not noticed.
        note: called with a line about each death and each return.

    Raises:
        ValueError: if a number is out of range, or the optimizer needs all workers, as EF21.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        params: PyTree,
        opt_state: PyTree | None = None,
        *,
        step: int = 0,
        workers: int = 1,
        shards: int = 1,
        param_specs: PyTree = P(),  # noqa: B008
        axis_name: str = 'workers',
        min_workers: int = 1,
        patience: float = 600.0,
        identity: str = '',
        secret: str | None = None,
        note: Callable[[str], None] = print,
    ):
        for name, value in dict(workers=workers, shards=shards, min_workers=min_workers).items():
            check_integer(name, value, 1, 'of a team')
        state = abstract_state(optimizer, params)
        if any(getattr(link, 'needs_all', False) for link in link_states(state)):
            raise ValueError('EF21 cannot lose a worker: its share would stay in the mean for good.')
        if typed := [path for path, x in named_leaves(state) if is_typed(x)]:
            raise ValueError(
                f'opt_state{typed[0]} is a typed PRNG key, as of optax.add_noise, which elastic processes '
                'cannot exchange. Keep its jax.random.key_data in the state, and wrap it where it is used.'
            )
        self.step = step
        self.changes: list[tuple[int, int]] = []  # (step, workers from there on)
        self._optimizer, self._axis, self._shards = optimizer, axis_name, shards
        self._specs = tree_of_specs(param_specs, params, axis_name)
        self._workers, self.min_workers, self._patience, self._note = workers, min_workers, patience, note
        self._own = own_leaves(optimizer, params)
        owns = jax.tree.map(lambda _: False, params), self._own
        state_places = state_specs(optimizer, params, self._specs, axis_name)
        self._places = transfer.Places(owns, (self._specs, state_places))
        self._refused, self._closes = '', False
        self._refuses: Group | None = None
        self._first = params, opt_state
        self._ask = RollCall(secret)
        layout = f'{workers} of {shards}, {axis_name!r}'
        self._identity = identity_of(identity, optimizer, self._first, owns, layout)
        self._state: tuple[PyTree, PyTree] | None = None  # after the last step that all have done
        self._admitted: Group | None = None  # who did it; the state is on this group's mesh
        self._group: Group | None = None  # who lives now
        self._programs: dict[Any, dict[Any, Callable]] = {}  # compiled, by group
        self._shares: list[tuple[tuple[int, int], float]] = []  # norms of what each worker has in y

    @property
    def num_workers(self) -> int:
        """How many workers took part in the last step."""
        return self._admitted.num_workers if self._admitted else 0

    @property
    def local_params(self) -> PyTree:
        """The parameters after the last step, or this process's shards; before it, those given, whole."""
        return jax.tree.map(Group.fetched, self._state[0] if self._state else self._first[0])

    @property
    def leads(self) -> bool:
        """Whether this process is the first of the live ones, which reports."""
        return self._group is not None and min(self._group.processes) == jax.process_index()

    def run(self, function: Callable, batch: Callable[[int, list[int], int], PyTree]) -> PyTree:
        """One step of training, repeated until all live processes have completed it.

        Args:
            function: `function(dist, params, opt_state, batch)` returns the new parameters and state, and
                results of any kind, which every process receives whole; `dist` is the `def_jax.spmd` of the
                live workers. It is compiled once for each set of them.
            batch: `batch(step, workers, num_workers)` returns NumPy arrays with the examples of these
                workers, all of one size at every step, one worker after the other along the leading axis.

        Raises:
            DifferError, FailedError, GivenUpError, RefusedError, TooFewError: see there.
        """
        before = self.num_workers
        self._state, (results, norms) = self._together(function, batch, trains=True)
        assert self._admitted is not None
        incarnations = dict(self._admitted.incarnations)
        own = [(process, incarnations[process]) for process in self._admitted.processes]
        self._shares = list(zip(own, norms / len(norms), strict=True))
        if self.num_workers != before:
            self.changes.append((self.step, self.num_workers))
        self.step += 1
        return results

    def look(self, function: Callable, batch: Callable | None = None) -> PyTree:
        """Like `run`, for a function that returns results alone, as an evaluation does; after a first `run`.

        Newcomers join in `run`: call this after it, so that all live processes call the same method.
        """
        if self._admitted is None:
            raise ValueError('look and fetch need a step: call run before, and look after it, everywhere.')
        return self._together(function, batch or (lambda *_: ()), trains=False)[1]

    def fetch(self) -> tuple[PyTree, PyTree]:
        """Parameters and stacked state as NumPy arrays in every process, for a checkpoint.

        Raises:
            DifferError: in all, if they have not the same bits on all devices; and as `run`.
        """
        return self.look(_all)

    def close(self) -> None:
        """In process 0, waits until all others have ended: the coordination service ends with it."""
        self._closes = True
        if jax.process_index() == 0:
            end()
        while jax.process_index() == 0 and len(self._group.incarnations if self._group else ()) > 1:
            with contextlib.suppress(DiedError, FailedError), self._meeting():
                pass
            self._group = self._known()

    # --- Who lives ---

    def _together(self, function: Callable, batch: Callable, *, trains: bool) -> tuple[Any, Any]:
        """The state after `function` and its results, once it has succeeded on all live processes."""
        waiting, retries = time.monotonic(), 0
        while True:
            if self._admitted is None and has_ended():
                raise GivenUpError('the other processes have made their last step; there is nothing to join.')
            group, joined, done, data = self._known(), None, None, None
            if group is not None and group is self._admitted:
                data = batch(self.step, group.rows, group.num_workers)  # may raise here, where nobody waits
            try:
                with self._meeting():
                    group = group or self._known()
                    assert group is not None
                    if too_few := group.num_workers < self.min_workers:
                        given_up = self._gives_up(group, time.monotonic() - waiting > self._patience)
                    elif joined := self._join(group, trains):
                        if data is None:
                            data = batch(joined.step, joined.group.rows, joined.group.num_workers)
                        done = self._computed(joined, function, data, trains)
            except DiedError:
                continue  # `_known` says who
            except FailedError as error:
                retries += 1
                self._say(f'repeated: {error}')
                if retries > _MOST_RETRIES:
                    raise
                assert group is not None
                self._group = self._grouped(group.incarnations)
                continue
            if self._refused:
                raise RefusedError(
                    f'process {jax.process_index()} has another {self._refused} than the others. Use theirs.'
                )
            if joined is not None and done is not None:
                self.step, self._state, self._admitted = joined.step, joined.state, joined.group
                return done
            if joined is not None:
                continue  # compiled
            if not too_few:  # a newcomer was refused, or waits for a step
                waiting = time.monotonic()
            elif given_up:
                few = f'{group.num_workers} workers after step {self.step}, fewer than {self.min_workers}'
                raise TooFewError(f'{few} for {self._patience:.0f} s.')
            time.sleep(_PAUSE)

    def _known(self) -> Group | None:
        """Those who meet next, as all were told at the end of the last meeting; None before the first."""
        found = multihost_utils.live_devices.devices
        if found is None:
            return None
        incarnations = tuple(sorted({device.process_index: n for device, n in found.items()}.items()))
        before = self._group
        if before is None or before.incarnations != incarnations:
            if jax.process_index() not in dict(incarnations):
                me = f'process {jax.process_index()}'
                raise GivenUpError(f'the other processes have given up {me} after step {self.step}.')
            self._group = self._grouped(incarnations)
            if before is not None and not self._closes:
                for line in changes(before, self._group, self._shares):
                    self._say(line)
        return self._group

    def _meeting(self) -> contextlib.AbstractContextManager[None]:
        return meeting(lambda: self._group.name if self._group else '')

    def _grouped(self, incarnations: Incarnations, failures: int | None = None) -> Group:
        def make_dist(mesh):
            return spmd(self._optimizer, mesh, self._specs, self._axis)

        if failures is None:
            # Counted by the service: who died waiting for a meeting's end and came back is taken to have been
            # there, so the others' next meeting fails for want of it before its own first one begins.
            failures = next(n for n in itertools.count() if not failed(name_of(incarnations, n)))
        return grouped(incarnations, failures, self._workers, self._shards, self._axis, make_dist)

    def _say(self, line: str) -> None:
        if self.leads:
            self._note(f'step {self.step}: {line}')

    # --- What they have ---

    def _join(self, group: Group, trains: bool) -> '_Joined | None':
        """The state on the mesh after newcomers got theirs; None for who has to wait for a step, or leave."""
        before = self._admitted
        if before is group:
            return _Joined(group, self.step, self._state)
        if group is self._refuses:
            return None
        state = self._first_state(group) if self._state is None else self._moved(group)
        sums = replica_sums(group, state, self._places.owns)
        found = self._ask(group, Call(before is not None, self.step, trains, sums, self._identity))
        if found.refused:
            self._refuses = group  # until the refused are dead
            self._refused = found.refused.get(jax.process_index(), '')
            reason = ', or another '.join(sorted(set(found.refused.values())))
            self._say(f'{names(found.refused)} refused: another {reason}')
            return None
        self._compare(found, found.valid)
        if before is not None and set(group.incarnations) <= set(before.incarnations):
            return _Joined(group, self.step, state)  # survivors among themselves
        leader, valid = found.leader, np.isin(group.processes, found.valid)
        step = found.calls[leader].step
        if not found.calls[leader].trains:  # newcomers wait for a step of training
            if before is None:
                return None
            survivors = tuple(one for one in group.incarnations if one in before.incarnations)
            same = survivors == before.incarnations and not group.failures
            group = before if same else self._grouped(survivors, group.failures)
            return _Joined(group, self.step, self._moved(group))
        if valid.all():
            return _Joined(group, step, state)
        flags = valid, np.arange(len(valid)) == group.processes.index(leader)
        return _Joined(group, step, state, [divided(group, flag[group.rows]) for flag in flags])

    def _gives_up(self, group: Group, waited: bool) -> bool:
        """Whether one of the few who are left has waited too long: all give up together, and save."""
        call = Call(bool(self._admitted), self.step, False, [], self._identity, waited)
        found = self._ask(group, call)
        self._refused = found.refused.get(jax.process_index(), '')
        return any(each.gives_up for each in found.calls.values())

    def _agree(self, group: Group, step: int, state: PyTree, owns: PyTree) -> None:
        """Raises DifferError in all unless the replicated leaves of a state have the same bits everywhere."""
        call = Call(True, step, False, replica_sums(group, state, owns), self._identity)
        self._compare(self._ask(group, call), group.processes)

    def _compare(self, found: Answers, processes: Iterable[int]) -> None:
        if found.refused or len({tuple(row) for one in processes for row in found.calls[one].sums}) > 1:
            raise DifferError(
                f'step {self.step}: parameters, or optimizer state that all should have alike, differ among '
                f'{names(processes)}. Somebody may have changed what they exchange, or a device failed. '
                'This state was not saved. End all, and begin at the last checkpoint.'
            )

    def _first_state(self, group: Group) -> tuple[PyTree, PyTree]:
        """The arguments of the team on the mesh."""
        params, opt_state = self._first
        if opt_state is None:
            opt_state = self._optimizer.init(jax.tree.map(jnp.asarray, params))
            opt_state = jax.tree.map(lambda x, own: x[None] if own else x, opt_state, self._own)
        return self._places.first((params, opt_state), group)

    def _moved(self, group: Group) -> tuple[PyTree, PyTree]:
        """This process's part of the state on another mesh."""
        assert self._admitted is not None
        return self._places.moved(self._state, self._admitted, group)

    # --- What they compute ---

    def _computed(self, joined: '_Joined', function: Callable, data: PyTree, trains: bool) -> Any:
        group = joined.group

        def train(params, opt_state, batch):
            params, opt_state, results = function(group.dist, params, opt_state, batch)
            norms = group.dist.map(_residual_norm)(params, opt_state)
            return (params, opt_state), everywhere(group, (results, norms))

        def look(params, opt_state, batch):
            return (), everywhere(group, function(group.dist, params, opt_state, batch))

        # Not donated: if the step fails, it is repeated from the same state.
        (params, opt_state), batch = joined.state, jax.tree.map(lambda x: divided(group, np.asarray(x)), data)
        programs = self._compiled(group)
        if function not in programs:
            # In a meeting of its own: others that are faster would wait for a collective, and give up.
            if joined.receive:
                give = jax.jit(self._places.giving(group)).lower(*joined.receive, joined.state)
                programs[transfer.give] = give.compile()
            step = train if trains else look
            programs[function] = jax.jit(step).lower(params, opt_state, batch).compile()
            return None
        if joined.receive:
            params, opt_state = given = programs[transfer.give](*joined.receive, joined.state)
            self._agree(group, joined.step, given, self._places.owns)
        after, results = jax.block_until_ready(programs[function](params, opt_state, batch))
        if function is _all:  # what a checkpoint will hold
            self._agree(group, joined.step, results, jax.tree.map(lambda _: False, results))
        return after, jax.tree.map(Group.fetched, results)

    def _compiled(self, group: Group) -> dict[Any, Callable]:
        """The programs of a group; those of groups that will not meet again are dropped."""
        kept = {one.name for one in (self._admitted, self._group, group) if one}
        self._programs = {one: made for one, made in self._programs.items() if one in kept}
        return self._programs.setdefault(group.name, {})


def _all(dist: Spmd, params: PyTree, opt_state: PyTree, batch: Any) -> tuple[PyTree, PyTree]:
    del dist, batch
    return params, released(opt_state)  # workers are numbered anew at the next update


def _residual_norm(params: PyTree, state: PyTree) -> jax.Array:
    del params
    residuals = [link.residual for link in link_states(state) if isinstance(link, ErrorFeedbackState)]
    return optax.tree.norm(residuals) if residuals else jnp.float32(0)
