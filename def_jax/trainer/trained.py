"""A model's way out: `x.safetensors` and `y.safetensors` in the folder of a run that has ended.

Each holds one point's variables as plain arrays, named like 'params/Dense_0/kernel', which JAX, NumPy and
PyTorch read alike, and in its metadata what the model is made from, with a checksum of both.
"""

import dataclasses
import hashlib
import json
import os
import urllib.parse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors
import safetensors.numpy

from def_jax.trainer.checkpointing.workdir import saved_steps, sync
from def_jax.trainer.configuration import parts
from def_jax.trainer.data.dataset import DatasetSpec
from def_jax.trainer.errors import explained
from def_jax.trainer.experiment import Experiment

__all__ = ['load', 'write']

_SUFFIX, _SEPARATOR, _CHECKSUM = '.safetensors', '/', 'sha256'


def write(folder: Path, experiment: Experiment, points: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the variables of each point, NumPy arrays, into a run's folder; a file is whole or not there."""
    config, dataset = experiment.config, experiment.dataset
    spec = dataset.spec if isinstance(dataset.spec, DatasetSpec) else None
    about = {
        'title': experiment.title,
        'step': experiment.num_steps,
        'config': json.loads(config.to_json()),
        'model_options': dict(dataset.model_options),
        'data': dataclasses.asdict(spec) if spec else {},  # by which images are standardised
    }
    metadata = {name: json.dumps(value, default=_described) for name, value in about.items()}
    for point, variables in points.items():
        metadata['point'] = point
        leaves, _ = jax.tree_util.tree_flatten_with_path(variables)
        arrays = {_SEPARATOR.join(map(_quoted, path)): np.asarray(leaf, order='C') for path, leaf in leaves}
        path = folder / f'{point}{_SUFFIX}'
        partial = path.with_suffix('.partial')
        try:
            safetensors.numpy.save_file(arrays, partial, metadata | {_CHECKSUM: _checksum(arrays, metadata)})
            sync(partial)
            os.replace(partial, path)
        except (OSError, safetensors.SafetensorError) as error:
            cure = 'The checkpoints are kept; free some space, then run the same command again'
            raise ValueError(f'{path} cannot be written ({error}). {cure}.') from error
        finally:
            partial.unlink(missing_ok=True)


def load(folder: str | os.PathLike, point: str = 'y') -> tuple[dict[str, Any], Any]:
    """See `def_jax.trainer.load`."""
    folder = Path(folder).expanduser()
    path = folder / f'{point}{_SUFFIX}'
    there = sorted(found.stem for found in folder.glob(f'*{_SUFFIX}'))
    if not there:
        cure = 'A run writes its model when it ends: run its command again'
        raise FileNotFoundError(f'folder={str(folder)!r} holds no trained model. {cure}.')
    if point not in there:
        raise ValueError(f'{point=} must be one of {", ".join(there)}, which the run in {folder} has.')
    with (
        explained(f'{path} cannot be read', (safetensors.SafetensorError,)),
        safetensors.safe_open(path, framework='np') as file,
    ):
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    if metadata.pop(_CHECKSUM, None) != _checksum(arrays, metadata):  # safetensors has none
        raise ValueError(f'{path} was changed or damaged. Run its command again, which writes it anew.')
    step = json.loads(metadata['step'])
    newest = max(saved_steps(folder), default=0)
    if newest > step:  # it was prolonged, and has not come to its end again
        cure = 'Run its command again to have the model of its end'
        warnings.warn(f'{path} is of step {step}, and the run has gone on to {newest}. {cure}.', stacklevel=3)
    config = ml_collections.ConfigDict(json.loads(metadata['config']))
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = map(urllib.parse.unquote, name.split(_SEPARATOR))
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(array)
    return variables, parts.make_model(config, json.loads(metadata['model_options']))


def _quoted(key: Any) -> str:
    """A key of a path, without separators, which Haiku's names have."""
    return urllib.parse.quote(jax.tree_util.keystr((key,), simple=True), safe='~')


def _described(value: Any) -> Any:
    """A spec's arrays and scalars of NumPy as lists and numbers, and the rest as Python prints it."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else repr(value)


def _checksum(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f'{name} {array.dtype} {array.shape} '.encode() + array.tobytes())
    return digest.hexdigest()
