"""The complete optimizer in one call."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.typing import DTypeLike

from def_jax.beyond import PAPER_DETACH
from def_jax.compressors import random_block
from def_jax.compressors.allocations import Allocation
from def_jax.compressors.orders import Order
from def_jax.error_feedback import error_feedback
from def_jax.mesh.varying import DETACHED, check_not_summed
from def_jax.types import AxisName

__all__ = ['def_adamw', 'def_sgd']

_NESTEROV = optax.sgd(0.3, momentum=0.8, nesterov=True)


def def_adamw(
    learning_rate: optax.ScalarOrSchedule,
    ratio: float,
    axis_name: AxisName,
    *,
    b1: float | None = None,
    b2: float = 0.995,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    detach: float | Literal['auto'] = 0.2,
    outer: optax.GradientTransformation | None = _NESTEROV,
    order: Order = 'shuffled',
    allocation: Allocation = 'balanced',
    wire_dtype: DTypeLike = 'float32',
    overlap: bool = False,
    seed: int = 0,
) -> optax.GradientTransformation:
    """AdamW with detached error feedback, for transformers.

    The moments stay on the worker, and the defaults are not those of dense AdamW. There is no first moment:
    the residual already accumulates, and both delay. The momentum is in `outer` instead, where it averages
    what all workers sent, costs no communication, and is the same on all. The second moment averages over
    more steps than is usual for transformers, as a worker's gradient is noisier than the mean gradient; that
    this helps is not shown. docs/adamw.md has the evidence, small transformers, and what is lost against
    dense AdamW.

    Args:
        learning_rate: η, a number or an optax schedule. Start from dense AdamW's and try up to three
            times as much; times the rate of `outer` over 1 - μ, which is 1.5, it is the distance per step.
        ratio: compression ratio of `random_block`, a number >= 1.
        axis_name: the axis over workers, see `error_feedback`.
        b1: decay of the first moment; 0 or None keeps no buffer. Under `optax.inject_hyperparams`, which
            makes an array of every number, it must be None: `init` refuses an array of 0, but under
            `jax.jit` it cannot see the value, and keeps a buffer of the model's size.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay. Pass `detached_params(params, state)` to `update` as `params`.
        mask: which leaves decay, a pytree of booleans or a function of the parameters, see `optax.adamw`.
        detach: λ in [0, 1], or 'auto', see `error_feedback`.
        outer: applies the mean message, see `error_feedback`; Nesterov momentum, or None for none.
        order: order of the blocks, see `random_block`.
        allocation: lengths of the blocks, see `random_block`.
        wire_dtype: see `def_sgd`.
        overlap: see `error_feedback`.
        seed: see `error_feedback`.

    Raises:
        ValueError: if an argument of the compression is out of range.

    Source: Algorithm 1 with AdamW (Loshchilov & Hutter, 2019) in place of Eq. 11.

    >>> import jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_adamw(1e-3, ratio=16, axis_name='workers', weight_decay=0.1)
    >>> state = optimizer.init(jnp.zeros(3))
    """
    blocks = random_block(ratio, order=order, allocation=allocation)
    optimizer = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
        if _is_none('b1', b1)
        else optax.scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
        error_feedback(
            blocks,
            axis_name,
            seed=seed,
            detach=detach,
            outer=outer,
            wire_dtype=wire_dtype,
            overlap=overlap,
        ),
    )
    return _of_per_worker_gradients(optimizer, axis_name)


def def_sgd(
    learning_rate: optax.ScalarOrSchedule,
    ratio: float,
    axis_name: AxisName,
    *,
    momentum: float | None = 0.9,
    weight_decay: float = 0.0,
    detach: float | Literal['auto'] = PAPER_DETACH,
    order: Order = 'random',
    allocation: Allocation = 'proportional',
    wire_dtype: DTypeLike = 'float32',
    overlap: bool = False,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Momentum SGD with detached error feedback, the paper's optimizer.

    Args:
        learning_rate: η, a number or an optax schedule.
        ratio: compression ratio of `random_block`, a number >= 1.
        axis_name: the axis over workers, see `error_feedback`.
        momentum: μ in Eq. 11; 0 or None keeps no buffer. Under `optax.inject_hyperparams`, which makes an
            array of every number, it must be None: `init` refuses an array of 0, but under `jax.jit` it
            cannot see the value, and keeps a buffer of the model's size. At high ratios, DEF learns faster
            with η / (1 - μ) and no momentum than with η and μ; see docs/how_to/past_the_paper.md.
        weight_decay: coefficient of the L2 penalty. Pass `detached_params(params, state)` to `update` as
            `params`, since the paper evaluates the penalty's gradient at the detached point too.
        detach: λ in [0, 1], or 'auto', see `error_feedback`.
        order: order of the blocks, see `random_block`: 'random' as in the paper, 'shuffled' or 'cyclic'.
        allocation: lengths of the blocks, see `random_block`: 'proportional' as in the paper, or 'balanced'.
        wire_dtype: dtype of the messages, see `error_feedback`. In 'int8', blocks four times as large take
            the same bytes: ratio 16 sends what 64 does in float32. Under `optax.inject_hyperparams`, pass
            the name: it takes whatever can be called, as `jnp.int8` can, for a schedule.
        overlap: messages travel while the next gradient is computed, see `error_feedback`.
        seed: selects the blocks; must be the same on all workers.

    Raises:
        ValueError: if an argument is out of range.

    Source: Algorithm 1 with Eq. 11.

    >>> import jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_sgd(0.1, ratio=64, axis_name='workers', weight_decay=5e-4)
    >>> state = optimizer.init(jnp.zeros(3))
    """
    momentum = None if _is_none('momentum', momentum) else momentum
    blocks = random_block(ratio, order=order, allocation=allocation)
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum),
        error_feedback(blocks, axis_name, seed=seed, detach=detach, wire_dtype=wire_dtype, overlap=overlap),
    )
    return _of_per_worker_gradients(optimizer, axis_name)


def _of_per_worker_gradients(
    optimizer: optax.GradientTransformation, axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
    """Refuses gradients that `jax.shard_map` has summed: the link cannot see it behind per-worker moments."""
    inner = optax.with_extra_args_support(optimizer)

    def update_fn(updates, state, params=None, **extra_args):
        check_not_summed(updates, axis_name, DETACHED)
        return inner.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _is_none(name: str, decay: Any) -> bool:
    """Whether moments with this decay need no buffer: if it is None or 0, which an array cannot tell."""
    if isinstance(decay, jax.Array) and not isinstance(decay, jax.core.Tracer) and not np.any(decay):
        raise ValueError(
            f'{name}={decay} is an array, as optax.inject_hyperparams makes it of a number, and would keep a '
            f"buffer of the model's size for nothing. Pass {name}=None, or static_args=({name!r},)."
        )
    return decay is None or (isinstance(decay, (int, float)) and decay == 0)
