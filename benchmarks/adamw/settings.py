"""One run's settings, and the optimizer that they describe."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import def_jax

__all__ = ['Setting', 'applied', 'chain', 'inner']

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run: a line of the runs holds these and what came of them.

    `identity` sends everything, every `every` steps; otherwise `random_block` sends one element in `ratio`.
    `v` is whose second moment divides: per-worker, or that of the mean gradient, which an oracle
    communicates at every step. Each of the `workers` takes `sequences` at a step. With `muon_outside`, the
    workers have AdamW, and the mean messages of hidden matrices are orthogonalised.
    """

    note: str = ''
    model: str = '33k'
    steps: int = 1200
    seed: int = 0
    method: Literal['dense', 'def'] = 'def'
    inner: Literal['adamw', 'muon', 'muon_outside'] = 'adamw'
    lr: float = 8e-3
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    wd: float = 0.1
    warmup: float = 0.1
    ratio: float = 16
    order: str = 'shuffled'
    allocation: str = 'balanced'
    detach: float = 0.1
    every: int = 1
    decay: float = 1.0
    outer_lr: float = 1.0
    outer_mu: float = 0.0
    identity: bool = False
    v: Literal['own', 'oracle'] = 'own'
    workers: int = 8
    sequences: int = 4
    wire_dtype: str = 'float32'
    test: bool = False

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> 'Setting':
        """The settings of a run, without its note."""
        names = {field.name for field in dataclasses.fields(cls)} - {'note'}
        return cls(**{name: value for name, value in line.items() if name in names})

    @property
    def structure(self) -> 'Setting':
        """The same for all settings that one compiled program serves: the others are its arguments."""
        return dataclasses.replace(
            self,
            note='',
            seed=0,
            lr=0.0,
            b1=0.0,
            b2=0.0,
            wd=0.0,
            detach=0.0,
            outer_lr=0.0,
            outer_mu=0.0,
            test=False,
        )


class _Moments(NamedTuple):
    count: jax.Array
    mu: PyTree
    nu: PyTree


def inner(setting: Setting, hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    """AdamW or Muon with AdamW for what is no matrix; `hyper` holds lr, b1, b2 and wd."""
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, int(setting.warmup * setting.steps), setting.steps)
    adam = _adam(setting, hyper['b1'], hyper['b2'])
    if setting.inner == 'muon':
        adam = optax.multi_transform({'muon': _muon(hyper['b1']), 'adam': adam}, _is_hidden_matrix)
    return optax.chain(
        adam,
        optax.add_decayed_weights(
            hyper['wd'], mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        ),
        optax.scale_by_learning_rate(lambda count: hyper['lr'] * unit(count)),
    )


def chain(setting: Setting, hyper: Mapping[str, Any]) -> optax.GradientTransformation:
    """The optimizer of one worker with its link, whose λ and outer rates are in the state."""
    blocks = def_jax.random_block(setting.ratio, order=setting.order, allocation=setting.allocation)
    compressor = def_jax.identity() if setting.identity else blocks
    outer = optax.inject_hyperparams(optax.sgd, static_args=('nesterov',))(1.0, 0.5, nesterov=True)
    link = def_jax.error_feedback(
        compressor,
        'workers',
        detach=0.5,
        every=setting.every,
        decay=setting.decay,
        outer=outer,
        wire_dtype=setting.wire_dtype,
    )
    return optax.chain(inner(setting, hyper), link)


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


def _adam(setting: Setting, b1: Any, b2: Any) -> optax.GradientTransformation:
    """optax.scale_by_adam, also with the mean gradient's second moment; b1 and b2 may be traced."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _Moments(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        squared = jax.lax.pmean(grads, 'workers') if setting.v == 'oracle' else grads
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, squared)
        first, second = 1 - b1**count, 1 - b2**count
        scaled = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + setting.eps), mu, nu)
        return scaled, _Moments(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _muon(beta: Any) -> optax.GradientTransformation:
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
