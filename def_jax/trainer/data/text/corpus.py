"""A corpus as bytes on disk, written once from TFDS and then mapped into memory, page by page."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['START', 'VOCAB_SIZE', 'Corpus', 'checksum_of', 'open_corpus', 'split_of', 'write_corpus']

VOCAB_SIZE = 256
START = 0xFF  # precedes a document; a byte that UTF-8 never uses

_BYTES, _ENDS, _ABOUT = 'bytes.bin', 'ends.npy', 'about.json'


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """The documents of a split, one after the other."""

    text: np.ndarray  # their bytes, uint8 [N], usually mapped from a file
    ends: np.ndarray  # where each ends, int64 [documents], increasing; none is empty
    checksum: str = ''  # see `checksum_of`

    def __len__(self) -> int:
        return len(self.text)

    @property
    def about(self) -> dict[str, Any]:
        """Which corpus it is."""
        return {'bytes': len(self.text), 'documents': len(self.ends), 'sha256': self.checksum}


def write_corpus(folder: Path, documents: Iterable[bytes]) -> None:
    """Writes documents, in UTF-8, as a corpus; a folder that exists is complete, however the program ends.

    When several processes write at once, the first to finish wins. Empty documents are dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'{folder.name}.', dir=folder.parent))
    try:
        digest, ends, size = hashlib.sha256(), [], 0
        with (temporary / _BYTES).open('wb') as file:
            for number, document in enumerate(documents):
                if bytes([START]) in document:
                    what = f'document {number} of {folder} holds the byte 0xFF, so it is not UTF-8'
                    raise ValueError(f'{what}: {document[:40]!r}. Encode the text before it is stored.')
                if document:
                    file.write(document)
                    digest.update(document)
                    size += len(document)
                    ends.append(size)
        np.save(temporary / _ENDS, np.array(ends, np.int64))
        about = {'bytes': size, 'documents': len(ends), 'sha256': checksum_of(digest, np.array(ends))}
        (temporary / _ABOUT).write_text(json.dumps(about), encoding='utf-8')
        temporary.chmod(0o755)  # others may read it; a temporary folder is its owner's alone
        with contextlib.suppress(OSError):  # another process has written the folder: use that one
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_corpus(folder: Path) -> Corpus:
    """Maps a corpus that `write_corpus` wrote, and reads it once; ValueError if its files are damaged."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding='utf-8'))
        size = (folder / _BYTES).stat().st_size
        ends = np.load(folder / _ENDS, mmap_mode='r' if size else None)  # an empty file cannot be mapped
        text = np.memmap(folder / _BYTES, np.uint8, 'r') if size else np.zeros(0, np.uint8)
        checksum = checksum_of(hashlib.sha256(text.data), ends)
        problem = '' if about['sha256'] == checksum else f'its checksum is not that of {_ABOUT}'
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f'{type(error).__name__}: {error}'
    if problem:
        cure = 'Delete that folder; it is written again'
        raise ValueError(f'{folder} is damaged, or of an earlier version ({problem}). {cure}.')
    return Corpus(text, ends, checksum)


def checksum_of(digest: Any, ends: np.ndarray) -> str:
    """The checksum of a corpus, from hashlib's SHA-256 of its bytes and from where its documents end."""
    digest.update(ends.astype(np.int64).data)
    return digest.hexdigest()


def split_of(path: str) -> str:
    """The split of a file, from a hash of its path: it does not depend on other files.

    >>> split_of('json/decoder.py')
    'train'
    """
    bucket = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], 'big') % 10
    return {0: 'validation', 1: 'test'}.get(bucket, 'train')
