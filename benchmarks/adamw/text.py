"""The running Python's standard library as bytes, split by file into train, validation and test."""

import functools
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from def_jax.trainer.data.text.corpus import split_of

__all__ = ['batches', 'split', 'starts', 'windows']

_LEFT_OUT = ('site-packages', 'test/', 'idlelib/idle_test', 'lib2to3/tests')
_LONGEST = 64  # context: networks of any context draw the same places
_AT_ONCE = 256  # windows


@functools.cache
def split() -> Mapping[str, np.ndarray]:
    """The bytes of each split, uint8 [n]; a file is in the one where the trainer's text has it.

    Earlier runs were divided otherwise: they trained on three quarters of the trainer's test bytes.
    """
    root = Path(sysconfig.get_paths()['stdlib'])
    parts: dict[str, list[bytes]] = {'train': [], 'validation': [], 'test': []}
    for path in sorted(root.rglob('*.py')):
        name = path.relative_to(root).as_posix()
        if name.startswith(_LEFT_OUT) or '/test/' in name or '/tests/' in name:
            continue
        parts[split_of(name)].append(path.read_bytes() + b'\x00')
    return {name: np.frombuffer(b''.join(files), np.uint8) for name, files in parts.items()}


def starts(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Where the sequences of a run begin in the training text."""
    last = len(split()['train']) - _LONGEST - 1
    return np.random.default_rng([17, seed]).integers(0, last, shape)


def windows(text: np.ndarray, number: int, context: int) -> np.ndarray:
    """Windows for evaluation, always the same: uint8 [number, context + 1]."""
    places = np.random.default_rng(5).integers(0, len(text) - context - 1, number)
    return text[places[:, None] + np.arange(context + 1)]


def batches(part: str, number: int, context: int) -> list[np.ndarray]:
    """`windows` of a split in batches."""
    return np.split(windows(split()[part], number, context), number // _AT_ONCE)
