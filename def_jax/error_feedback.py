"""Detached error feedback (DEF, DEF-A): Algorithm 1 of Xu & Huang (ICML 2022) as an optax transformation.

K workers hold the same parameters x. optax adds updates, so the residual here is r_k = -e_k: the part of
worker k's updates that has not reached the parameters yet. Legend:

    x        params                      y      output_params: x + mean_k r_k
    e_k      -residual                   C      compressor
    p_k      -pending                    λ      detach
    g_k      gradient at x - λ·e_k       η g_k  -updates, from the optimizer earlier in the chain
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import DTypeLike

from def_jax import beyond
from def_jax.checks import check_seed, check_updates, named_leaves
from def_jax.compressors import Compressor, check_compressor, shared_key
from def_jax.compressors.base import unravel
from def_jax.mesh.collectives import check_axis_name, pmean
from def_jax.mesh.link import float32_zeros, link, link_states
from def_jax.mesh.memory import in_memory
from def_jax.mesh.shards import Shards
from def_jax.mesh.varying import DETACHED, check_shared, start_varying, vary_if_tracked, varying_axes
from def_jax.types import AxisName, PyTree

__all__ = ['ErrorFeedbackState', 'detached_params', 'error_feedback', 'feedback_states', 'output_params']


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`. The residual differs between workers; other fields do not, but for one."""

    step: jax.Array  # uint32 [], number of updates so far
    key: jax.Array  # uint32 [2], shared by all workers; selects the blocks
    residual: PyTree  # like params, float32: r_k = -e_k
    detach: jax.Array  # float32 [], λ
    # State of the options in `def_jax.beyond`; empty if none is used. Only `left_out` is per-worker.
    extra: dict[str, PyTree]

    @property
    def per_worker(self) -> tuple[str, ...]:
        """The fields that differ between workers, and entries of `extra`; see `ownership`."""
        return ('residual', 'left_out')

    @property
    def numbers(self) -> tuple[str, ...]:
        """The entries of `extra` that are like no parameter, whatever its shape; see `mesh.specs`."""
        return ('energy', 'wire_squares')


