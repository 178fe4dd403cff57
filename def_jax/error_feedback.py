"""Detached error feedback (DEF, DEF-A): Algorithm 1 of Xu & Huang (ICML 2022) as an optax transformation.

K workers hold the same parameters x. optax adds updates, so the residual here is r_k = -e_k: the part of
worker k's updates that has not reached the parameters yet. Legend:

    x        params                      y      output_params: x + mean_k r_k
    e_k      -residual                   C      compressor
    p_k      -pending                    λ      detach
    g_k      gradient at x - λ·e_k       η g_k  -updates, from whatever optimizer comes before in the chain
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from def_jax.beyond.detach_estimate import average_and_estimate
from def_jax.checks import check_compressor, check_flag, check_number, check_seed, check_wire_dtype
from def_jax.collectives import AxisName, check_axis_name, pmean
from def_jax.compressors import Compressor, Selection, shared_key, split

PyTree = Any

__all__ = ['ErrorFeedbackState', 'detached_params', 'error_feedback', 'output_params']


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`. The residual differs on every worker; the rest is the same on all."""

    step: jax.Array  # uint32 [], updates so far
    key: jax.Array  # uint32 [2], shared by all workers: it picks the blocks
    residual: PyTree  # like params, float32: r_k = -e_k
    detach: jax.Array  # float32 [], λ
    energy: jax.Array  # float32 [2], see `detach_estimate`; zeros unless detach='auto'
    skipped: jax.Array  # uint32 [], updates that `skip_nonfinite` dropped


def error_feedback(
    compressor: Compressor,
    axis_name: AxisName,
    *,
    seed: int = 0,
    detach: float | Literal['auto'] = 0.3,
    average_every: int = 0,
    wire_dtype: DTypeLike = jnp.float32,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformation:
    """Sends a compressed part of the updates to all workers and keeps the rest for later steps.

    The last stateful link of a chain; the optimizer before it stays local to the worker. Take gradients
    at `detached_params` (DEF); the parameters are then DEF-A's answer, `output_params` is DEF's.

    Args:
        compressor: which part is sent, e.g. `random_block(ratio=64)`.
        axis_name: the mapped axis over workers (of `jax.pmap`, `jax.vmap` or `jax.shard_map`), a tuple of
            axes (devices × virtual workers), or None for a single worker.
        seed: picks the blocks; must be the same on all workers.
        detach: λ in [0, 1]. 0 is error feedback (EF), 1 follows each worker's own model (SAEF, PSync).
            'auto' follows the λ*(t) that makes Eq. 9 least, estimated from the messages, which are one
            element longer for it; see `detach_estimate`.
        average_every: average the residuals over workers every that many steps, by a dense all-reduce;
            0 is never. SAEF's period.
        wire_dtype: the float type that travels, e.g. `jnp.bfloat16` for half the bytes. What a worker's
            message loses by rounding stays in its residual, so that it arrives later; only what the
            all-reduce itself rounds when it adds the workers' numbers is lost.
        skip_nonfinite: where an update of any worker holds NaN or infinity, all workers skip that step
            together: updates of zero, residual and `step` as they were, `skipped` one more. The news is NaN
            in the message, so it travels for nothing. Wrap the chain in `hold_skipped` so that the optimizer
            before this link forgets the step too.

    Returns:
        An `optax.GradientTransformation` with state `ErrorFeedbackState`. Updates keep their dtypes; the
        residual is float32 whatever the parameters are.

    Raises:
        ValueError: if an argument is out of range, or, in `update`, if `axis_name` is not bound.

    References:
        An Xu and Heng Huang, `Detached Error Feedback for Distributed SGD with Random Sparsification
        <https://proceedings.mlr.press/v162/xu22a.html>`_, ICML 2022, Algorithm 1.

    >>> import jax, jax.numpy as jnp, optax, def_jax
    >>> optimizer = optax.chain(
    ...     optax.sgd(0.1, momentum=0.9),
    ...     def_jax.error_feedback(def_jax.random_block(ratio=4), axis_name=None))
    >>> params = jnp.ones(8)
    >>> state = optimizer.init(params)
    >>> grads = jax.grad(lambda x: jnp.sum(x**2))(def_jax.detached_params(params, state))
    >>> updates, state = optimizer.update(grads, state, params)
    >>> int(jnp.sum(updates != 0))  # a quarter has been applied, the rest waits
    2
    """
    check_compressor(compressor)
    check_axis_name(axis_name)
    check_seed(seed)
    check_wire_dtype(wire_dtype)
    check_flag('skip_nonfinite', skip_nonfinite)
    if not isinstance(average_every, int) or isinstance(average_every, bool) or average_every < 0:
        raise ValueError(f'{average_every=} must be an integer >= 0: a number of steps, 0 for never.')
    automatic = isinstance(detach, str) and detach == 'auto'
    _check_detach(detach, automatic, wire_dtype)

    def init_fn(params) -> ErrorFeedbackState:
        return ErrorFeedbackState(
            step=jnp.zeros((), jnp.uint32),
            key=shared_key(seed),
            residual=jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params),  # line 2
            detach=jnp.float32(1) if automatic else jnp.asarray(detach, jnp.float32),
            energy=jnp.zeros(2, jnp.float32),
            skipped=jnp.zeros((), jnp.uint32),
        )

    def average(message, selection, energy):
        if automatic:
            return average_and_estimate(message, selection, energy, axis_name)
        return pmean(message, axis_name).astype(jnp.float32), {'detach': jnp.asarray(detach, jnp.float32)}

    def update_fn(updates, state, params=None):
        del params
        pending = jax.tree.map(_pending, updates, state.residual)  # line 7
        selection = compressor(state.key, state.step, pending)
        taken = selection.take(pending)
        if skip_nonfinite:
            taken = jnp.where(_all_finite(updates), taken, jnp.nan)
        # The rest is what rounding takes from the message; zeros for float32, which the barrier hides: XLA
        # thus writes the new residual over the old one when the message has been taken, and copies nothing.
        message = lax.optimization_barrier(taken.astype(wire_dtype))
        rest = taken - message.astype(jnp.float32)
        mean, estimate = average(message, selection, state.energy)  # line 9
        new_state = state._replace(step=state.step + 1, residual=None, **estimate)
        if skip_nonfinite:
            pending, rest, mean, new_state = _taken_or_skipped(
                updates, state, selection, rest, mean, new_state
            )
        residual = selection.replace(pending, rest)  # line 8: p - C(p)
        if average_every:
            due = (new_state.step % average_every == 0) & (new_state.step != state.step)
            residual = _average_if(due, residual, axis_name)
        return selection.place(mean, updates), new_state._replace(residual=residual)  # line 10

    return optax.GradientTransformation(init_fn, update_fn)


