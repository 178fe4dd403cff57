"""One run's settings, the optimizer that they describe, and the run."""

import dataclasses
import functools
import platform
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from benchmarks.adamw import network, training
from benchmarks.workers import AXIS
from def_jax.traffic import traffic

__all__ = ['Setting', 'at_output', 'optimizer', 'run']

_EVALUATIONS, _WINDOWS, _LAST_WINDOWS, _TEST_WINDOWS = 5, 512, 4096, 8192
_FIRST_CHECK, _HOPELESS = 400, 3.5  # a run of so large a loss after so many steps is stopped
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run: a line of the runs holds these and what came of them.

    `identity` sends everything, every `every` steps; otherwise one element in `ratio`, in balanced rounds or,
    without `rounds`, in the paper's blocks: drawn independently, with equal shares.
    Each of the `workers` takes `sequences` at a step. With `muon_outside`, the workers have AdamW, and the
    mean messages of hidden matrices are orthogonalised. With `shared_moment`, AdamW's second moment is that
    of the mean gradient, which no method could know without sending it: it shows what the noise in a worker's
    own costs.
    """

    note: str = ''
    model: str = '33k'
    steps: int = 1200
    seed: int = 0
    method: Literal['dense', 'def'] = 'def'
    inner: Literal['adamw', 'muon', 'muon_outside', 'shared_moment'] = 'adamw'
    lr: float = 8e-3
    b1: float = 0.9
    b2: float = 0.95
    ratio: float = 16
    detach: float = 0.1
    every: int = 1
    outer_lr: float = 1.0
    outer_mu: float = 0.0
    identity: bool = False
    rounds: bool = True
    workers: int = 8
    sequences: int = 4
    wire_dtype: str = 'float32'
    overlap: bool = False
    test: bool = False

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> 'Setting':
        """The settings of a run, without its note."""
        names = {field.name for field in dataclasses.fields(cls)} - {'note'}
        return cls(**{name: value for name, value in line.items() if name in names})


def inner(setting: Setting, rate: Any) -> optax.GradientTransformation:
    """AdamW, or Muon with AdamW for what is no matrix."""
    scale = optax.scale_by_adam(setting.b1, setting.b2)
    if setting.inner == 'shared_moment':
        scale = _by_shared_moment(setting.b2)
    if setting.inner == 'muon':
        scale = optax.multi_transform({'muon': _muon(setting.b1), 'adam': scale}, _is_hidden_matrix)
    return training.adamw(rate, setting.steps, scale)


def optimizer(setting: Setting, rate: Any) -> optax.GradientTransformation:
    """The optimizer of one worker, with its link."""
    if setting.method == 'dense':
        return optax.chain(def_jax.all_reduce_mean(AXIS), inner(setting, rate))
    rounds = {'order': 'shuffled', 'allocation': 'balanced'} if setting.rounds else {}
    blocks = def_jax.random_block(setting.ratio, **rounds)
    link = def_jax.error_feedback(
        def_jax.identity() if setting.identity else blocks,
        AXIS,
        seed=setting.seed,
        detach=setting.detach,
        every=setting.every,
        outer=optax.sgd(setting.outer_lr, setting.outer_mu, nesterov=True) if setting.outer_mu else None,
        wire_dtype=setting.wire_dtype,
        overlap=setting.overlap,
    )
    return optax.chain(inner(setting, rate), link)


def run(setting: Setting) -> dict[str, Any]:
    """Trains and evaluates; returns the settings with losses in nats a byte along the run and at its end."""
    begin, cpu_begin = time.time(), time.process_time()
    points: dict[str, training.Point] = {'x': lambda params, _: params}
    if setting.method == 'def':
        points['y'] = functools.partial(def_jax.output_params, axis_name=AXIS)
    make, after = (functools.partial(of, setting) for of in (optimizer, applied))
    programs = training.make_programs(network.SIZES[setting.model], setting.workers, make, points, after)
    losses, curve, shape = [], [], (setting.steps, setting.workers, setting.sequences)
    for trained, params, state in training.course(programs, setting.seed, setting.lr, shape, _EVALUATIONS):
        losses += trained
        number = _LAST_WINDOWS if len(losses) == setting.steps else _WINDOWS
        curve.append([len(losses), training.evaluate(programs, params, state, 'validation', number)])
        print(setting.note, *curve[-1], f'{time.time() - begin:.0f} s', flush=True)
        if not (len(losses) <= _FIRST_CHECK or min(curve[-1][1].values()) <= _HOPELESS):
            break
    result = dataclasses.asdict(setting) | {
        'true_ratio': _true_ratio(setting),
        'python': platform.python_version(),
        'val': curve[-1][1],
        'curve': curve,
        'train': [float(np.mean(losses[i : i + 50]).round(4)) for i in range(0, len(losses), 50)],
        'seconds': round(time.time() - begin),
        'cpu': round(time.process_time() - cpu_begin),
    }
    if setting.test:
        result['test_loss'] = training.evaluate(programs, params, state, 'test', _TEST_WINDOWS)
    return result


def at_output(losses: Mapping[str, float]) -> float:
    """Of losses by point, the one at y, or at x where there is no residual."""
    return losses.get('y', losses['x'])


def _true_ratio(setting: Setting) -> float:
    """Of bytes, dense over sent."""
    size = network.SIZES[setting.model]
    params = network.init(size, 0)
    always, message, _ = traffic(optimizer(setting, 0.1), params, AXIS, setting.workers).sizes(setting.every)
    return 4 * network.parameters(size) / (always + message / setting.every)


def applied(setting: Setting, updates: PyTree) -> PyTree:
    """What the parameters receive: the link's updates, or with Muon outside those of equal norm whose
    nonzero singular values are equal. Rows or columns that were not sent stay zero."""
    if setting.inner != 'muon_outside':
        return updates
    muon = _muon(0.0)

    def orthogonalised(u: jax.Array) -> jax.Array:
        o, _ = muon.update(u, muon.init(u))
        return o * jnp.linalg.norm(u) / (jnp.linalg.norm(o) + 1e-12)

    labels = _is_hidden_matrix(updates)
    return jax.tree.map(lambda kind, u: orthogonalised(u) if kind == 'muon' else u, labels, updates)


def _by_shared_moment(decay: float) -> optax.GradientTransformation:
    moment = optax.scale_by_rms(decay, eps=0.0, bias_correction=True)

    def update(updates, state, params=None):
        _, state = moment.update(jax.lax.pmean(updates, AXIS), state, params)
        second = optax.tree.bias_correction(state.nu, decay, state.count)
        return jax.tree.map(lambda u, v: u / (jnp.sqrt(v) + 1e-8), updates, second), state

    return optax.GradientTransformation(moment.init, update)


def _muon(beta: float) -> optax.GradientTransformation:
    """Muon scaled by 0.2·√max(m, n) for an m × n matrix, so that AdamW's rates fit (Liu et al., 2025)."""
    match = optax.stateless(lambda u, _: jax.tree.map(lambda x: x * 0.2 * max(x.shape) ** 0.5, u))
    muon = optax.contrib.scale_by_muon(beta=beta, weight_dimension_numbers=_as_matrices)
    return optax.chain(muon, match)


def _as_matrices(updates: PyTree) -> PyTree:
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates)


def _is_hidden_matrix(params: PyTree) -> PyTree:
    return {
        name: {n: 'muon' if x.ndim == 2 else 'adam' for n, x in part.items()}
        if isinstance(part, dict)
        else 'adam'
        for name, part in params.items()
    }
