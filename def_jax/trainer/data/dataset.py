"""A data set as the trainer sees it, however its examples are stored."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ['Batch', 'Dataset', 'DatasetSpec', 'Split', 'check_labels', 'digest_of']

_MARKED = 64  # examples of a split without a checksum that tell it from others
Batch = dict[str, np.ndarray]  # arrays [k, b, ...]: b examples for each of this process's k workers


class Split(Protocol):
    """The examples of one split, in a fixed order."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> 'Split':
        """The examples at positions `start` to `stop` - 1."""
        ...

    def train_batches(
        self, *, seed: int, first_step: int, batch_size: int, num_workers: int, workers: Sequence[int] | None
    ) -> Iterator[Batch]:
        """The batches of `first_step` and all later steps; each depends only on the seed and the step.

        In an elastic run, the batch need not divide among the workers: its last examples are left out.
        """
        ...

    def test_batches(
        self, *, batch_size: int, num_workers: int, workers: Sequence[int] | None
    ) -> Iterator[Batch]:
        """One pass over the split in batches of the same shape; `mask` [k, b] is 0 on padding in the last."""
        ...


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What the input pipeline needs to know about a data set of images."""

    name: str  # in TFDS
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int
    mean: tuple[float, ...]  # of each channel over the training images, with pixels scaled to [0, 1]
    std: tuple[float, ...]  # likewise
    crop_padding: int  # zero pixels added on each side before a training image is cropped
    flip: bool  # training images, horizontally at random
    streamed: bool = False  # read during training, as it is too large for memory


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a data set, and what tasks and models need to know about it.

    Attributes:
        train: what is trained on.
        test: what finished choices are evaluated on.
        validation: what choices are made on; None if the data set has no such split.
        spec: what its tasks need to know, e.g. a `DatasetSpec`.
        model_options: arguments for factories of models, e.g. {'num_classes': 10}. A factory gets all of
            them, but for those that `config.model_options` overrides. JSON, or scalars of NumPy.
        unit: what is counted, in the plural: 'images', 'tokens'.
        units_per_example: how many of them an example has.
        about: what a result records of the data, e.g. their version and checksums; JSON.

    Raises:
        ValueError: at construction, if the spec is a `DatasetSpec` and a label in memory is no class.
    """

    train: Split
    test: Split
    validation: Split | None = None
    spec: Any = None
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unit: str = 'examples'
    units_per_example: int = 1
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.spec, DatasetSpec):
            for name, split in (('train', self.train), ('validation', self.validation), ('test', self.test)):
                if 'label' in (arrays := getattr(split, 'arrays', {})):
                    check_labels(name, arrays['label'], self.spec.num_classes)

    def limited(
        self,
        *,
        train_examples: int = 0,
        validation_examples: int = 0,
        test_examples: int = 0,
        evaluate_train_examples: int = 0,
    ) -> 'Dataset':
        """The data set with a part of its examples.

        Args:
            train_examples: number of training examples to use, from the first; 0 uses all that are left.
            validation_examples: number of training examples to hold out for validation, from the last; they
                do not depend on train_examples. 0 keeps the data set's own validation split, if it has one.
            test_examples: number of test examples to use, from the first; 0 uses all.
            evaluate_train_examples: how many of the training examples there have to be.

        Raises:
            ValueError: if a split is smaller than requested.
        """
        train, validation, size = self.train, self.validation, len(self.train)
        if validation_examples:
            if not 0 < validation_examples < size:
                why = f'{size}, the size of the training split: the rest is trained on'
                raise ValueError(f'{validation_examples=} must be less than {why}.')
            validation = train.part(size - validation_examples, size)
            train = train.part(0, size - validation_examples)
        train = _first(train, train_examples, 'train_examples')
        _first(train, evaluate_train_examples, 'evaluate_train_examples')
        test = _first(self.test, test_examples, 'test_examples')
        return dataclasses.replace(self, train=train, validation=validation, test=test)

    def evaluated(self, evaluate_on: str) -> Split:
        """The split to evaluate on, 'test' or 'validation'; ValueError if there is no validation split."""
        split = self.validation if evaluate_on == 'validation' else self.test
        if split is None:
            cure = 'Hold out training examples from the start, e.g. --config.validation_examples=200'
            need = f'{evaluate_on=} needs a validation split, and the data set has none of its own'
            raise ValueError(f'{need}. {cure}.')
        return split

    def fingerprint(self) -> str:
        """A digest of the splits, by their `checksum` or their first examples, and of what describes them."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        marks = {role: [len(split), _mark(split)] for role, split in splits.items() if split is not None}
        known = [marks, self.spec, dict(self.model_options), dict(self.about)]
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=_described).encode()).hexdigest()


def check_labels(split: str, labels: Any, num_classes: int) -> None:
    """Raises ValueError unless labels are classes: JAX would wrap others, or make the loss NaN."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels of the split {split!r} must be integers, but are {labels.dtype}.')
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        worst = labels.min() if labels.min() < 0 else labels.max()
        cure = 'Count classes from 0, and leave out examples without one'
        allowed = f'must be in [0, {num_classes - 1}], as {num_classes=}'
        raise ValueError(f'labels of the split {split!r} {allowed}, but one is {worst}. {cure}.')


def _first(split: Split, count: int, name: str) -> Split:
    if count > len(split):
        raise ValueError(f'{name}={count} must be at most {len(split)}, the size of that split; 0 uses all.')
    return split.part(0, count) if count else split


def _described(value: Any) -> str:
    """The same in all processes: what Python prints by default holds an address in memory."""
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value))


def _mark(split: Split) -> str:
    if checksum := getattr(split, 'checksum', ''):
        return checksum
    size = min(len(split), _MARKED)
    return digest_of(next(iter(split.test_batches(batch_size=size, num_workers=1, workers=None))))


def digest_of(arrays: Any) -> str:
    """A digest of arrays by name: their dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f'{name} {array.dtype} {array.shape} '.encode())
        objects = array.dtype == object
        digest.update(repr(array.tolist()).encode() if objects else np.ascontiguousarray(array).data)
    return digest.hexdigest()
