"""The oracle: Algorithm 1 of Xu & Huang (ICML 2022) as a NumPy loop over steps and workers.

Transcribed from the paper alone, with the paper's signs and line numbers, in float64, without JAX and
independently of the library: e_k is subtracted where the library adds its residual, and x moves by -C(p). The
model is the paper's x in R^d, a single flat vector. A compressor is the sequence C_0, C_1, ... of factors of
p: a 0/1 mask of shape [d] (RBGS, known to all workers) or a number (C(p) = δp).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Point [d], worker k, step t -> ∇f(point; ξ_{k,t}) [d].
Gradient = Callable[[np.ndarray, int, int], np.ndarray]


class Trajectory(NamedTuple):
    """The paper's quantities for t = 0, ..., T."""

    x: np.ndarray  # [T + 1, d], DEF-A's output
    y: np.ndarray  # [T + 1, d], DEF's output
    e: np.ndarray  # [T + 1, K, d], local compression errors


def algorithm_1(
    x0: np.ndarray,
    gradient: Gradient,
    compressor: Sequence,
    learning_rate: Sequence[float],
    *,
    num_workers: int,
    detach: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    average_every: int = 0,
) -> Trajectory:
    """DEF(-A) for len(learning_rate) steps; λ = `detach`, η_t = learning_rate[t], SAEF's period or 0."""
    workers = range(num_workers)
    x = np.array(x0, np.float64)  # line 2
    e = [np.zeros_like(x) for _ in workers]
    m = [np.zeros_like(x) for _ in workers]
    xs, ys, es = [x], [x - np.mean(e, axis=0)], [np.stack(e)]

    for t, eta in enumerate(learning_rate):  # line 3
        sent = []
        for k in workers:  # line 4
            point = x - detach * e[k]
            g = gradient(point, k, t) + weight_decay * point  # lines 5 and 6
            m[k] = momentum * m[k] + g  # Eq. 11
            p = eta * m[k] + e[k]  # line 7
            sent.append(compressor[t] * p)
            e[k] = p - compressor[t] * p  # line 8
        x = x - np.mean(sent, axis=0)  # lines 9 and 10
        if average_every and (t + 1) % average_every == 0:  # SAEF (Xu et al., 2021): average the errors
            e = [np.mean(e, axis=0) for _ in workers]
        xs.append(x)
        ys.append(x - np.mean(e, axis=0))  # line 13
        es.append(np.stack(e))
    return Trajectory(np.stack(xs), np.stack(ys), np.stack(es))


def iterate_average(y: np.ndarray, delta: float) -> np.ndarray:
    """SGD-IA: x_{t+1} = (1 - δ) x_t + δ y_{t+1}, x_0 = y_0 (Eq. 96)."""
    x = [y[0]]
    for y_next in y[1:]:
        x.append((1 - delta) * x[-1] + delta * y_next)
    return np.stack(x)


# --- The test problem: a two-layer perceptron with different data on every worker --------------------------

MLP_SHAPES = [(4, 6), (6, 3), (6,), (3,), ()]  # W1, W2, b1, b2 and a scale s, flattened in this order: d = 52


def mlp_data(num_workers: int, num_steps: int, batch: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [K, T, n, 4] and targets [K, T, n, 3], float32, with another distribution on every worker."""
    rng = np.random.default_rng(num_workers)
    shapes = [(num_workers, num_steps, batch, features) for features in (4, 3)]
    inputs, targets = (rng.normal(size=x) + rng.normal(size=(num_workers, 1, 1, x[-1])) for x in shapes)
    return inputs.astype(np.float32), targets.astype(np.float32)


def mlp_gradient(theta: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Gradient [52] of ½·mean ‖s·(tanh(X W1 + b1) W2 + b2) - Y‖² at theta [52]."""
    w1, w2, b1, b2, s = np.split(theta, [24, 42, 48, 51])
    w1, w2 = w1.reshape(4, 6), w2.reshape(6, 3)
    hidden = np.tanh(inputs @ w1 + b1)
    linear = hidden @ w2 + b2
    d_output = (s * linear - targets) / len(inputs)
    d_linear = s * d_output
    d_hidden = (d_linear @ w2.T) * (1 - hidden**2)
    parts = (
        inputs.T @ d_hidden,
        hidden.T @ d_linear,
        d_hidden.sum(0),
        d_linear.sum(0),
        np.sum(d_output * linear),
    )
    return np.concatenate([np.ravel(part) for part in parts])