def _check_detach(detach: Any, automatic: bool, wire_dtype: DTypeLike) -> None:
    if not automatic:
        check_number('detach', detach, 0, 1, "λ: 0 is error feedback, 0.3 the paper's choice")
    elif jnp.dtype(wire_dtype).itemsize < 4 and jnp.finfo(wire_dtype).nexp < 8:
        raise ValueError(
            f"{wire_dtype=} is too narrow for the squared norm that detach='auto' sends. Use float32 or "
            'bfloat16, or a number for detach.'
        )


def detached_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The detached point x + λ·r_k at which worker k takes its gradient. Communicates nothing.

    Args:
        params: x, the parameters, a pytree of arrays.
        opt_state: state of an optimizer that holds `error_feedback` anywhere: in a chain, under
            `optax.masked` or `optax.multi_transform`, in `optax.MultiSteps`, `optax.flatten`, ...

    Returns:
        A pytree like `params`. The residual takes no gradient, so the derivative with respect to `params`
        is the identity and it does not matter whether a loss calls this inside or is called with it.

    Raises:
        ValueError: if `opt_state` holds no residual.

    Source: Algorithm 1, line 6.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None, detach=0.5).init(jnp.zeros(2))
    >>> def_jax.detached_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0]))).tolist()
    [0.5, 1.0]
    """
    for state in feedback_states(opt_state, 'detached_params'):
        residual = lax.stop_gradient(_arrange_like(params, state.residual))
        params = _add(params, residual, scale=state.detach)
    return params


def output_params(params: PyTree, opt_state: PyTree, axis_name: AxisName) -> PyTree:
    """DEF's answer y = x + mean_k r_k. One dense all-reduce: for evaluation and the end, not every step.

    Args:
        params: x, the parameters, a pytree of arrays.
        opt_state: worker k's optimizer state, see `detached_params`.
        axis_name: the axis over workers, as given to `error_feedback`; None for a single worker.

    Returns:
        y, a pytree like `params`, the same on all workers.

    Raises:
        ValueError: if `opt_state` holds no residual, or `axis_name` is not bound.

    Source: Algorithm 1, line 13; by Eq. 8 y moves by the mean update of the workers at every step.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None).init(jnp.zeros(2))
    >>> def_jax.output_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0])), None).tolist()
    [1.0, 2.0]
    """
    check_axis_name(axis_name)
    for state in feedback_states(opt_state, 'output_params'):
        params = _add(params, pmean(_arrange_like(params, state.residual), axis_name), scale=1)
    return params


def choose(condition: jax.Array, yes: PyTree, no: PyTree) -> PyTree:
    """One of two trees of the same structure, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, condition), yes, no)


