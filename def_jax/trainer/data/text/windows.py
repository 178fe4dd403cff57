"""Batches of a corpus: windows of consecutive bytes, in which documents are kept apart.

Documents are packed without gaps, and only the last window has padding. Every byte is predicted exactly once,
from the byte before its window and those that precede it in its window and document; the first byte of a
document follows the mark START.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from def_jax.trainer.data.dataset import Batch, Dataset
from def_jax.trainer.data.order import Readable
from def_jax.trainer.data.text.corpus import START, VOCAB_SIZE, Corpus

__all__ = ['ROLES', 'Windows', 'dataset_of_windows']

ROLES = ('train', 'validation', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class Windows(Readable):
    """A split of a text data set, whose examples are windows of the corpus.

    A batch holds, int32 [k, b, context]: `tokens`, what the model sees; `targets`, the byte that follows
    each; `segments`, the number of the document in its window, from 1, and 0 on padding.

    >>> corpus = Corpus(np.frombuffer(b'abcdeXY', np.uint8), np.array([5, 7]))
    >>> windows = Windows(corpus, context=4).take(np.array([0, 1]))
    >>> windows['tokens'].tolist() == [[START, *b'abc'], [*b'd', START, *b'X', START]]
    True
    >>> windows['targets'].tolist() == [[*b'abcd'], [*b'eXY', START]]
    True
    >>> windows['segments'].tolist()
    [[1, 1, 1, 1], [1, 2, 2, 0]]
    """

    corpus: Corpus
    context: int  # the length of a window, in bytes
    start: int = 0  # the number of the first window to use
    stop: int | None = None  # the number after the last; None for all

    def __len__(self) -> int:
        return (-(-len(self.corpus) // self.context) if self.stop is None else self.stop) - self.start

    @property
    def checksum(self) -> str:
        """Of the corpus, with the windows in use, for `fingerprint`; empty if the corpus has none."""
        whole = self.corpus.checksum
        return whole and f'{whole} {self.context} {self.start} {len(self)}'

    def part(self, start: int, stop: int) -> 'Windows':
        """The windows at positions `start` to `stop` - 1 of this split."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def take(self, positions: np.ndarray) -> Batch:
        """The windows at these positions of the split, int64 [...], as arrays [..., context]."""
        text, ends = self.corpus.text, self.corpus.ends
        targets_at = (self.start + positions)[..., None] * self.context + np.arange(self.context)
        real = targets_at < len(text)
        documents = np.searchsorted(ends, targets_at, side='right')
        starts = (targets_at == 0) | (ends[documents - 1] == targets_at)  # also where padding begins
        before = text[np.minimum(np.maximum(targets_at, 1), len(text)) - 1]
        return {
            'tokens': np.where(starts | ~real, START, before).astype(np.int32),
            'targets': np.where(real, text[np.minimum(targets_at, len(text) - 1)], START).astype(np.int32),
            'segments': np.where(real, documents - documents[..., :1] + 1, 0).astype(np.int32),
        }


def dataset_of_windows(name: str, splits: Sequence[Windows]) -> Dataset:
    """A text data set of splits in the order of `ROLES`."""
    named: dict[str, Any] = dict(zip(ROLES, splits, strict=True))
    return Dataset(
        **named,
        about={'name': name, **{role: split.corpus.about for role, split in named.items()}},
        model_options={'vocab_size': VOCAB_SIZE},
        unit='tokens',
        units_per_example=splits[0].context,
    )
