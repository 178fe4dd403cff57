"""What processes tell each other before they exchange arrays, and the proof that each knows the secret.

Everything here travels through the coordination service's key-value store, so a process that runs something
else, or that nobody invited, is given no state. The connections of the collectives themselves prove nothing:
who reaches them can change what they carry. So checksums of what all should have alike are compared here.
"""

import hashlib
import hmac
import json
import os
import secrets
from typing import NamedTuple

import jax
import numpy as np
import optax

from def_jax.elastic.group import Group
from def_jax.elastic.service import ask, differing, retract, tell, versions
from def_jax.ground.types import PyTree

__all__ = ['SECRET', 'Answers', 'Call', 'RollCall', 'identity_of', 'replica_sums']

SECRET = 'DEF_JAX_SECRET'  # the environment variable

Identity = dict[str, str]  # what must be equal, and its digest


class Call(NamedTuple):
    """What a process says of itself."""

    trained: bool  # whether it has made a step with the others
    step: int
    trains: bool  # whether it is about to make one
    sums: list[list[str]]  # SHA-256 of the replicated values, by its workers and their devices
    identity: Identity
    gives_up: bool = False  # there were too few for too long


def identity_of(
    text: str,
    optimizer: optax.GradientTransformation,
    state: tuple[PyTree, PyTree | None],
    owns: PyTree,
    layout: str,
) -> Identity:
    """Digests of all that must be the same in every process.

    Args:
        text: the user's, such as the configuration.
        optimizer: makes the state, if there is none.
        state: parameters and, stacked over workers, the optimizer's state.
        owns: like the state, which leaves are per-worker.
        layout: how many workers of how many devices a process has.
    """

    def of_one(params, opt_state):
        if opt_state is None:
            return params, optimizer.init(params)
        return params, jax.tree.map(lambda x, own: x[0] if own else x, opt_state, owns[1])

    def described(path, x, own):
        return f'{jax.tree_util.keystr(path)} {x.shape} {x.dtype} {own}'

    abstract = jax.eval_shape(of_one, *state)
    leaves = jax.tree.leaves(jax.tree_util.tree_map_with_path(described, abstract, owns))
    parts = {
        'configuration, seed or data': text,
        'structure, shape or dtype of the parameters or the optimizer state': '\n'.join(leaves),
        'number of workers or shards': layout,
    }
    return {name: hashlib.sha256(part.encode()).hexdigest() for name, part in parts.items()}


def replica_sums(group: Group, state: PyTree, owns: PyTree) -> list[list[str]]:
    """Checksums of the replicated values on each device of this process, a row a worker.

    Of SHA-256: whoever changes what the processes exchange could choose a change that a CRC does not see.
    """
    sums = {device: hashlib.sha256() for device in group.local}
    for x, own in zip(jax.tree.leaves(state), jax.tree.leaves(owns), strict=True):
        for shard in () if own else x.addressable_shards:
            sums[shard.device].update(np.asarray(shard.data).tobytes())
    found = [digest.hexdigest() for digest in sums.values()]
    return np.array(found).reshape(len(group.rows), -1).tolist()


class Answers(NamedTuple):
    """What all live processes know of each other; `refused` says what keeps a process from taking part."""

    calls: dict[int, Call]
    refused: dict[int, str]

    @property
    def leader(self) -> int:
        """Whose state others take over: it has trained, made the most steps, and is the first of those."""
        return max(self.calls, key=lambda process: (*_rank(self.calls[process]), -process))

    @property
    def valid(self) -> list[int]:
        """Those who have what the leader has."""
        rank = _rank(self.calls[self.leader])
        return [process for process, call in self.calls.items() if _rank(call) == rank]


def _rank(call: Call) -> tuple[bool, int]:
    return call.trained, call.step


class RollCall:
    """Exchanges calls within meetings.

    Args:
        secret: what all processes must know; None for the variable DEF_JAX_SECRET of the environment, or
            nothing where that is not set.
    """

    def __init__(self, secret: str | None):
        self._secret = (os.environ.get(SECRET, '') if secret is None else secret).encode()
        self._place, self._count, self._told = '', 0, list[str]()

    def __call__(self, group: Group, call: Call) -> Answers:
        """All of the group ask within the same meeting, equally often.

        Who does not know the secret is not believed. A proof holds for one process and one exchange: it
        covers everybody's call, with a number that each has drawn. The call of a process of another version
        is not read, as it may have another form.
        """
        self._count = self._count + 1 if self._place == group.name else 0
        self._place, me = group.name, jax.process_index()
        for key in self._told:  # of the exchange before, which all have ended
            retract(key)
        calls, proofs = (f'{kind} of {group.name}/{self._count}' for kind in ('calls', 'proofs'))
        self._told = [f'{calls}/{me}', f'{proofs}/{me}']
        processes = [process for process, _ in group.incarnations]

        tell(self._told[0], json.dumps([secrets.token_hex(16), versions(), call]))
        said = {process: ask(f'{calls}/{process}') for process in processes}
        transcript = json.dumps([group.incarnations, sorted(said.items())])
        tell(self._told[1], self._proof(me, transcript).decode())
        believed = {
            process: json.loads(said[process])
            for process in processes
            if hmac.compare_digest(ask(f'{proofs}/{process}').encode(), self._proof(process, transcript))
        }
        others = {process: told[1] for process, told in believed.items() if told[1] != versions()}
        known = {process: Call(*told[2]) for process, told in believed.items() if process not in others}
        return Answers(known, _refused(known, others, set(processes) - believed.keys()))

    def _proof(self, process: int, transcript: str) -> bytes:
        text = f'{process} {transcript}'
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest().encode()


def _refused(calls: dict[int, Call], others: dict[int, str], strangers: set[int]) -> dict[int, str]:
    """Why processes cannot take part: in the eyes of one of them, that is itself if it cannot.

    Process 0 has the service, so it is no stranger, and of no other version, but to one who is.
    """
    me = jax.process_index()
    if strangers:
        return dict.fromkeys({me} if 0 in strangers else strangers, f'secret ({SECRET})')
    if 0 in others:
        return {me: 'version ({}, not {})'.format(*differing(versions(), others[0]))}
    if others:
        mine = versions()
        pairs = {process: differing(other, mine) for process, other in others.items()}
        return {process: 'version ({}, not {})'.format(*pair) for process, pair in pairs.items()}
    theirs = calls[Answers(calls, {}).leader].identity
    refused = {}
    for process, call in calls.items():
        if differs := [name for name in theirs if call.identity[name] != theirs[name]]:
            refused[process] = ' and another '.join(differs)
    return refused
