"""A folder of text files, a document each, as a data set in memory."""

import hashlib
import os
from pathlib import Path

import numpy as np

from def_jax.checks import check_integer
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text.corpus import Corpus, split_of
from def_jax.trainer.data.text.windows import ROLES, Windows, dataset_of_windows

__all__ = ['open_text_folder']


def open_text_folder(path: str | os.PathLike[str], *, context: int = 64) -> Dataset:
    """Reads the UTF-8 files of a folder and of those in it, but for hidden ones.

    Args:
        path: the folder. A hash of a file's path within it decides its split: about a tenth of the files for
            validation, a tenth for testing. So a file keeps its split when others are added.
        context: the length of a window, in bytes.

    Returns:
        The data set; its documents are in the order of their paths.

    Raises:
        ValueError: if there is no such folder, a file is not UTF-8, or a split has no text.
    """
    check_integer('context', context, 1, 'the length of a window, in bytes')
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f'path={str(path)!r} is not a folder.')
    documents: dict[str, list[bytes]] = {role: [] for role in ROLES}
    for name in sorted(file.relative_to(root).as_posix() for file in root.rglob('*') if file.is_file()):
        if not any(part.startswith('.') for part in Path(name).parts):
            documents[split_of(name)].append(_read(root / name))
    if missing := [role for role in ROLES if not any(documents[role])]:
        count = sum(map(len, documents.values()))
        raise ValueError(
            f'path={str(path)!r} has no text for {" and ".join(missing)}: its {count} files are divided by a '
            'hash of their paths. Add files, or divide long ones.'
        )
    splits = [Windows(_corpus(documents[role]), context) for role in ROLES]
    return dataset_of_windows(f'text_folder {root.name}', splits)


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    try:
        content.decode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'{str(file)!r} is not UTF-8 ({error}). Convert or remove it.') from error
    return content


def _corpus(documents: list[bytes]) -> Corpus:
    documents = [document for document in documents if document]
    text = b''.join(documents)
    ends = np.cumsum([len(document) for document in documents])
    return Corpus(np.frombuffer(text, np.uint8), ends, hashlib.sha256(text).hexdigest())
