"""Oracles for the baselines, each written from its own paper or code: NumPy in float64, worker by worker.

`gradient(x [d], worker, step)` returns [d]. An exchange maps the workers' gradients [K, d] of one step to the
update that all apply [d], and keeps what it remembers; it works tensor by tensor, on `shapes`.
"""

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import scipy.fft
from reference import Gradient

Exchange = Callable[[np.ndarray], np.ndarray]


def train(
    x0: np.ndarray,
    gradient: Gradient,
    exchange: Exchange,
    learning_rate: Sequence[float],
    *,
    num_workers: int,
    momentum: float = 0.0,
    inside: bool = False,
) -> np.ndarray:
    """x [T + 1, d]: momentum SGD on what is exchanged, or the exchange of each worker's momentum SGD."""
    x = np.array(x0, np.float64)
    m, xs = np.zeros((num_workers, *x.shape) if inside else x.shape), [x]
    for t, eta in enumerate(learning_rate):
        gradients = np.stack([gradient(x, k, t) for k in range(num_workers)])
        m = momentum * m + (gradients if inside else exchange(gradients))
        x = x - (exchange(eta * m) if inside else eta * m)
        xs.append(x)
    return np.stack(xs)


def _tensors(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _per_tensor(exchanges: Sequence[Callable], shapes: Sequence[tuple[int, ...]]) -> Exchange:
    """One exchange per tensor, each with a memory of its own."""

    def exchange(gradients):
        workers = [_tensors(g, shapes) for g in gradients]
        updates = [
            f(np.stack(tensors)) for f, tensors in zip(exchanges, zip(*workers, strict=True), strict=True)
        ]
        return np.concatenate([np.ravel(update) for update in updates])

    return exchange


def powersgd(shapes: Sequence[tuple[int, ...]], rank: int, first: Sequence[np.ndarray]) -> Exchange:
    """PyTorch's powerSGD_hook with error feedback and warm start, after its dense first iterations.

    A JAX kernel [..., features] is the transpose of PyTorch's [features, ...]: Q there multiplies the inputs,
    here the features, and only which side is orthonormal at the end depends on it. `first` holds Q [features,
    rank] of every tensor.
    """

    def of_tensor(shape, q):
        error = None

        def exchange(gradients):
            nonlocal q, error
            if len(shape) < 2:
                return gradients.mean(0)
            matrices = gradients.reshape(len(gradients), -1, shape[-1])
            n, m = matrices.shape[1:]
            r = min(n, m, rank)
            if (n + m) * r * 2 >= n * m:  # _should_compress with min_compression_rate=2
                return gradients.mean(0)
            if error is not None:
                matrices = matrices + error
            p = np.mean([matrix @ q for matrix in matrices], axis=0)
            for i in range(r):  # _orthogonalize: Gram-Schmidt
                p[:, i] /= np.linalg.norm(p[:, i])
                p[:, i + 1 :] -= np.outer(p[:, i], p[:, i] @ p[:, i + 1 :])
            q = np.mean([matrix.T @ p for matrix in matrices], axis=0)
            error = matrices - p @ q.T
            return (p @ q.T).reshape(shape)

        return exchange

    return _per_tensor([of_tensor(shape, q) for shape, q in zip(shapes, first, strict=True)], shapes)


def _feedback(compress: Callable, shapes: Sequence[tuple[int, ...]]) -> Exchange:
    """Each worker sends C(gradient + memory) of every tensor [K, ...], and remembers the rest."""

    def of_tensor():
        memory = 0.0

        def exchange(gradients):
            nonlocal memory
            sent = compress(gradients + memory)
            memory = gradients + memory - sent
            return sent.mean(0)

        return exchange

    return _per_tensor([of_tensor() for _ in shapes], shapes)


def top_k(shapes: Sequence[tuple[int, ...]], ratio: float) -> Exchange:
    """Sparsified SGD with memory (Stich et al., 2018, Algorithm 1), in parallel, of every tensor.

    Values travel in bfloat16.
    """

    def compress(pending):
        rows = pending.reshape(len(pending), -1)
        sent = np.zeros_like(rows)
        for row, kept in zip(rows, sent, strict=True):
            largest = np.argsort(-np.abs(row))[: max(1, int(len(row) // ratio))]
            kept[largest] = row[largest].astype(np.float32).astype(ml_dtypes.bfloat16)
        return sent.reshape(pending.shape)

    return _feedback(compress, shapes)


def sign_ef(shapes: Sequence[tuple[int, ...]]) -> Exchange:
    """EF-signSGD (Karimireddy et al., 2019, Algorithm 1): Δ = ‖p‖₁ / d · sign(p), e ← p - Δ."""

    def compress(p):
        norms = np.abs(p).reshape(len(p), -1).sum(1).reshape(-1, *[1] * (p.ndim - 1))
        return norms / p[0].size * np.sign(p)

    return _feedback(compress, shapes)


def onebit_adam(
    shapes: Sequence[tuple[int, ...]],
    *,
    freeze_after: int,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Exchange:
    """1-bit Adam (Tang et al., 2021, Algorithm 1) without the second compression by the server."""

    def of_tensor(shape):
        m = v = np.zeros(shape)
        error, step = 0.0, 0

        def exchange(gradients):
            nonlocal m, v, error, step
            step += 1
            if step <= freeze_after:
                g = gradients.mean(0)
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            else:
                own = b1 * m + (1 - b1) * gradients + error
                scale = np.sqrt((own**2).reshape(len(own), -1).mean(1)).reshape(-1, *([1] * len(shape)))
                error = own - scale * np.sign(own)
                m = (scale * np.sign(own)).mean(0)
            return m / (np.sqrt(v) + eps)

        return exchange

    return _per_tensor([of_tensor(shape) for shape in shapes], shapes)


def _edge(n: int, most: int) -> int:
    """Of a chunk: the largest divisor."""
    return max(d for d in range(1, min(n, most) + 1) if n % d == 0)


def demo(shapes: Sequence[tuple[int, ...]], ratio: float, chunk: int, decay: float = 0.999) -> Exchange:
    """DeMo as in its code (github.com/bloc97/DeMo, demo.py), but for the learning rate in the momentum.

    Coefficients travel in bfloat16.
    """

    def of_tensor(shape):
        rows, columns = (int(np.prod(shape[:-1])), shape[-1]) if shape else (1, 1)
        h, w = _edge(rows, chunk), _edge(columns, chunk)
        k = max(1, int(h * w // ratio))
        delta = 0.0
        places = [(slice(i, i + h), slice(j, j + w)) for i in range(0, rows, h) for j in range(0, columns, w)]

        def exchange(gradients):
            nonlocal delta
            delta = decay * delta + gradients.reshape(-1, rows, columns)
            update = np.zeros((rows, columns))
            for place in places:
                sent = []
                for momentum in delta:
                    coefficients = scipy.fft.dctn(momentum[place], norm='ortho').ravel()
                    largest = np.argsort(-np.abs(coefficients))[:k]
                    kept = np.zeros(h * w)
                    kept[largest] = coefficients[largest].astype(np.float32).astype(ml_dtypes.bfloat16)
                    sent.append({i: kept[i] for i in largest})
                    momentum[place] -= scipy.fft.idctn(kept.reshape(h, w), norm='ortho')
                mean = np.zeros(h * w)
                for i in set().union(*sent):  # scatter_reduce_ with reduce='mean'
                    mean[i] = np.mean([chosen[i] for chosen in sent if i in chosen])
                update[place] = np.sign(scipy.fft.idctn(mean.reshape(h, w), norm='ortho'))
            return update.reshape(shape)

        return exchange

    return _per_tensor([of_tensor(shape) for shape in shapes], shapes)


def ef21_sgdm(masks: Sequence[np.ndarray], averaging: float) -> Exchange:
    """EF21-SGDM (Fatkhullin et al., 2023, Algorithm 1), v and g started from the first gradients."""
    step, v, g = 0, None, None

    def exchange(gradients):
        nonlocal step, v, g
        if step == 0:
            v = g = gradients
        else:
            v = (1 - averaging) * v + averaging * gradients
            g = g + masks[step] * (v - g)
        step += 1
        return g.mean(0)

    return exchange


def cser(
    x0: np.ndarray,
    gradient: Gradient,
    c1: Sequence[np.ndarray],
    c2: Sequence[np.ndarray],
    learning_rate: Sequence[float],
    *,
    every: int,
    num_workers: int,
    momentum: float = 0.0,
) -> np.ndarray:
    """The workers' models [T + 1, K, d] in CSER (Xie et al., 2020, Algorithm 2 with PSync, Algorithm 1).

    `c1` holds the masks of the resets, `c2` those of every step.
    """

    def partially_synchronised(vectors, mask):
        left = vectors - mask * vectors
        return (mask * vectors).mean(0) + left, left

    models = np.stack([np.array(x0, np.float64)] * num_workers)
    errors, m = np.zeros_like(models), np.zeros_like(models)
    history = [models]
    for t, eta in enumerate(learning_rate):
        m = momentum * m + np.stack([gradient(models[k], k, t) for k in range(num_workers)])
        step, left = partially_synchronised(eta * m, c2[t])
        models, errors = models - step, errors - left
        if (t + 1) % every == 0:
            synchronised, left = partially_synchronised(errors, c1[(t + 1) // every - 1])
            models, errors = models - errors + synchronised, left
        history.append(models)
    return np.stack(history)


def sparse_loco(shapes: Sequence[tuple[int, ...]], *, ratio: float, chunk: int, every: int):
    """SparseLoCo (Sarfi et al., 2025, Algorithm 1, α = 1), a change of `reference_family.local_training`.

    Chunks, top-k and the quantiser as in its code (github.com/tplr-ai/SparseLoCo): four bins over six
    standard deviations, and a lookup table of the means of the bins, tensor by tensor.
    """

    def compressed(e):
        rows, columns = (int(np.prod(e.shape[:-1])), e.shape[-1]) if e.ndim > 1 else (1, e.size)
        matrix = e.reshape(rows, columns)
        h, w = (_edge(rows, chunk), _edge(columns, chunk)) if e.ndim > 1 else (1, _edge(columns, chunk**2))
        k = min(h * w, max(1, int(h * w * 32 // 18 // ratio)))
        chosen = []
        for i in range(0, rows, h):
            for j in range(0, columns, w):
                block = matrix[i : i + h, j : j + w]
                for place in np.argsort(-np.abs(block), axis=None, kind='stable')[:k]:
                    chosen.append((i + place // w, j + place % w))
        values = np.array([matrix[place] for place in chosen])
        centred = values - values.mean()
        scale = 6 * np.linalg.norm(centred) / np.sqrt(max(1, len(values) - 1)) / 4 or 1.0
        codes = np.clip(np.round(centred / scale) + 2, 0, 3)
        sent = np.zeros_like(matrix)
        for place, code in zip(chosen, codes, strict=True):
            sent[place] = values[codes == code].mean()
        return sent.reshape(e.shape)

    e = 0.0

    def synchronise(step, shared, models):
        nonlocal e
        if (step + 1) % every:
            return shared, models
        e = 0.95 * e + (shared - models)
        sent = np.stack([np.concatenate([compressed(p).ravel() for p in _tensors(w, shapes)]) for w in e])
        e, shared = e - sent, shared - sent.mean(0)
        return shared, np.stack([shared] * len(models))

    return synchronise