def error_feedback(
    compressor: Compressor,
    axis_name: AxisName,
    *,
    seed: int = 0,
    detach: float | Literal['auto'] = beyond.PAPER_DETACH,
    every: int = 1,
    decay: float = 1.0,
    outer: optax.GradientTransformation | None = None,
    average_every: int = 0,
    wire_dtype: DTypeLike = jnp.float32,
    skip_nonfinite: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sends a compressed part of the updates to all workers and keeps the rest for later steps.

    Make it the last stateful link of a chain; the optimizer before it stays local to each worker. Take
    gradients at `detached_params`, and pass that point to `update` as `params`. The parameters are then the
    output of DEF-A, and `output_params` returns that of DEF.

    Args:
        compressor: selects the part to send, e.g. `random_block(ratio=64)`.
        axis_name: the mapped axis over workers (of `jax.pmap`, `jax.vmap` or `jax.shard_map`), a tuple of
            axes (devices × virtual workers), or None for a single worker.
        seed: selects the blocks; must be the same on all workers.
        detach: λ in [0, 1]. 0 is error feedback (EF); 1 takes gradients at each worker's own model (SAEF,
            PSync). 'auto' tracks the λ*(t) that minimises Eq. 9, estimated from the messages, which grow by
            one element; see `beyond.detach_estimate`.
        every: steps per message. Between messages, updates accumulate in the residual and nothing is
            communicated; see `beyond.every`.
        decay: factor in [0, 1] that multiplies the residual before each update is added.
        outer: an elementwise optax transformation that applies the mean message, treating it as a negated
            gradient. None means `optax.sgd(1.0)`. See `beyond.outer`.
        average_every: steps between averages of the residuals over workers, each a dense all-reduce; 0 means
            never. SAEF's period.
        wire_dtype: dtype of the messages: a float type, e.g. `jnp.bfloat16` to halve the bytes, or `jnp.int8`
            to quarter them, with at most 127 workers; see `beyond.integers`. A worker's rounding error stays
            in its residual and is sent later; only rounding in an all-reduce of floats is lost.
        skip_nonfinite: if any worker's update contains NaN or infinity, all workers skip that step: the
            updates are zero, the residual and `step` do not change, and the count `skipped` increases by one.
            NaN is signalled in-band, at no extra cost. Wrap the chain in `hold_skipped` to keep the step out
            of the preceding optimizer's state too.
        overlap: a step sends what waited before it, so that the network works while the gradient is computed;
            x is one step behind. See `beyond.overlap`. With `skip_nonfinite`, a worker leaves out its own
            update, and the next message of all workers.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`. Updates keep their dtypes;
        the residual is always float32. `def_jax.spmd` passes the extra argument `shards`.

    Raises:
        ValueError: if an argument is out of range or conflicts with another; in `init`, for parameters that
            are not floating-point arrays; in `update`, if `axis_name` is not bound, or state or updates
            do not belong to the link.

    References:
        An Xu and Heng Huang, `Detached Error Feedback for Distributed SGD with Random Sparsification
        <https://proceedings.mlr.press/v162/xu22c.html>`_, ICML 2022, Algorithm 1.

    >>> import jax, jax.numpy as jnp, optax, def_jax
    >>> optimizer = optax.chain(
    ...     optax.sgd(0.1, momentum=0.9),
    ...     def_jax.error_feedback(def_jax.random_block(ratio=4), axis_name=None))
    >>> params = jnp.ones(8)
    >>> state = optimizer.init(params)
    >>> point = def_jax.detached_params(params, state)
    >>> grads = jax.grad(lambda x: jnp.sum(x**2))(point)
    >>> updates, state = optimizer.update(grads, state, point)
    >>> int(jnp.sum(updates != 0))  # a quarter is applied, the rest kept for later
    2
    """
    check_compressor(compressor)
    check_seed(seed)
    options = beyond.options(
        axis_name,
        compressor,
        detach=detach,
        every=every,
        decay=decay,
        outer=outer,
        average_every=average_every,
        wire_dtype=wire_dtype,
        skip_nonfinite=skip_nonfinite,
        overlap=overlap,
    )
    algorithm = beyond.overlapped if overlap else _algorithm_1
    first_detach = 1.0 if isinstance(detach, str) else detach

    def step(updates, state, shards):
        options.check(state)
        check_shared(state.key, 'the key', axis_name)
        if axis_name is not None and shards.workers is None:  # a mapping that may stack the optimizer's state
            updates = in_memory(updates)
        return algorithm(compressor, options, axis_name, first_detach, shards, updates, state)

    init = functools.partial(_init, options, axis_name, seed, first_detach)
    return link(init, step, axis_name, ErrorFeedbackState, point=DETACHED, by_shards=True)


def _algorithm_1(
    compressor: Compressor,
    options: beyond.Options,
    axis_name: AxisName,
    detach: float,
    shards: Shards,
    updates: PyTree,
    state: ErrorFeedbackState,
) -> tuple[PyTree, ErrorFeedbackState]:
    """Lines 7 to 10: the updates of x, and the state after them; the options of `def_jax.beyond` join in."""
    carried = options.carry(state.residual)
    pending = beyond.pend(updates, carried)  # line 7
    selection = compressor(state.key, options.messages(state.step), pending)
    block = selection.take(pending)  # line 8: C(p)
    step = beyond.Step(updates, state, pending, selection, shards)
    mean, after = beyond.exchange(options, axis_name, detach, block, step)  # line 9
    added, carried, after = options.admit(updates, carried, state, after, shards)
    residual = selection.replace(beyond.pend(added, carried), after.residual)  # line 8: p - C(p)
    after = after._replace(residual=residual)
    return selection.place(mean, updates), options.finish(state, after)  # line 10


def detached_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The detached point x + λ·r_k, at which worker k takes its gradient. Communicates nothing.

    Args:
        params: x, the parameters, a pytree of arrays.
        opt_state: state of an optimizer that contains `error_feedback` anywhere: in a chain, under
            `optax.masked` or `optax.multi_transform`, in `optax.MultiSteps`, `optax.flatten`, ...

    Returns:
        A pytree like `params`. No gradient flows through the residual, so the derivative with respect to
        `params` is the identity: a loss may call this itself or be evaluated at the result. Under
        `jax.shard_map` with check_vma=True it must be the latter: JAX sums gradients with respect to
        replicated values.

    Raises:
        ValueError: if `opt_state` holds no residual, or one whose shapes differ from those of `params`; when
            a gradient that would be summed over workers is traced.

    Source: Algorithm 1, line 6.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None, detach=0.5).init(jnp.zeros(2))
    >>> def_jax.detached_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0]))).tolist()
    [0.5, 1.0]
    """
    states = feedback_states(opt_state, 'detached_params')
    params = start_varying(params, varying_axes([state.residual for state in states]))
    for state in states:
        residual = lax.stop_gradient(_arrange_like(params, state.residual))
        params = _add(params, residual, scale=state.detach)
    return params


