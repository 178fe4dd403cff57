"""Oracles for systems that are special cases of `error_feedback`, each written from that system's own paper.

NumPy in float64, worker by worker, without the library and without residuals: these systems are formulated in
terms of models that drift apart and their differences, not of error feedback. `gradient(model [d], worker,
step)` returns [d]. An inner optimizer maps the list of gradients so far to the latest update, so that each
worker's state is its history.
"""

from collections.abc import Callable, Sequence

import numpy as np
from reference import Gradient

Inner = Callable[[list[np.ndarray]], np.ndarray]


def momentum_sgd(learning_rate: float, momentum: float) -> Inner:
    """Minus the learning rate times the sum of all gradients, each decayed by its age."""

    def update(gradients):
        ages = range(len(gradients) - 1, -1, -1)
        return -learning_rate * sum(momentum**age * g for age, g in zip(ages, gradients, strict=True))

    return update


def adam(learning_rate: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Inner:
    """Adam (Kingma and Ba, 2015, Algorithm 1)."""

    def update(gradients):
        m = v = np.zeros_like(gradients[0])
        for g in gradients:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        t = len(gradients)
        return -learning_rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)

    return update


def local_training(
    x0: np.ndarray,
    gradient: Gradient,
    inner: Inner,
    synchronise: Callable[[int, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    num_workers: int,
    num_steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Workers train their own models; after each step, `synchronise(step, shared, models)` may change them.

    Returns the shared model [T + 1, d] and the workers' models [T + 1, K, d].
    """
    shared = np.array(x0, np.float64)
    models = np.stack([shared] * num_workers)
    histories: list[list[np.ndarray]] = [[] for _ in range(num_workers)]
    trace = [(shared, models)]
    for step in range(num_steps):
        models = models.copy()
        for k in range(num_workers):
            histories[k].append(gradient(models[k], k, step))
            models[k] += inner(histories[k])
        shared, models = synchronise(step, shared, models)
        trace.append((shared, models))
    return tuple(np.stack(parts) for parts in zip(*trace, strict=True))


def local_sgd(every: int):
    """Every H steps, all models are replaced by their mean (Stich, 2019, Algorithm 1)."""

    def synchronise(step, shared, models):
        if (step + 1) % every:
            return shared, models
        mean = models.mean(0)
        return mean, np.stack([mean] * len(models))

    return synchronise


def diloco(every: int, learning_rate: float, momentum: float, fragments: Sequence[np.ndarray] | None = None):
    """An outer step with Nesterov momentum every H steps (Douillard et al., 2023, Algorithm 1).

    With `fragments`, 0/1 masks [d], each outer step updates only the next one of them (Streaming DiLoCo,
    Douillard et al., 2025, Algorithm 2, with α = 0 and no overlap).
    """
    velocity = 0.0

    def synchronise(step, shared, models):
        nonlocal velocity
        if (step + 1) % every:
            return shared, models
        sync = (step + 1) // every - 1
        mask = np.ones_like(shared) if fragments is None else fragments[sync]
        outer_gradient = mask * (shared - models.mean(0))
        velocity = np.where(mask, momentum * velocity + outer_gradient, velocity)
        new = shared - mask * learning_rate * (outer_gradient + momentum * velocity)
        return new, np.where(mask, new, models)

    return synchronise


def sparta(masks: Sequence[np.ndarray]):
    """A random fraction of the parameters is averaged at every step (Exo Research, SPARTA, 2025)."""

    def synchronise(step, shared, models):
        mean = models.mean(0)
        # The shared model holds the latest average of each parameter.
        return np.where(masks[step], mean, shared), np.where(masks[step], mean, models)

    return synchronise


def random_replicator(masks: Sequence[np.ndarray], decay: float):
    """DeToNATION's random replicator (From et al., 2025, Algorithm 1), an exchange of `reference_baselines`.

    m_k ← β·m_k + g_k;  q_k = the entries of m_k in the step's random selection;  m_k ← m_k - q_k;
    x ← x - η·mean_k q_k.
    """
    step, m = 0, 0.0

    def exchange(gradients):
        nonlocal step, m
        m = decay * m + gradients
        q = masks[step] * m
        step, m = step + 1, m - q
        return q.mean(0)

    return exchange
