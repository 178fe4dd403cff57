"""Detached error feedback (DEF, DEF-A): Algorithm 1 of Xu & Huang (ICML 2022) as an optax transformation.

K workers hold the same parameters x. optax adds updates, so the residual here is r_k = -e_k: the part of
worker k's updates that has not reached the parameters yet. Legend:

    x        params                      y      output_params: x + mean_k r_k
    e_k      -residual                   C      compressor
    p_k      -pending                    λ      detach
    g_k      gradient at x - λ·e_k       η g_k  -updates, from `inner`
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from def_jax.compressors import Compressor
from def_jax.ground.arguments import check_seed, named_leaves
from def_jax.ground.barriers import in_memory
from def_jax.ground.collectives import (
    axis_index,
    check_axis_name,
    check_shared,
    num_workers,
    pmean,
    vary,
    varying_axes,
)
from def_jax.ground.random import shared_key
from def_jax.ground.types import AxisName, PyTree
from def_jax.options import PAPER_DETACH, Options, pend, send, skipping, weighting
from def_jax.options.narrow import settled
from def_jax.options.overlap import overlapped
from def_jax.state.link import check_updates, float32_zeros, is_masked, link
from def_jax.state.ownership import (
    check_accumulation,
    check_no_copy,
    check_surroundings,
    link_states,
    no_residual,
)
from def_jax.wires import Bits, Route


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback`. Per-worker: `inner`, `residual`, `worker` and `left_out`."""

    step: jax.Array  # uint32 [], number of updates so far
    key: jax.Array  # uint32 [2], replicated; selects the blocks
    residual: PyTree  # like params, float32: r_k = -e_k
    detach: jax.Array  # float32 [], λ
    inner: PyTree  # state of the inner optimizer
    worker: jax.Array  # int32 [2], k and K; -1 before the first step; K is -2 once another worker goes on
    # Of options, () where they are not used:
    outer: PyTree = ()  # state of `outer`, in which moments are like params
    energy: PyTree = ()  # float32 [] twice, of detach='auto': ‖mean message‖² and mean ‖message‖²
    skipped: PyTree = ()  # uint32 [], of `skip_nonfinite`: steps that all workers skipped
    left_out: PyTree = ()  # bool [], with `overlap` besides: whether this worker left out its last update
    missing: PyTree = ()  # like params, float32: what narrow x lacks, where `outer` would act on it

    @property
    def per_worker(self) -> tuple[str, ...]:
        """The fields that differ between workers; see `ownership`."""
        return ('inner', 'residual', 'worker', 'left_out')