def output_params(params: PyTree, opt_state: PyTree, axis_name: AxisName) -> PyTree:
    """DEF's output y = x + mean_k r_k. Costs a dense all-reduce: for evaluation, not for every step.

    Args:
        params: x, the parameters, a pytree of arrays.
        opt_state: worker k's optimizer state, see `detached_params`.
        axis_name: the axis over workers, as given to `error_feedback`; None for a single worker.

    Returns:
        y, a pytree like `params`, the same on all workers.

    Raises:
        ValueError: if `opt_state` holds no residual, or one whose shapes differ from those of `params`, or
            if `axis_name` is not bound.

    Source: Algorithm 1, line 13. By Eq. 8, y moves by the workers' mean update at every step.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None).init(jnp.zeros(2))
    >>> def_jax.output_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0])), None).tolist()
    [1.0, 2.0]
    """
    check_axis_name(axis_name)
    for state in feedback_states(opt_state, 'output_params'):
        params = _add(params, pmean(_arrange_like(params, state.residual), axis_name), scale=1)
    return params


def feedback_states(opt_state: PyTree, caller: str) -> list[ErrorFeedbackState]:
    """All `error_feedback` states in `opt_state`; raises ValueError in the caller's name if there is none."""
    states = [state for state in link_states(opt_state) if isinstance(state, ErrorFeedbackState)]
    if states:
        _check_disjoint(states, caller)
        return states
    if optax.tree.get_all_with_path(opt_state, 'residual'):
        raise ValueError(
            f'{caller}: opt_state holds no residual of error_feedback, only a field of that name: it was '
            'restored without a target. Restore it into the structure of optimizer.init(params): pass '
            'that state to the checkpointer as its target, or use jax.tree.unflatten.'
        )
    raise ValueError(
        f'{caller}: opt_state holds no residual. Pass the state of a chain that ends in '
        'def_jax.error_feedback(...), as returned by optimizer.init or optimizer.update.'
    )


def _init(
    options: beyond.Options, axis_name: AxisName, seed: int, detach: float, params: PyTree
) -> ErrorFeedbackState:
    residual = float32_zeros(params)  # line 2
    return ErrorFeedbackState(
        step=jnp.zeros((), jnp.uint32),
        key=shared_key(seed),
        residual=vary_if_tracked(residual, axis_name),
        detach=jnp.asarray(detach, jnp.float32),
        extra=options.init(params),
    )


def _check_disjoint(states: list[ErrorFeedbackState], caller: str) -> None:
    seen: set[str] = set()
    for state in states:
        paths = {path for path, _ in named_leaves(state.residual)}
        if both := sorted(seen & paths):
            raise ValueError(
                f'{caller}: two error_feedback links act on {both[0] or "the parameters"}. Keep one of '
                'them, or give each its own tensors with optax.masked or optax.multi_transform.'
            )
        seen |= paths


def _arrange_like(params: PyTree, residual: PyTree) -> PyTree:
    """The residual in the structure of `params`, with `optax.flatten` undone."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    if isinstance(residual, (jax.Array, np.ndarray)) and residual.size == size:
        return unravel(jnp.reshape(residual, -1), params)
    return residual


def _add(params: PyTree, residual: PyTree, scale: Any) -> PyTree:
    check_updates(params, residual, 'params')

    def masked(r):
        return isinstance(r, optax.MaskedNode)  # optax.masked: what is below is not communicated here

    def add(r, x):
        return x if masked(r) else (x + scale * r).astype(x.dtype)

    return jax.tree.map(add, residual, params, is_leaf=masked)
