"""Trains by a setting, with all workers on one device."""

import dataclasses
import functools
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from benchmarks.adamw import network, text
from benchmarks.adamw.settings import Setting, applied, chain, inner
from def_jax.compressors import shared_key
from def_jax.mesh.ownership import own_leaves
from def_jax.traffic import traffic

__all__ = ['run']

_LONGEST = max(size.context for size in network.SIZES.values())  # all sizes draw the same places
_HYPER = ('lr', 'b1', 'b2', 'wd')
_EVALUATIONS, _WINDOWS, _LAST_WINDOWS, _TEST_WINDOWS, _AT_ONCE = 5, 512, 4096, 8192, 256
_FIRST_CHECK, _HOPELESS = 400, 3.5  # a run of so large a loss after so many steps is stopped
PyTree = Any


class _Programs(NamedTuple):
    step: Callable  # (params, state, text, starts, hyper) -> params, state, loss
    points: Callable[[PyTree, PyTree], dict[str, PyTree]]  # x and y
    losses: Callable
    state: PyTree
    true_ratio: float  # of bytes, dense over sent


@functools.cache
def _split():
    return text.split()


def run(setting: Setting) -> dict[str, Any]:
    """Trains and evaluates; returns the settings with losses in nats a byte along the run and at its end."""
    begin, cpu_begin = time.time(), time.process_time()
    size = network.SIZES[setting.model]
    params = network.init(size, setting.seed)
    programs = _compile(setting.structure)
    state = jax.tree.map(jnp.array, _with_rates(setting, programs.state))
    hyper = {name: jnp.float32(getattr(setting, name)) for name in _HYPER}
    train = jnp.asarray(_split()['train'])
    starts = np.random.default_rng([17, setting.seed]).integers(
        0, len(train) - _LONGEST - 1, (setting.steps, setting.workers, setting.sequences)
    )
    losses, curve = [], []
    for step in range(1, setting.steps + 1):
        params, state, loss = programs.step(params, state, train, jnp.asarray(starts[step - 1]), hyper)
        losses.append(float(loss))
        if step % max(1, setting.steps // _EVALUATIONS) == 0 or step == setting.steps:
            number = _LAST_WINDOWS if step == setting.steps else _WINDOWS
            points = programs.points(params, state)
            curve.append(
                [step, {k: _evaluate(programs, size, p, 'validation', number) for k, p in points.items()}]
            )
            print(setting.note, *curve[-1], f'{time.time() - begin:.0f} s', flush=True)
            if not (step <= _FIRST_CHECK or min(curve[-1][1].values()) <= _HOPELESS):
                break
    result = dataclasses.asdict(setting) | {
        'true_ratio': programs.true_ratio,
        'python': platform.python_version(),
        'val': curve[-1][1],
        'curve': curve,
        'train': [float(np.mean(losses[i : i + 50]).round(4)) for i in range(0, len(losses), 50)],
        'seconds': round(time.time() - begin),
        'cpu': round(time.process_time() - cpu_begin),
    }
    if setting.test:
        result['test_loss'] = {
            k: _evaluate(programs, size, p, 'test', _TEST_WINDOWS)
            for k, p in programs.points(params, state).items()
        }
    return result


def _evaluate(programs: _Programs, size: network.Size, params: PyTree, split: str, number: int) -> float:
    tokens = text.windows(_split()[split], number, size.context)
    batches = [jnp.asarray(tokens[i : i + _AT_ONCE]) for i in range(0, number, _AT_ONCE)]
    return float(np.mean([programs.losses(params, batch) for batch in batches]))


def _with_rates(setting: Setting, state: PyTree) -> PyTree:
    """The initial state with λ, the blocks' key and the outer optimizer's rates of the setting."""
    if setting.method == 'dense':
        return state
    outer = state[-1].extra['outer']
    rates = {'learning_rate': jnp.float32(setting.outer_lr), 'momentum': jnp.float32(setting.outer_mu)}
    link = state[-1]._replace(
        key=shared_key(setting.seed),
        detach=jnp.float32(setting.detach),
        extra=state[-1].extra | {'outer': outer._replace(hyperparams=rates)},
    )
    return (*state[:-1], link)


@functools.cache
def _compile(structure: Setting) -> _Programs:
    """The programs of all settings of one structure."""
    size = network.SIZES[structure.model]
    params = network.init(size, 0)
    value_and_grad = jax.value_and_grad(lambda p, tokens: jnp.mean(network.losses(size, p, tokens)))
    losses = jax.jit(lambda p, tokens: jnp.mean(network.losses(size, p, tokens)))
    zeros = dict.fromkeys(_HYPER, 0.0)

    def take(words, starts):
        return words[starts[..., None] + jnp.arange(size.context + 1)]

    if structure.method == 'dense':

        @jax.jit
        def dense(params, state, words, starts, hyper):
            loss, grads = value_and_grad(params, take(words, starts.reshape(-1)))
            updates, state = inner(structure, hyper).update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        return _Programs(dense, lambda x, _: {'x': x}, losses, inner(structure, zeros).init(params), 1.0)

    optimizer = chain(structure, zeros)
    own = own_leaves(optimizer, params)
    axes = jax.tree.map(lambda is_own: 0 if is_own else None, own)
    state = jax.tree.map(
        lambda is_own, x: jnp.stack([x] * structure.workers) if is_own else x, own, optimizer.init(params)
    )

    def worker(params, state, words, starts, hyper):
        point = def_jax.detached_params(params, state)
        loss, grads = value_and_grad(point, take(words, starts))
        updates, after = chain(structure, hyper).update(grads, state, point)
        link = after[-1]._replace(detach=state[-1].detach)
        updates = applied(structure, updates)
        return optax.apply_updates(params, updates), (*after[:-1], link), jax.lax.pmean(loss, 'workers')

    mapped = functools.partial(jax.vmap, axis_name='workers')  # replicated arguments are not mapped
    step = jax.jit(mapped(worker, in_axes=(None, axes, None, 0, None), out_axes=(None, axes, None)))
    output = jax.jit(
        mapped(lambda p, s: def_jax.output_params(p, s, 'workers'), in_axes=(None, axes), out_axes=None)
    )
    number = sum(x.size for x in jax.tree.leaves(params))
    always, message, _ = traffic(optimizer, params, 'workers', structure.workers).sizes(structure.every)
    ratio = 4 * number / (always + message / structure.every)
    return _Programs(step, lambda x, s: {'x': x, 'y': output(x, s)}, losses, state, ratio)
