"""The text data sets, by name, and how they and any other text of TFDS are opened."""

import functools
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from def_jax.checks import check_integer
from def_jax.trainer.data import in_memory
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text import corpus
from def_jax.trainer.data.text.windows import ROLES, Windows, dataset_of_windows

__all__ = ['TEXTS', 'open_text']


def open_text(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    feature: str = 'text',
    train: str = 'train',
    validation: str = 'validation',
    test: str = 'test',
    context: int = 64,
) -> Dataset:
    """Opens a text of TFDS, downloading and preparing it if necessary.

    The first call writes each split's bytes beside TFDS's files, see `corpus`; later ones only map them.

    Args:
        name: its name in TFDS, with its configuration if it has several.
        data_dir: TFDS's directory of prepared data sets. None means TFDS's default: the environment variable
            TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        feature: the feature that holds a document.
        train: the training split, which may be a slice such as 'train[1%:]'.
        validation: the validation split, likewise.
        test: the test split, likewise.
        context: the length of a window, in bytes.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: if it is missing and cannot be prepared.
        ValueError: if the context is not positive, the data set lacks the feature, a split has no text, or
            the bytes cannot be written.
    """
    check_integer('context', context, 1, 'the length of a window, in bytes')
    builder = in_memory.prepared_builder(name, data_dir)
    if feature not in builder.info.features:
        raise ValueError(
            f'Data set {name!r} has no feature {feature!r}; it has {sorted(builder.info.features)}.'
        )
    names = zip(ROLES, (train, validation, test), strict=True)
    return dataset_of_windows(
        name, [Windows(_corpus(builder, name, feature, role, split), context) for role, split in names]
    )


def _corpus(builder: Any, name: str, feature: str, role: str, split: str) -> corpus.Corpus:
    """The bytes of a split, written if this is the first time that they are needed."""
    folder = Path(builder.data_path) / 'bytes' / f'{role}_{feature}_{split}'  # of other settings, too
    if not folder.exists():
        data = builder.as_dataset(split=split, shuffle_files=False)
        try:
            corpus.write_corpus(folder, (each[feature] for each in in_memory.import_tfds().as_numpy(data)))
        except OSError as error:
            raise ValueError(
                f'the bytes of data set {name!r} cannot be written to {folder} ({error.strerror or error}). '
                'Set the environment variable TFDS_DATA_DIR, or --config.data_dir, to a folder that can be '
                'written, or free some space.'
            ) from error
    opened = corpus.open_corpus(folder)
    if not len(opened):
        raise ValueError(f'split {split!r} of data set {name!r} in {builder.data_path} has no text.')
    return opened


TEXTS: Mapping[str, Callable[..., Dataset]] = {
    'python_stdlib': functools.partial(open_text, f'python_stdlib/{platform.python_version()}'),
    'tiny_shakespeare': functools.partial(open_text, 'tiny_shakespeare'),
    'pg19': functools.partial(open_text, 'pg19', feature='book_text'),
    'lm1b': functools.partial(open_text, 'lm1b', train='train[1%:]', validation='train[:1%]'),
}