def error_feedback(
    compressor: Compressor,
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
    inside: AxisName | int = None,
    bits: Bits = 32,
    seed: int = 0,
    detach: float | Literal['auto'] = PAPER_DETACH,
    every: int = 1,
    decay: float = 1.0,
    outer: optax.GradientTransformation | None = None,
    average_every: int = 0,
    skip_nonfinite: bool = False,
    overlap: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sends a compressed part of a worker's updates to all workers and keeps the rest for later steps.

    It wraps the worker's optimizer `inner`, whose state is per-worker. Take gradients at `detached_params`,
    and pass x, the output of DEF-A, to `update`: the inner optimizer sees the detached point, at which the
    paper takes weight decay, too. What stands before the wrapper in a chain acts on the worker's gradient,
    and what stands after it on x and the mean update, the same on all workers. Without `inner`, it is the
    last link of a chain that ends the worker's optimizer. `output_params` returns the output of DEF.

    Args:
        compressor: selects the part to send, e.g. `random_block(ratio=64)`.
        axis_name: the mapped axis over workers (of `jax.pmap`, `jax.vmap` or `jax.shard_map`), a tuple of
            axes (devices × virtual workers), or None for a single worker.
        inner: the worker's optimizer, any optax transformation.
        inside: the devices that make up one worker, such as a node's GPUs: an axis over them or a tuple of
            axes, or under `jax.pmap` the number n of neighbours on `axis_name`. Each device gives `update`
            the gradient of its own part of the worker's batch. These are averaged inside, densely; all else
            is the worker's and the same on its devices, and each of them exchanges its n-th of a message
            with its counterparts. K and λ count workers. None: a worker is one device.
        bits: in which a number travels. 32 is the paper's float32, one all-reduce; 16 is bfloat16. With 8, 4,
            2 (-1, 0 and 1) or 1, messages are rounded to integers, see `wires.few_bits`. What rounding takes
            is sent later. At the same bytes, large blocks of few bits train better than small ones of many.
        seed: selects the blocks; must be the same on all workers. A restored state keeps its own.
        detach: λ in [0, 1]. 0 is error feedback (EF); 1 takes gradients at each worker's own model (SAEF,
            PSync). 'auto' tracks the λ*(t) that minimises Eq. 9, estimated from the messages; see
            `options.detach_estimate`. A restored state keeps a number of its own: to change it, set the
            state's field `detach`.
        every: steps per message. Between messages, updates accumulate in the residual, without
            communication. With `identity()` and λ = 1 this is local SGD (Stich, 2019).
        decay: factor in [0, 1] that multiplies the residual before each update is added.
        outer: an elementwise optax transformation that applies the mean message, treating it as a negated
            gradient. None means `optax.sgd(1.0)`.
        average_every: steps between averages of the residuals over workers, each a dense all-reduce; 0 means
            never. SAEF's period.
        skip_nonfinite: if any worker's update contains NaN or infinity, all workers skip that step: the
            updates are zero, `inner`, the residual and `step` do not change, and the count `skipped`
            increases by one. The next step draws another block. Under `optax.multi_transform`, each wrapper
            judges its own tensors.
        overlap: a step sends what waited before it, so that the network works while the gradient is computed;
            x is one step behind, see `options.overlap`. With `skip_nonfinite`, a worker leaves out its own
            update at once, and all workers leave out the next message.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`. Updates keep their dtypes;
        the residual is always float32. Where x is narrower, what is rounded when the update is added to x
        goes to the residual on all workers alike, so y is a float32 master copy; that needs `params`, and
        nothing around or after the wrapper that changes updates, as `optax.flatten` does of mixed dtypes.
        With `outer`, it goes to the field `missing` of the state.

        `update(grads, state, params, weight=w_k)` multiplies worker k's update by K·w_k / Σ w in line 7, so y
        moves by the weighted mean update: for unequal batches or a loss by the token. Weights are scalars of
        0 or more. With weight 0 a worker adds nothing, keeps the moments of `inner`, and still sends its
        residual; if all weights are 0, none adds. It costs an all-reduce of one number. Other extra
        arguments go to `inner`.

    Raises:
        ValueError: if an argument is out of range or conflicts with another; in `init`, for parameters that
            are not floating-point arrays; in `update`, if `axis_name` is not bound, or state or updates
            do not belong to the optimizer.

    Source: Algorithm 1 of `Xu and Huang, ICML 2022 <https://proceedings.mlr.press/v162/xu22c.html>`_.

    >>> import jax, jax.numpy as jnp, optax, def_jax
    >>> optimizer = def_jax.error_feedback(
    ...     def_jax.random_block(ratio=4), axis_name=None, inner=optax.sgd(0.1, momentum=0.9))
    >>> params = jnp.ones(8)
    >>> state = optimizer.init(params)
    >>> point = def_jax.detached_params(params, state)
    >>> grads = jax.grad(lambda x: jnp.sum(x**2))(point)
    >>> updates, state = optimizer.update(grads, state, params)
    >>> int(jnp.sum(updates != 0))  # a quarter is applied, the rest kept for later
    2
    """
    check_seed(seed)
    options = Options(
        compressor=compressor,
        bits=bits,
        detach=detach,
        every=every,
        decay=decay,
        outer=outer,
        average_every=average_every,
        skip_nonfinite=skip_nonfinite,
        overlap=overlap,
    )
    algorithm = overlapped if overlap else _algorithm_1

    def init(params):
        return ErrorFeedbackState(
            step=jnp.zeros((), jnp.uint32),
            key=shared_key(seed),
            residual=float32_zeros(params),  # line 2
            detach=options.first_detach,
            inner=(),
            worker=jnp.full(2, -1, jnp.int32),
            **options.init(params),
        )

    def step(updates, state, params, shards):
        options.check(state, params)
        check_shared(state.key, 'the key', axis_name)
        if axis_name is not None and shards.specs is None:  # a mapping that may stack the optimizer's state
            updates = in_memory(updates)
        sizes, holders = compressor.sizes(state.residual), shards.holders(state.residual)
        route = Route.of(sizes, shards.workers, bits, shards.within, holders)
        return algorithm(options, route, updates, state, params)

    wrapper = wrapped(inner, init, step, axis_name, inside=inside, by_shards=True)

    def update(grads, state, params=None, **extra_args):
        applied, after = wrapper.update(grads, state, params, **extra_args)
        return applied, skipping.held(state, after)

    return optax.GradientTransformationExtraArgs(wrapper.init, update) if skip_nonfinite else wrapper


def wrapped(
    inner: optax.GradientTransformation,
    init: Callable[[PyTree], Any],
    step: Callable[..., tuple[PyTree, Any]],
    axis_name: AxisName,
    state_type: Any = ErrorFeedbackState,
    *,
    inside: AxisName | int = None,
    by_shards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A link around a worker's optimizer, which sees the detached point; arguments as of `link`."""
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"{inner=} must be the worker's optimizer, an optax.GradientTransformation such as "
            'optax.sgd(0.1, momentum=0.9) or optax.adamw(1e-3).'
        )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params):
        state = init(params)  # first, for it checks the parameters
        started = inner.init(params)
        check_accumulation(started, 'inner= holds')
        check_no_copy(inner, params)
        if any(isinstance(state, ErrorFeedbackState) for state in link_states(started)):
            raise ValueError(
                'inner= holds another def_jax.error_feedback, such as def_sgd: updates would wait twice. '
                "Pass the worker's optimizer alone, e.g. inner=optax.sgd(0.1, momentum=0.9)."
            )
        return state._replace(inner=started)

    def local(grads, state, params, shards, /, weight=None, **extra_args):  # line 6, after the gradient
        if 'weights' in extra_args:  # optax's chains and optimizers pass by what they do not know
            raise ValueError("the extra argument weights is unknown: write weight=, this worker's own.")
        if inside is not None:
            grads, weight = weighting.averaged(shards.within, grads, weight)
        if params is None and state.inner != ():  # which is that of the identity
            raise ValueError(
                'update needs x: call update(grads, opt_state, params). And take gradients at '
                'def_jax.detached_params(params, opt_state): at x, this would be another method.'
            )
        point = None if params is None else _at_point(params, [state])
        updates, after = inner.update(grads, state.inner, point, **extra_args)
        if weight is None:
            return updates, after
        return weighting.weighted(weight, axis_name, updates, after, state.inner)

    def numbered(updates, state, params, shards):
        applied, after = step(updates, state, params, shards)
        before, workers = state.worker, shards.workers
        here = jnp.array([axis_index(workers), num_workers(workers)], jnp.int32)
        own = jnp.all((before == here) | (before == -1))
        return applied, after._replace(worker=jnp.where(own, here, before.at[1].set(-2)))

    return link(init_fn, numbered, axis_name, state_type, local=local, inside=inside, by_shards=by_shards)


