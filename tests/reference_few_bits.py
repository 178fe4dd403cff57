"""The oracle of messages in few bits: NumPy in float64, worker by worker, written from the description alone.

Workers round each part of their message in a unit of their own, but for chunk k of worker k, which stays as
it is. Worker k takes the mean of chunk k, rounds it again, and keeps K times what that takes. Which element
lies in which chunk, and in which part, is given.
"""

import ml_dtypes
import numpy as np


def loading(bits):
    """The largest integer times the unit, over the rms."""
    return np.sqrt(2 / np.pi) if bits == 1 else 1.72 * np.log2(2**bits - 1) ** 0.5 - 0.93


def rounded(x, bits):
    """The nearest numbers of one part, and which are so near the middle of two that float32 may take either.

    Of b bits, all but one of 2**b numbers are used, symmetric about zero.
    """
    levels = max(1, 2 ** (bits - 1) - 1)
    largest = np.abs(x).max(initial=0)
    if not largest:
        return np.zeros_like(x), np.zeros(x.shape, bool)
    rms = largest * np.sqrt(np.mean((x / largest) ** 2))
    unit = float(np.float32(rms * loading(bits) / levels).astype(ml_dtypes.bfloat16))
    if bits == 1:
        return unit * np.where(x > 0, 1, -1), np.abs(x) < 1e-5 * unit
    ambiguous = np.abs(np.abs(x / unit) % 1 - 0.5) < 1e-5 * levels
    return unit * np.clip(np.round(x / unit), -levels, levels), ambiguous


def exchange(messages, part, chunk, bits):
    """The mean of messages [K, n], what each worker keeps, [K, n], and which elements are ambiguous, [n].

    Args:
        messages: of all workers.
        part: int [n], of each element.
        chunk: int [n], the worker that takes the mean of it.
    """
    workers = len(messages)
    sent, ambiguous = np.zeros_like(messages), np.zeros(part.shape, bool)
    for k in range(workers):
        travels = (chunk != k) | (workers == 1)
        sent[k] = messages[k]
        for p in set(part[travels].tolist()):
            here = travels & (part == p)
            sent[k, here], near = rounded(messages[k, here], bits)
            ambiguous[here] |= near
    if workers == 1:
        return sent[0], messages - sent, ambiguous
    mean, kept = np.zeros_like(messages[0]), messages - sent
    for k in range(workers):
        for p in set(part[chunk == k].tolist()):
            here = (chunk == k) & (part == p)
            exact = sent[:, here].mean(0)
            mean[here], near = rounded(exact, bits)
            ambiguous[here] |= near
            kept[k, here] += workers * (exact - mean[here])
    return mean, kept, ambiguous
