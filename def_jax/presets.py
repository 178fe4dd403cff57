"""DEF-Q, the preset: the best-known setting of `error_feedback`, as a complete optimizer.

Messages are large blocks of few bits, in rounds that send every block once, with larger shares for small
tensors. There is no first moment on the worker: the residual already accumulates, and both delay.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from def_jax.compressors import Compressor, random_block
from def_jax.compressors.orders import Order
from def_jax.compressors.random_block import Allocation
from def_jax.error_feedback import error_feedback
from def_jax.ground.arguments import check_number, check_ratio
from def_jax.ground.types import AxisName
from def_jax.wires import Bits, check_bits

_NESTEROV = optax.sgd(0.3, momentum=0.8, nesterov=True)
_ONE_BIT = 256  # from this compression on, 2 bits would leave blocks of 1/16 or less
ADAMW_DETACH = 0.2
_ADAMW_RATE = 3.0  # the tuned rate over that of dense AdamW, with `_NESTEROV`


def def_sgd(
    learning_rate: optax.ScalarOrSchedule,
    compression: float,
    axis_name: AxisName,
    *,
    inside: AxisName | int = None,
    bits: Bits | Literal['auto'] = 'auto',
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    detach: float | Literal['auto'] = 'auto',
    order: Order = 'shuffled',
    allocation: Allocation = 'balanced',
    skip_nonfinite: bool = False,
    overlap: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """DEF-Q in place of momentum SGD, started at its learning rate.

    Args:
        learning_rate: of `optax.sgd(learning_rate, momentum)`, a number or an optax schedule. There is no
            momentum buffer; the factor 1 / (1 - μ) by which momentum lengthens steps is inside.
        compression: bytes of a float32 all-reduce over those of a message, at least 32 / `bits`. Blocks are 1
            / (compression·bits / 32) of the model: at 64, a quarter in 2 bits.
        bits: in which a number travels, see `error_feedback`. 'auto' is 2, and 1 from a compression of 256
            on, where blocks in 2 bits would be 1/16 of the model or less.
        axis_name, inside, detach, skip_nonfinite, overlap, seed: see `error_feedback`.
        momentum: μ of the SGD that this replaces, in [0, 1).
        weight_decay: coefficient of the L2 penalty, taken at the detached point as in the paper.
        mask: which leaves decay, a pytree of booleans or a function of the parameters, see `optax.adamw`.
        order, allocation: of the blocks, see `random_block`.

    Raises:
        ValueError: if an argument is out of range, or there is no block of that compression in so many bits.

    Source: Algorithm 1 with the exchange of `wires.few_bits`. The paper's setting is `error_feedback`'s.

    >>> import jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_sgd(0.1, 64, axis_name='workers', weight_decay=5e-4)
    >>> state = optimizer.init(jnp.zeros(3))
    """
    check_number('momentum', momentum, 0, 1, 'μ of the momentum SGD that this replaces', below=True)
    _check_mask(mask)
    inner = optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate),
        optax.scale(1 / (1 - momentum)),
    )
    bits = chosen_bits(compression, bits)
    blocks = _blocks(learning_rate, compression, bits, order, allocation)
    options: dict[str, Any] = dict(seed=seed, detach=detach, skip_nonfinite=skip_nonfinite, overlap=overlap)
    return error_feedback(blocks, axis_name, inner=inner, inside=inside, bits=bits, **options)


def def_adamw(
    learning_rate: optax.ScalarOrSchedule,
    compression: float,
    axis_name: AxisName,
    *,
    inside: AxisName | int = None,
    bits: Bits | Literal['auto'] = 'auto',
    b2: float = 0.995,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any | Callable[[optax.Params], Any] | None = None,
    detach: float | Literal['auto'] = ADAMW_DETACH,
    outer: optax.GradientTransformation | None = _NESTEROV,
    order: Order = 'shuffled',
    allocation: Allocation = 'balanced',
    skip_nonfinite: bool = False,
    overlap: bool = False,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """DEF-Q in place of AdamW, started at its learning rate: for transformers.

    The second moment stays on the worker. In place of a first moment, momentum is in `outer`: it averages
    what all workers sent, and costs no communication. Chosen on small transformers, see docs/lab.md.

    Args:
        learning_rate: of dense AdamW, a number or an optax schedule. A factor of three is inside, for the
            gradient's part of an update alone, and `outer` multiplies all of it by 0.3 / (1 - 0.8) = 1.5.
        compression, bits, mask, order, allocation: see `def_sgd`.
        axis_name, inside, detach, outer, skip_nonfinite, overlap, seed: see `error_feedback`.
        b2: decay of the second moment. With bfloat16 parameters 0.995 at most: 0.999 is 1 in bfloat16.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay, at the detached point; 2/3 of dense AdamW's decays as much.

    Raises:
        ValueError: if an argument is out of range, or there is no block of that compression in so many bits.

    Source: Algorithm 1 with AdamW (Loshchilov & Hutter, 2019) in place of Eq. 11.

    >>> import jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.def_adamw(1e-3, 64, axis_name='workers', weight_decay=0.1)
    >>> state = optimizer.init(jnp.zeros(3))
    """
    _check_mask(mask)
    inner = optax.chain(
        optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True),
        optax.scale(_ADAMW_RATE),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    bits = chosen_bits(compression, bits)
    blocks = _blocks(learning_rate, compression, bits, order, allocation)
    options: dict[str, Any] = dict(seed=seed, detach=detach, skip_nonfinite=skip_nonfinite, overlap=overlap)
    return error_feedback(blocks, axis_name, inner=inner, inside=inside, bits=bits, outer=outer, **options)


def chosen_bits(compression: float, bits: Bits | Literal['auto']) -> Bits:
    """The bits in which a number travels at this compression; ValueError if one of them is out of range.

    From 256 on, 1 bit trains transformers further than 2, and none measurably less far (results/own_chunk).

    >>> chosen_bits(64, 'auto'), chosen_bits(256, 'auto'), chosen_bits(256, 2)
    (2, 1, 2)
    """
    compression = check_ratio(compression, 'compression')
    check_bits(bits, auto=f'1 from a compression of {_ONE_BIT} on, else 2')
    if bits != 'auto':
        return bits
    return 1 if compression >= _ONE_BIT else 2


def block_ratio(compression: float, bits: Bits) -> float:
    """R of the blocks that take 1 / `compression` of the bytes of a float32 all-reduce.

    Raises:
        ValueError: if the whole model in so many bits takes fewer bytes than that.

    >>> block_ratio(64, bits=2)
    4.0
    """
    if compression * bits < 32:
        raise ValueError(
            f'{compression=} with {bits=}: all numbers of the model in {bits} bits are 1/{32 // bits} of the '
            f'bytes of a float32 all-reduce. Choose compression >= {32 // bits}, or more bits.'
        )
    return compression * bits / 32


def _check_mask(mask: Any) -> None:
    if isinstance(mask, (bool, jax.Array)):
        raise ValueError(
            f'mask={mask} must be a pytree of booleans or a function of the parameters, which '
            "optax.inject_hyperparams takes for a schedule: pass static_args=('compression', 'bits', 'mask')."
        )


def _blocks(
    learning_rate: Any, compression: float, bits: Bits, order: Order, allocation: Allocation
) -> Compressor:
    if isinstance(learning_rate, optax.GradientTransformation):
        raise ValueError(
            'learning_rate must be a number or an optax schedule, not an optimizer: the preset has its own. '
            'To wrap yours, pass inner=optimizer to def_jax.error_feedback.'
        )
    return random_block(block_ratio(compression, bits), order=order, allocation=allocation)
