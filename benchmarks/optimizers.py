"""The optimizers whose update the benchmarks time and compile, by name."""

from collections.abc import Callable
from typing import Any

import optax

import def_jax

__all__ = ['ADAMW', 'OPTIMIZERS', 'PLAIN', 'SGD', 'Make', 'feedback', 'update']

PyTree = Any
AxisName = str | tuple[str, ...] | None
Make = Callable[[AxisName], optax.GradientTransformation]  # None is one worker, which sends nothing

SGD, ADAMW, PLAIN = 'momentum SGD', 'AdamW', 'SGD'
_INNER = {SGD: optax.sgd(0.1, momentum=0.9), ADAMW: optax.adamw(1e-3), PLAIN: optax.sgd(0.1)}


def update(optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, grads: PyTree):
    """The optimizer stage."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _dense(inner: str) -> Make:
    def make(axis_name):
        link = [def_jax.all_reduce_mean(axis_name)] if axis_name else []
        return optax.chain(*link, _INNER[inner])

    return make


def feedback(
    ratio: float, inner: str = SGD, *, compressor: Any = None, blocks: Any = None, **options
) -> Make:
    """DEF around `inner`; `blocks` are arguments of `random_block`, `options` those of `error_feedback`."""
    chosen = compressor or def_jax.random_block(ratio, **(blocks or {}))
    return lambda axis_name: optax.chain(_INNER[inner], def_jax.error_feedback(chosen, axis_name, **options))


def _adamw(**options: Any) -> Make:
    return lambda axis_name: def_jax.def_adamw(1e-3, 16, axis_name, **options)


def _method(name: str, **options: Any) -> Make:
    """One of `METHODS`, with momentum SGD."""
    found = def_jax.get_method(name)
    return lambda axis_name: found.optimizer(
        optax.identity(), _INNER[SGD], axis_name, found.compressor(64), **options
    )


_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)
# The dense ones, with which the others are compared, come first.
OPTIMIZERS: dict[str, Make] = {
    SGD: _dense(SGD),
    ADAMW: _dense(ADAMW),
    **{f'DEF, 1/{ratio}': feedback(ratio) for ratio in (10, 16, 64, 100, 1024)},
    'DEF, 1/64, shuffled': feedback(64, blocks={'order': 'shuffled'}),
    'DEF, 1/64, balanced': feedback(64, blocks={'allocation': 'balanced'}),
    "DEF, 1/64, detach='auto'": feedback(64, detach='auto'),
    'DEF, 1/64, bfloat16': feedback(64, bits=16),
    'DEF, 1/16, int8': feedback(16, bits=8),
    'DEF, 1/64, skip_nonfinite': feedback(64, skip_nonfinite=True),
    'DEF, 1/64, every=4': feedback(64, every=4),
    'DEF, 1/64, outer': feedback(64, outer=_OUTER),
    'DEF, 1/64, overlap': feedback(64, overlap=True),
    'DEF, 1/16, int8, overlap': feedback(16, bits=8, overlap=True),
    "DEF, 1/64, detach='auto', overlap": feedback(64, detach='auto', overlap=True),
    'DEF around AdamW, 1/64': feedback(64, ADAMW),
    'def_adamw, 1/16': _adamw(),
    'def_adamw, 1/16, int8': _adamw(bits=8),
    'def_adamw, 1/16, overlap': _adamw(overlap=True),
    'def_adamw, 1/16, int8, overlap': _adamw(bits=8, overlap=True),
    'PowerSGD, rank 4': _method('powersgd', ratio=64, rank=4),
    'top-k, 1/64': _method('top_k', ratio=64),
    'DeMo, 1/64': _method('demo', ratio=64),
    'EF-signSGD': _method('sign_ef'),
    'EF21, 1/64': _method('ef21'),
    'CSER, 1/64': _method('cser', ratio=64),
}
