"""The text data sets, by name, and how they are opened."""

import dataclasses
import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from def_jax.checks import check_integer, look_up
from def_jax.trainer.data import in_memory
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text import corpus
from def_jax.trainer.data.text.windows import ROLES, Windows, dataset_of_windows

__all__ = ['TEXTS', 'TextSpec', 'load_windows', 'open_text', 'open_tfds_text']


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What the input pipeline needs to know about a text data set.

    Attributes:
        name: its name in `TEXTS`.
        tfds_name: its name in TFDS, with its configuration if it has several.
        feature: the feature that holds a document.
        splits: TFDS's names for the training, the validation and the test split, slices among them.
    """

    name: str
    tfds_name: str
    feature: str = 'text'
    splits: tuple[str, str, str] = ('train', 'validation', 'test')


TEXTS: Mapping[str, TextSpec] = {
    spec.name: spec
    for spec in (
        TextSpec('python_stdlib', f'python_stdlib/{platform.python_version()}'),
        TextSpec('tiny_shakespeare', 'tiny_shakespeare'),
        TextSpec('pg19', 'pg19', feature='book_text'),
        TextSpec('lm1b', 'lm1b', splits=('train[1%:]', 'train[:1%]', 'test')),
    )
}


def load_windows(
    text: TextSpec | str, context: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Windows, Windows, Windows]:
    """Opens a text data set, downloading and preparing it if necessary.

    The first call writes each split's bytes beside TFDS's files, see `corpus`; later ones only map them.

    Args:
        text: a name in `TEXTS`, or the description of any TFDS data set with a feature of text.
        context: the length of a window, in bytes.
        data_dir: TFDS's directory of prepared data sets. None means TFDS's default: the environment variable
            TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
        The training, validation and test split.

    Raises:
        FileNotFoundError: if the data set is missing and cannot be prepared.
        ValueError: if the name is unknown, the context is not positive, the data set lacks the feature, a
            split has no text, or the bytes cannot be written.
    """
    spec = _spec(text)
    check_integer('context', context, 1, 'the length of a window, in bytes')
    builder = in_memory.prepared_builder(spec.tfds_name, data_dir)
    if spec.feature not in builder.info.features:
        raise ValueError(
            f'Data set {spec.name!r} has no feature {spec.feature!r}; it has {sorted(builder.info.features)}.'
        )
    read = functools.partial(_corpus, builder, spec)
    train, validation, test = (
        Windows(read(role, split), context) for role, split in zip(ROLES, spec.splits, strict=True)
    )
    return train, validation, test


def open_text(
    text: TextSpec | str, data_dir: str | os.PathLike[str] | None = None, *, context: int = 64
) -> Dataset:
    """Opens a text data set for the trainer; the arguments and errors are those of `load_windows`."""
    spec = _spec(text)
    return dataset_of_windows(spec.tfds_name, load_windows(spec, context, data_dir))


def open_tfds_text(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    feature: str = 'text',
    train: str = 'train',
    validation: str = 'validation',
    test: str = 'test',
    context: int = 64,
) -> Dataset:
    """Opens any text of TFDS by its name; the splits may be slices, such as 'train[:1%]'."""
    return open_text(TextSpec(name, name, feature, (train, validation, test)), data_dir, context=context)


def _spec(text: TextSpec | str) -> TextSpec:
    return look_up('dataset', text, TEXTS) if isinstance(text, str) else text


def _corpus(builder: Any, spec: TextSpec, role: str, split: str) -> corpus.Corpus:
    """The bytes of a split, written if this is the first time that they are needed."""
    tfds = in_memory.import_tfds()
    folder = Path(builder.data_path) / 'bytes' / f'{role}_{spec.feature}_{split}'  # of other specs, too
    if not folder.exists():
        examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        try:
            corpus.write_corpus(folder, (example[spec.feature] for example in examples))
        except OSError as error:
            raise ValueError(
                f'the bytes of data set {spec.name!r} cannot be written to {folder} '
                f'({error.strerror or error}). Set the environment variable TFDS_DATA_DIR, or '
                '--config.data_dir, to a folder that can be written, or free some space.'
            ) from error
    opened = corpus.open_corpus(folder)
    if not len(opened):
        raise ValueError(f'split {split!r} of data set {spec.name!r} in {builder.data_path} has no text.')
    return opened
