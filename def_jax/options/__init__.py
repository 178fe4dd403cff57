"""Arguments of `error_feedback` that Algorithm 1 does not have; they meet in line 9, `send`."""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.compressors import Compressor, Selection, check_compressor
from def_jax.ground.arguments import check_flag, check_integer, check_number
from def_jax.ground.collectives import num_workers, pmean, psum
from def_jax.ground.types import Arrive, PyTree
from def_jax.options import detach_estimate, outer, skipping
from def_jax.state.link import check_like, float32_updates, float32_zeros
from def_jax.wires import Bits, Route, check_bits

PAPER_DETACH = 0.3  # the λ of the paper's tables, and this library's default


class Memory(NamedTuple):
    """What messages change in a link's state, the same on all workers; () where it is not used."""

    step: jax.Array  # uint32 []: messages, or steps between them, that counted
    outer: PyTree = ()  # state of `outer`; within `send`, of the block alone
    energy: PyTree = ()  # float32 [] twice: running means of ‖mean_k message‖² and mean_k ‖message‖²
    skipped: PyTree = ()  # uint32 []: steps that all workers skipped

    @classmethod
    def of(cls, state: Any) -> 'Memory':
        return cls(*(getattr(state, name) for name in cls._fields))


class Reply(NamedTuple):
    """What a worker knows once a message has travelled."""

    mean: jax.Array  # float32 [M]: what x moves by
    rest: jax.Array  # float32 [M]: what the worker has still to send
    memory: Memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one link; making them raises ValueError if one is out of range, or two conflict."""

    compressor: Compressor
    bits: Bits
    detach: float | Literal['auto']
    every: int
    decay: float
    outer: optax.GradientTransformation | None
    average_every: int
    skip_nonfinite: bool
    overlap: bool

    def __post_init__(self):
        check_compressor(self.compressor)
        check_bits(self.bits)
        if not self.estimates_detach or self.detach != 'auto':
            hint = f"λ: 0 is error feedback, {PAPER_DETACH} the paper's choice; or 'auto'"
            check_number('detach', self.detach, 0, 1, hint)
        check_integer('every', self.every, 1, 'the number of steps per message')
        check_number('decay', self.decay, 0, 1, 'the fraction of the residual kept per step; 1 keeps all')
        outer.check_outer(self.outer)
        check_integer('average_every', self.average_every, 0, 'a number of steps, 0 for never')
        check_flag('skip_nonfinite', self.skip_nonfinite)
        check_flag('overlap', self.overlap)
        if self.outer is not None and self.compressor.scales:
            raise ValueError(
                'outer= needs a compressor that sends coordinates as they are, such as random_block: others '
                'would scale its moments, too.'
            )
        if self.every > 1 and (self.average_every or self.skip_nonfinite):
            other = 'average_every' if self.average_every else 'skip_nonfinite'
            raise ValueError(
                f'every={self.every} and {other}={getattr(self, other)!r} cannot be combined: workers do not '
                'communicate between messages. Set every=1, or leave the other at its default.'
            )

    @property
    def estimates_detach(self) -> bool:
        return isinstance(self.detach, str)

    @property
    def first_detach(self) -> jax.Array:
        """λ in the first step, of residuals that are zero, float32 []."""
        return jnp.asarray(1.0 if isinstance(self.detach, str) else self.detach, jnp.float32)

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The fields of the state that options need; the others stay ()."""
        fields: dict[str, PyTree] = {}
        if self.skip_nonfinite:
            fields['skipped'] = jnp.zeros((), jnp.uint32)
            if self.overlap:
                fields['left_out'] = jnp.zeros((), bool)
        if self.outer is not None:
            fields['outer'] = self.outer.init(float32_zeros(params))
            if self._rounds_apart(params):
                fields['missing'] = float32_zeros(params)
        if self.estimates_detach:
            fields['energy'] = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)
        return fields

    def _rounds_apart(self, params: PyTree) -> bool:
        """Whether what x rounds must not pass `outer`, see `narrow`."""
        return self.outer is not None and any(x.dtype.itemsize < 4 for x in jax.tree.leaves(params))

    def check(self, state: Any, params: PyTree) -> None:
        """Raises ValueError unless a link's state has the fields of its options, in their shapes."""
        remedy = (
            'It was made with other options or by an earlier version, or is stacked over workers. Pass the '
            'state from init of this optimizer, or train on from the parameters with a new one.'
        )
        unused = dict.fromkeys(('outer', 'energy', 'skipped', 'left_out'), ())
        needed = unused | jax.eval_shape(self.init, state.residual)
        if self._rounds_apart(params):
            needed['missing'] = state.residual
        for name, expected in needed.items():
            check_like(f'state.{name}', getattr(state, name), expected, remedy)

    def select(self, state: Any, route: Route) -> Selection:
        """What the message of a step selects; a round of blocks is a round of messages."""
        # A skipped step has drawn its block, too: one whose sum overflows would be drawn again forever.
        drawn = self.sends(state) + state.skipped if self.skip_nonfinite else self.sends(state)
        step = drawn // self.every if self.every > 1 else drawn
        return self.compressor.select(state.key, step, state.residual, route.layout)

    def sends(self, state: Any) -> jax.Array:
        """The step whose message travels in this one; with `overlap` the step before, at first of zeros."""
        return state.step - 1 if self.overlap else state.step

    def carry(self, residual: PyTree) -> PyTree:
        """The residual as it enters a step: times `decay`."""
        if isinstance(self.decay, (int, float)) and self.decay == 1:
            return residual
        return optax.tree.scale(jnp.asarray(self.decay, jnp.float32), residual)

    def finish(self, route: Route, before: Any, residual: PyTree, memory: Memory) -> Any:
        """The state at the end of a step, whether or not a message was sent in it."""
        workers, after = route.workers, before._replace(residual=residual, **memory._asdict())

        def mean(residual):
            # Adding 0·r marks the mean as varying over workers, like the other branch, as shard_map requires.
            return optax.tree.add_scale(pmean(residual, workers), 0, residual)

        if self.average_every:  # SAEF's period
            # A step dropped by `skip_nonfinite` does not count, so it must not repeat an average.
            due = (after.step % self.average_every == 0) & (after.step != before.step)
            after = after._replace(residual=lax.cond(due, mean, lambda r: r, after.residual))
        if self.estimates_detach:
            shares = self.compressor.age_shares
            best = detach_estimate.best_detach(after.energy, num_workers(workers), shares)
            after = after._replace(detach=best)
        elif isinstance(self.detach, jax.Array):  # of `optax.inject_hyperparams`
            after = after._replace(detach=self.first_detach)
        return after