def _algorithm_1(
    options: Options, route: Route, updates: PyTree, state: Any, params: PyTree
) -> tuple[PyTree, Any]:
    """Lines 7 to 10: the updates of x, and the state after them; `def_jax.options` joins in."""
    carried = options.carry(state.residual)
    pending = pend(updates, carried)  # line 7
    selection = options.select(state, route)
    block = selection.take(pending)  # line 8: C(p)
    reply = send(options, route, selection, block, updates, state)  # line 9
    if options.skip_nonfinite:
        pending = pend(*skipping.admitted(updates, carried, state, reply))
    mean, rest, missing = settled(route, selection, reply, updates, params, state.missing)
    state = state._replace(missing=missing)
    residual = selection.replace(pending, rest)  # line 8: p - C(p)
    return selection.place(mean, updates), options.finish(route, state, residual, reply.memory)  # line 10


def detached_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The detached point x + λ·r_k, at which worker k takes its gradient. Communicates nothing.

    Args:
        params: x, the parameters, a pytree of arrays.
        opt_state: state of an optimizer that contains `error_feedback` anywhere: in a chain, under
            `optax.masked` or `optax.multi_transform`, in `optax.flatten`, ...

    Returns:
        A pytree like `params`, whose derivative with respect to `params` is the identity: a loss may call
        this itself or be evaluated at the result. Under `jax.shard_map` with check_vma=True it must be the
        latter: JAX sums gradients with respect to replicated values, and `update` refuses those.

    Raises:
        ValueError: if `opt_state` holds no residual, or one whose structure or shapes differ from those of
            `params`. Under `optax.flatten` only the number of elements is known: another model's residual is
            refused only if that differs.

    Source: Algorithm 1, line 6.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None, detach=0.5).init(jnp.zeros(2))
    >>> def_jax.detached_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0]))).tolist()
    [0.5, 1.0]
    """
    return _at_point(params, feedback_states(opt_state, 'detached_params'))


def _at_point(params: PyTree, states: list[ErrorFeedbackState]) -> PyTree:
    params = vary(params, varying_axes([state.residual for state in states]))
    for state in states:
        if jnp.ndim(state.detach):  # λ of every worker would be broadcast along the last axis
            raise ValueError(
                'detached_params: opt_state is stacked over workers. Call it inside the mapped function, or '
                'map it: jax.vmap(def_jax.detached_params)(params, opt_state).'
            )
        params = _add(params, lax.stop_gradient(state.residual), scale=state.detach)
    return params


def output_params(params: PyTree, opt_state: PyTree, axis_name: AxisName) -> PyTree:
    """DEF's output y = x + mean_k r_k. Costs a dense all-reduce: for evaluation, not for every step.

    Args:
        params, opt_state: see `detached_params`.
        axis_name: the axis over workers, as given to `error_feedback`.

    Returns:
        y, a pytree like `params`, the same on all workers; of float32 where `params` are narrower, whose
        float32 master copy it is.

    Raises:
        ValueError: as `detached_params`; if `axis_name` is not bound; or if it is None, and the state is
            known to be one worker's of several.

    Source: Algorithm 1, line 13. Eq. 8 (no decay, no outer): y moves by the mean update at every step.

    >>> import jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None).init(jnp.zeros(2))
    >>> def_jax.output_params(jnp.zeros(2), state._replace(residual=jnp.array([1.0, 2.0])), None).tolist()
    [1.0, 2.0]
    """
    check_axis_name(axis_name)
    states = feedback_states(opt_state, 'output_params')
    check_alone(states, axis_name, 'output_params')
    for state in states:
        params = _add(params, pmean(state.residual, axis_name), scale=1, least=jnp.float32)
        if jax.tree.leaves(state.missing):
            params = _add(params, state.missing, scale=1, least=jnp.float32)
    return params


def check_alone(states: list[ErrorFeedbackState], axis_name: AxisName, caller: str) -> None:
    """Raises ValueError if states whose values are known are of one worker of several, but no axis is."""
    known = [state.worker for state in states if not isinstance(state.worker, jax.core.Tracer)]
    for number, count in [worker.reshape(-1, 2)[0].tolist() for worker in known if axis_name is None]:
        if count > 1:
            raise ValueError(
                f'{caller}: opt_state is of worker {number} of {count}, or of all of them, but '
                'axis_name=None means a single worker. Call it in the mapped step with its axis, or pass the '
                'mean over workers, of the stacked state: jax.tree.map(lambda x: x[0], '
                'def_jax.unstack_state(def_jax.stack_state(opt_state), 1)).'
            )


def feedback_states(opt_state: PyTree, caller: str) -> list[ErrorFeedbackState]:
    """All `error_feedback` states in `opt_state`; raises ValueError in the caller's name if there is none."""
    check_surroundings(opt_state, caller)
    states = [state for state in link_states(opt_state) if isinstance(state, ErrorFeedbackState)]
    links = Counter(path for state in states for path, _ in named_leaves(state.residual))
    if both := sorted(path for path, number in links.items() if number > 1):
        raise ValueError(
            f'{caller}: two error_feedback links act on {both[0] or "the parameters"}. Keep one of them, or '
            'give each its own tensors with optax.multi_transform.'
        )
    if states:
        return states
    raise no_residual(opt_state, caller)


def _add(params: PyTree, residual: PyTree, scale: Any, least: Any = None) -> PyTree:
    """x + scale·r, in the dtype of x, or in the wider one of that and `least`."""
    if getattr(residual, 'shape', None) == (optax.tree.size(params),):  # under `optax.flatten`
        _, unravel = ravel_pytree(optax.tree.zeros_like(params, dtype=jnp.float32))
        residual = unravel(residual)
    if any(map(jnp.iscomplexobj, jax.tree.leaves(params))):
        residual = jax.tree.map(lambda r: lax.complex(*r) if _is_pair(r) else r, residual, is_leaf=_is_pair)
    check_updates(params, residual, 'params')

    def add(r, x):
        if is_masked(r):
            return x
        return (x + scale * r).astype(x.dtype if least is None else jnp.promote_types(x.dtype, least))

    return jax.tree.map(add, residual, params, is_leaf=is_masked)


def _is_pair(node: Any) -> bool:
    """Whether a node holds a complex array, as `optax.contrib.split_real_and_imaginary` passes it on."""
    return hasattr(node, 'imaginary')
