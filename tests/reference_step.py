"""The oracle of one step of a link with any options: NumPy in float64, of all workers at once.

From the state before it, so that a rounding that falls the other way in float32 does not carry on. Signs are
those of optax: updates are added. Where the elements of a message lie is given, as to `reference_few_bits`.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np
import reference_few_bits


class Message(NamedTuple):
    """What a step may send, element by element: [m]."""

    index: np.ndarray  # of the coordinate; -1 where a block does not own what it covers, and sends zero
    part: np.ndarray
    weight: np.ndarray  # the number of blocks of the part's tensor
    chunk: np.ndarray  # the worker that takes the mean of it, in few bits


class Settings(NamedTuple):
    """The options, and `outer` as rate and momentum."""

    bits: int = 32
    detach: float | str = 0.3
    every: int = 1
    decay: float = 1.0
    outer: tuple[float, float] = (1.0, 0.0)
    average_every: int = 0
    overlap: bool = False
    dtypes: tuple = ()  # of x, coordinate by coordinate; () if float32 holds it


class State(NamedTuple):
    """Before a step or after it."""

    x: np.ndarray  # [d]
    r: np.ndarray  # [K, d]
    velocity: np.ndarray  # [d], of `outer`
    energy: np.ndarray  # [2], running means of ‖mean message‖² and mean_k ‖message‖²
    missing: np.ndarray = np.zeros(0)  # [d], with `outer` what x cannot hold


def exchange(sent, message, bits):
    """The mean [m] of what is sent [K, m], what is kept [K, m], and which elements are ambiguous."""
    if bits < 16:
        return reference_few_bits.exchange(sent, message.part, message.chunk, bits)
    rounded = sent if bits == 32 else sent.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    return rounded.mean(0), sent - rounded, np.zeros(message.part.shape, bool)


def rounded(x, dtypes):
    """Numbers [m] as these dtypes hold them."""
    return np.array([float(np.float32(value).astype(dtype)) for value, dtype in zip(x, dtypes, strict=True)])


def weighted(updates, weights):
    """Updates [K, d], each times K·w_k / Σ w; zero if all weights are."""
    return updates * (len(weights) * weights / max(weights.sum(), 1e-30))[:, None]


def step(s: Settings, t: int, state: State, updates: np.ndarray, message: Message):
    """The state after step t, with updates [K, d]; how inexact x may be, and what is ambiguous: [d]."""
    x, r, velocity, energy, missing = (z.copy() for z in state)
    inexact, ambiguous = np.zeros(x.shape), np.zeros(x.shape, bool)
    pending = r if s.overlap else s.decay * r + updates
    if t > 0 and t % s.every == 0 if s.overlap else (t + 1) % s.every == 0:
        own = message.index >= 0
        at = message.index[own]
        sent = np.where(own, pending[:, message.index], 0)
        mean, kept, near = exchange(sent, message, s.bits)
        velocity[at] = s.outer[1] * velocity[at] + mean[own]
        pending[:, at] = kept[:, own]
        ambiguous[at] = near[own]
        moved = x[at] + s.outer[0] * velocity[at]
        apart = bool(s.dtypes and s.outer[1])  # or its momentum would act on it
        if apart:
            moved = moved + missing[at]
        if s.dtypes:  # what x cannot hold stays with all workers
            ends = [rounded(moved + shift, np.take(s.dtypes, at)) for shift in (0, -3e-6, 3e-6)]
            ambiguous[at] |= ends[1] != ends[2]
            if apart:
                missing[at] = moved - ends[0]
            else:
                pending[:, at] += moved - ends[0]
            moved = ends[0]
        x[at] = moved
        # Sums of bfloat16 numbers are rounded, too.
        inexact[at] = 2**-7 * np.abs(sent).mean(0)[own] if s.bits == 16 else 0
        found = [np.sum(message.weight * sent.mean(0) ** 2), np.mean(sent**2 @ message.weight)]
        energy = 0.98 * energy + 0.02 * np.array(found)
    r = s.decay * pending + updates if s.overlap else pending
    if s.average_every and (t + 1) % s.average_every == 0:
        r = np.broadcast_to(r.mean(0), r.shape)
    return State(x, r, velocity, energy, missing), inexact, ambiguous


def best_detach(energy, num_workers, age_shares):
    """λ* if what workers share in their errors grows with the square of the age, and the rest with it."""
    if num_workers == 1 or not energy[1]:
        return 1 / num_workers
    # ‖e‖² = signal + noise / K and mean ‖e_k‖² = signal + noise.
    signal, noise = np.linalg.solve([[1, 1 / num_workers], [1, 1]], energy)
    signal, noise = age_shares[0] * max(signal, 0), age_shares[1] * max(noise, 0)
    return (signal + noise / num_workers) / (signal + noise)