def pend(updates: PyTree, carried: PyTree) -> PyTree:
    """Line 7 in float32, after a check that nothing is broadcast or lost."""
    return jax.tree.map(jnp.add, float32_updates(updates, carried), carried)


def send(
    options: Options,
    route: Route,
    selection: Selection,
    block: jax.Array,
    updates: PyTree,
    state: Any,
    arrive: Arrive = lambda sent, mean: mean,
) -> Reply:
    """Line 9: what comes of a block, float32 [M], and of the memory of the state.

    With `every`, the collective is in a branch of a conditional. What goes in and out is the block alone,
    which a waiting step puts back as it is: XLA copies what both branches return.
    """
    weights = None
    if options.estimates_detach:  # they scale a block to its tensor
        weights = jnp.array([part.weight for part in options.compressor.parts(state.residual)], jnp.float32)

    def exchanged(block: jax.Array, before: Memory) -> Reply:
        message = skipping.marked(block, updates, state) if options.skip_nonfinite else block
        back = route.exchange(message, weights, arrive)
        mean, after = back.mean, before._replace(step=before.step + 1)
        if back.energy is not None:
            energy = psum(back.energy, route.within)
            after = after._replace(energy=detach_estimate.learned(energy, before.energy))
        if options.outer is not None:
            mean, own = outer.applied(options.outer, mean, before.outer)
            if options.overlap:  # the message of the first step is empty: it does not count
                own = jax.tree.map(functools.partial(jnp.where, before.step > 0), own, before.outer)
            after = after._replace(outer=own)
        reply = Reply(mean, back.rest, after)
        if options.skip_nonfinite:
            # Another device of this worker may have seen what is not finite.
            finite = skipping.finite_on_all(back.mean, route.within)
            reply = skipping.undone(finite, selection.take(state.residual), reply, before)
        return reply

    def wait(block: jax.Array, before: Memory) -> Reply:
        nothing = jnp.zeros(block.shape, block.dtype)  # of a type that all workers share
        return Reply(nothing, block, before._replace(step=before.step + 1))

    def due(block: jax.Array, before: Memory) -> Reply:
        return lax.cond((options.sends(state) + 1) % options.every == 0, exchanged, wait, block, before)

    sending = exchanged if options.every == 1 else due
    if options.outer is None:
        return sending(block, Memory.of(state))
    cut = outer.Cut(options.outer, selection, block)
    reply = sending(block, Memory.of(state)._replace(outer=cut.read(state.outer)))
    memory = reply.memory._replace(outer=cut.write(state.outer, reply.memory.outer))
    return reply._replace(memory=memory)
