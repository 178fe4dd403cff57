"""The optimizers whose update the benchmarks time and compile, by name."""

import functools
from collections.abc import Callable
from typing import Any

import optax

import def_jax

__all__ = ['ADAMW', 'OPTIMIZERS', 'PLAIN', 'SGD', 'Make', 'feedback', 'update']

PyTree = Any
AxisName = str | tuple[str, ...] | None
# Of the axis over workers, None for a single one, which sends nothing; and of `inside`, a worker's devices.
Make = Callable[..., optax.GradientTransformation]

SGD, ADAMW, PLAIN = 'momentum SGD', 'AdamW', 'SGD'
_INNER = {SGD: optax.sgd(0.1, momentum=0.9), ADAMW: optax.adamw(1e-3), PLAIN: optax.sgd(0.1)}


def update(optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, grads: PyTree):
    """The optimizer stage."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _dense(inner: str) -> Make:
    def make(axis_name, inside=None):
        axes = (axis_name, inside) if isinstance(inside, str) else axis_name
        link = [def_jax.all_reduce_mean(axes)] if axes else []
        return optax.chain(*link, _INNER[inner])

    return make


def feedback(compressor: Any, inner: str = SGD, **options: Any) -> Make:
    """DEF around `inner`, with the options of `error_feedback`; a number is a ratio of random blocks."""
    chosen = def_jax.random_block(compressor) if isinstance(compressor, int) else compressor
    return functools.partial(def_jax.error_feedback, chosen, inner=_INNER[inner], **options)


def _preset(make: Callable, rate: float, compression: float, **options: Any) -> Make:
    return functools.partial(make, rate, compression, **options)


def _top_k(axis_name: AxisName) -> optax.GradientTransformation:
    method = def_jax.baselines.get_method('top_k')
    return method.optimizer(optax.identity(), _INNER[SGD], axis_name, method.compressor(64), ratio=64)


_OUTER = optax.sgd(0.7, momentum=0.9, nesterov=True)
_DEF_Q = functools.partial(_preset, def_jax.def_sgd, 0.1)
_DEF_Q_ADAMW = functools.partial(_preset, def_jax.def_adamw, 1e-3)
# The dense ones, with which the others are compared, come first. 1/64 are the bytes of a float32 all-reduce;
# where a number has b bits, blocks are 32/b times as large.
OPTIMIZERS: dict[str, Make] = {
    SGD: _dense(SGD),
    ADAMW: _dense(ADAMW),
    **{f'DEF, 1/{ratio}': feedback(ratio) for ratio in (10, 64, 1024)},
    'DEF, 1/64, shuffled': feedback(def_jax.random_block(64, order='shuffled')),
    'DEF, 1/64, balanced': feedback(def_jax.random_block(64, allocation='balanced')),
    "DEF, 1/64, detach='auto'": feedback(64, detach='auto'),
    'DEF, 1/64, 16 bits': feedback(32, bits=16),
    'DEF, 1/64, skip_nonfinite': feedback(64, skip_nonfinite=True),
    'DEF, 1/64, every=4': feedback(64, every=4),
    'DEF, 1/64, outer': feedback(64, outer=_OUTER),
    'DEF, 1/64, overlap': feedback(64, overlap=True),
    'DEF around AdamW, 1/64': feedback(64, ADAMW),
    'DEF-Q, 1/256, 2 bits': _DEF_Q(256),
    'DEF-Q, 1/64, 2 bits': _DEF_Q(64),
    'DEF-Q, 1/64, 4 bits': _DEF_Q(64, bits=4),
    'DEF-Q, 1/64, 1 bit': _DEF_Q(64, bits=1),
    'DEF-Q, 1/64, 2 bits, λ 0.3': _DEF_Q(64, detach=0.3),
    'DEF-Q, 1/64, 2 bits, skip_nonfinite': _DEF_Q(64, skip_nonfinite=True),
    'DEF-Q, 1/64, 2 bits, overlap': _DEF_Q(64, overlap=True),
    'def_adamw, 1/64, 2 bits': _DEF_Q_ADAMW(64),
    'def_adamw, 1/256, 2 bits': _DEF_Q_ADAMW(256),
    'def_adamw, 1/256, 2 bits, overlap': _DEF_Q_ADAMW(256, overlap=True),
    'top-k, 1/64': _top_k,
}
