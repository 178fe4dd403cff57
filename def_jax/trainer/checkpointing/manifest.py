"""The manifest.json of a checkpoint: its contents and a checksum of each of its files, and of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

import def_jax
from def_jax.ground.arguments import leaf_names
from def_jax.trainer.checkpointing.workdir import write_json
from def_jax.trainer.errors import one_line

__all__ = ['DamagedError', 'Manifest', 'leaves_of', 'read_verified', 'write']

NAME = 'manifest.json'
FORMAT = 2  # 2: adds the settings and the seal of the metrics

Manifest = dict[str, Any]  # also 'format', 'version', 'shards', 'metrics' and 'checksum'


class DamagedError(ValueError):
    """A checkpoint is incomplete, was modified, or does not match the run."""


def write(folder: Path, content: Manifest) -> None:
    """Writes the manifest of a checkpoint whose other files are complete."""
    content = {'format': FORMAT, 'version': def_jax.__version__} | content | {'files': _digests(folder)}
    write_json(folder / NAME, content | {'checksum': _checksum_of(content)})


def read_verified(folder: Path, step: int) -> Manifest:
    """The manifest of a step's checkpoint; raises DamagedError if a file is missing or was changed."""
    try:
        if not (folder / NAME).exists():
            raise DamagedError(f'it has no {NAME}: incomplete, or from a version that wrote none')
        content = json.loads((folder / NAME).read_text(encoding='utf-8'))
        if content['format'] != FORMAT:
            writer = f'def_jax {content["version"]}' if 'version' in content else 'an earlier version'
            formats = f'its format is {content["format"]}, but this version reads {FORMAT}'
            raise DamagedError(f'{formats}; {writer} wrote it and can finish the run')
        if content.pop('checksum') != _checksum_of(content):
            raise DamagedError(f'{NAME} was changed')
        if content['step'] != step:
            raise DamagedError(f'it was written at step {content["step"]}')
        found = _digests(folder)
    except DamagedError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f'it cannot be read ({one_line(error)})') from error
    for name, checksum in content['files'].items():
        if found.get(name) != checksum:
            raise DamagedError(f'{name} {"was changed" if name in found else "is missing"}')
    return content


def leaves_of(state: Any) -> dict[str, list]:
    """The name, dtype and shape of every array of a state, as stored in the manifest."""
    leaves = zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    return {name: [str(leaf.dtype), list(np.shape(leaf))] for name, leaf in leaves}


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file() and path.name != NAME:
            with path.open('rb') as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
    return found


def _checksum_of(content: Manifest) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
