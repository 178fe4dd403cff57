"""The text data sets, by name, and how they, any other text of TFDS and a folder of files are opened."""

import codecs
import functools
import hashlib
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from def_jax.ground.arguments import check_integer
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.prepared import examples, prepared_builder
from def_jax.trainer.data.text import corpus
from def_jax.trainer.data.text.stdlib import stdlib_texts
from def_jax.trainer.data.text.windows import ROLES, Windows, dataset_of_windows

__all__ = ['TEXTS', 'open_stdlib', 'open_text', 'open_text_folder']

_PIECE = 1 << 20


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
        train, validation, test: the splits, which may be slices such as 'train[1%:]'.
        context: the length of a window, in bytes.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: if it is missing and cannot be prepared.
        ValueError: if the context is not positive, the data set lacks the feature, a split has no text, or
            the bytes cannot be written.
    """
    check_integer('context', context, 1, 'the length of a window, in bytes')
    builder = prepared_builder(name, data_dir)
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
        documents = (each[feature] for each in examples(builder, split))
        try:
            corpus.write_corpus(folder, documents)
        except OSError as error:
            what = f'the bytes of data set {name!r} cannot be written to {folder}'
            cure = 'Free some space, or set TFDS_DATA_DIR or --config.data_dir to another folder'
            raise ValueError(f'{what} ({error.strerror or error}). {cure}.') from error
    opened = corpus.open_corpus(folder)
    if not len(opened):
        raise ValueError(f'split {split!r} of data set {name!r} in {builder.data_path} has no text.')
    return opened


def open_stdlib(*, folder: str | os.PathLike[str] | None = None, context: int = 64) -> Dataset:
    """Reads the modules of Python's standard library, without tests, divided as by `open_text_folder`."""
    texts = stdlib_texts(Path(folder) if folder else None)
    # The order in which TFDS shuffles them: a seed means the batches that it has always meant.
    order = sorted(texts, key=lambda path: hashlib.md5(f'{corpus.split_of(path)}{path}'.encode()).digest())
    name = f'python_stdlib/{platform.python_version()}' if folder is None else f'python_stdlib {folder}'
    return _of_files(name, order, texts.__getitem__, context)


def open_text_folder(path: str | os.PathLike[str], *, context: int = 64) -> Dataset:
    """Reads the UTF-8 files of a folder and of those in it, but for hidden ones. Links are followed, and a
    file that has several paths is read once.

    A byte order mark is not part of a text.

    Args:
        path: the folder. A hash of a file's path within it decides its split: about a tenth of the files for
            validation, a tenth for testing. So a file keeps its split when others are added. Where that
            leaves a split without text, as for a few files, each is cut instead: its last tenth is for
            testing, the one before for validation.
        context: the length of a window, in bytes.

    Returns:
        The data set; its documents are in the order of their paths.

    Raises:
        ValueError: if there is no such folder, a file is not UTF-8 or not a regular file, or there is not
            enough text for three splits.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f'path={str(path)!r} is not a folder.')
    real = {file.relative_to(root).as_posix(): file.resolve() for file in _files(root)}
    home = root.resolve()
    links_last = sorted(real, key=lambda path: (real[path] != home / path, path))
    paths = sorted({real[path]: path for path in reversed(links_last)}.values())
    return _of_files(f'text_folder {root.name}', paths, lambda path: _read(root / path), context)


def _files(root: Path) -> Iterator[Path]:
    """All files but hidden ones; a link to a folder that it lies in is passed over."""
    for folder, inner, names in os.walk(root, followlinks=True):
        real = {name: Path(folder, name).resolve() for name in inner if name[0] != '.'}
        inner[:] = [name for name in real if not Path(folder).resolve().is_relative_to(real[name])]
        yield from (Path(folder, name) for name in names if name[0] != '.')


def _cut(text: bytes) -> list[memoryview]:
    """A text for training, validation and testing, cut where a line or at least a character begins."""
    places = [0]
    for tenths in (8, 9):
        place = len(text) * tenths // 10
        line = text.find(b'\n', place, place + len(text) // 100) + 1
        while not line and place < len(text) and text[place] & 0xC0 == 0x80:  # within a character
            place += 1
        places.append(line or place)
    return [memoryview(text)[start:stop] for start, stop in itertools.pairwise([*places, len(text)])]


def _of_files(name: str, paths: Sequence[str], read: Callable[[str], bytes], context: int) -> Dataset:
    """A data set of texts in the order of their paths, divided by a hash of the paths or else by cuts.

    One file is held at a time, beside the splits: a corpus may be as large as the memory.
    """
    check_integer('context', context, 1, 'the length of a window, in bytes')
    splits = {role: _Joined() for role in ROLES}
    for path in paths:
        splits[corpus.split_of(path)].add(read(path))
    if not all(split.text for split in splits.values()):
        splits = {role: _Joined() for role in ROLES}
        for path in paths:
            for split, part in zip(splits.values(), _cut(read(path)), strict=True):
                split.add(part)
    sizes = [len(split.text) for split in splits.values()]
    if not all(sizes):
        found = f'{len(paths)} files with {sum(sizes)} bytes'
        raise ValueError(f'{name} has {found}. Put text there: a long file, or several.')
    return dataset_of_windows(name, [Windows(split.corpus(), context) for split in splits.values()])


class _Joined:
    """The documents of a split, one after the other."""

    def __init__(self) -> None:
        self.text, self._ends = bytearray(), list[int]()

    def add(self, document: bytes | memoryview) -> None:
        if document:
            self.text += document
            self._ends.append(len(self.text))

    def corpus(self) -> corpus.Corpus:
        ends, text = np.array(self._ends), np.frombuffer(memoryview(self.text).toreadonly(), np.uint8)
        return corpus.Corpus(text, ends, corpus.checksum_of(hashlib.sha256(self.text), ends))


def _read(file: Path) -> bytes:
    if not file.is_file():  # a pipe would be waited for
        raise ValueError(f'{str(file)!r} is not a regular file, but a pipe or a link to nothing. Remove it.')
    content = file.read_bytes()
    decoder, stop = codecs.getincrementaldecoder('utf-8')(), 0
    try:  # in pieces: as a whole, one character past U+FFFF makes a str of four bytes a character
        while stop < len(content):
            start, stop = stop, stop + _PIECE
            decoder.decode(content[start:stop], final=stop >= len(content))
    except UnicodeDecodeError as error:
        place = min(stop, len(content)) - len(error.object) + error.start
        what = f'{error.reason} {content[place]:#x} at {place}'
        raise ValueError(f'{str(file)!r} is not UTF-8 ({what}). Convert or remove it.') from error
    return content.removeprefix(codecs.BOM_UTF8)


TEXTS: Mapping[str, Callable[..., Dataset]] = {
    'python_stdlib': open_stdlib,
    'tiny_shakespeare': functools.partial(open_text, 'tiny_shakespeare'),
    'pg19': functools.partial(open_text, 'pg19', feature='book_text'),
    'lm1b': functools.partial(open_text, 'lm1b', train='train[1%:]', validation='train[:1%]'),
}