def _pending(update: jax.Array, residual: jax.Array) -> jax.Array:
    return update.astype(jnp.float32) + residual


def _taken_or_skipped(
    updates: PyTree,
    state: ErrorFeedbackState,
    selection: Selection,
    rest: jax.Array,
    mean: jax.Array,
    new_state: PyTree,
) -> tuple[PyTree, jax.Array, jax.Array, PyTree]:
    """What is pending, the rest of the block, the mean and the new state; of a step that all workers skip,
    as if nothing were pending but the old residual, and nothing of it were sent.
    """
    finite = _all_finite(mean)
    held = state._replace(skipped=state.skipped + 1, residual=None)
    nothing = (selection.take(state.residual), jnp.zeros_like(mean), held)
    rest, mean, new_state = choose(finite, (rest, mean, new_state), nothing)
    # To choose between what is pending and the residual would keep both in memory; this choice is made
    # while the residual is updated in place. r + -0.0 is r, bit for bit.
    taken = jax.tree.map(lambda u: jnp.where(finite, u, -0.0), updates)
    return jax.tree.map(_pending, taken, state.residual), rest, mean, new_state


def _all_finite(tree: PyTree) -> jax.Array:
    """Whether every number of the tree is finite, at the speed of memory.

    The bits of |x|, as an integer, are below those of infinity. XLA for CPUs fuses a reduction with what
    computes x only over a leading axis of at most 32, where it needs no tree of partial results; a sum, a
    conjunction, or a maximum over more would first write all of x to memory.
    """

    def largest(leaf):
        bits = lax.bitcast_convert_type(jnp.abs(leaf.astype(jnp.float32)), jnp.int32)
        rows = bits.reshape(math.gcd(leaf.size, 32), -1)
        return rows.max(axis=0, initial=0).max(initial=0)

    infinity = np.float32(np.inf).view(np.int32)
    return jnp.all(jnp.array([largest(leaf) for leaf in jax.tree.leaves(tree)], jnp.int32) < infinity)


def _average_if(due: jax.Array, residual: PyTree, axis_name: AxisName) -> PyTree:
    """SAEF: replaces the residual by its mean over workers when it is time."""

    def average(residual):
        # Adding 0·r lets the mean vary over workers, as the other branch does: shard_map's types demand it.
        return jax.tree.map(lambda r, mean: mean + 0 * r, residual, pmean(residual, axis_name))

    return lax.cond(due, average, lambda residual: residual, residual)


def feedback_states(opt_state: PyTree, caller: str) -> list[ErrorFeedbackState]:
    """The states of `error_feedback` anywhere in `opt_state`; a ValueError in the caller's name for none."""
    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    if not states:
        raise ValueError(
            f'{caller}: opt_state holds no residual. Pass the state of a chain that ends in '
            'def_jax.error_feedback(...), as returned by optimizer.init or optimizer.update.'
        )
    return states


def is_state(node: Any) -> bool:
    """Whether a node of an optimizer's state is that of `error_feedback`."""
    return isinstance(node, ErrorFeedbackState)


def _arrange_like(params: PyTree, residual: PyTree) -> PyTree:
    """The residual in the structure of params: unflattened after `optax.flatten`."""
    leaves, treedef = jax.tree.flatten(params)
    if isinstance(residual, jax.Array):
        parts = split(residual.reshape(-1), [leaf.size for leaf in leaves])
        return jax.tree.unflatten(
            treedef, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        )
    return residual


def _add(params: PyTree, residual: PyTree, scale: Any) -> PyTree:
    def add(x, r):
        masked = isinstance(r, optax.MaskedNode)  # optax.masked: this leaf is not communicated here
        return x if masked else (x + scale * r).astype(x.dtype)

    return jax.tree.map(add, params, residual)
