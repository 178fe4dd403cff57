"""Data sets that TFDS has prepared, or prepares: read without TensorFlow where their files allow it."""

import contextlib
import importlib.util
import itertools
import operator
import os
from collections.abc import Iterator
from typing import Any

import jax

from def_jax.trainer.errors import one_line

__all__ = ['examples', 'import_tfds', 'prepared_builder']

_TENSORFLOW = "pip install 'def_jax[tensorflow]'"


def import_tfds() -> Any:
    """TFDS, imported on first use; it refuses to import, and so run, the modules that features.json names."""
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        if error.name != 'tensorflow_datasets':
            raise
        need = 'this data set is read by TFDS, which is not installed'
        raise ValueError(f"{need}. Run {_TENSORFLOW}, or 'def_jax[tfds]' if it is prepared.") from error

    connector = tfds.features.FeatureConnector
    find, own = connector.cls_from_name, 'tensorflow_datasets.'
    if hasattr(find, 'refuses'):
        return tfds

    def checked(cls: Any, name: str) -> Any:
        if not name.startswith(own) and name not in cls._registered_features:
            cure = 'If you trust that module, import it in your configuration file'
            raise ValueError(f'features.json names the class {name!r}, whose module would be run. {cure}.')
        return find.__func__(cls, name)

    checked.refuses = True  # type: ignore[attr-defined]
    connector.cls_from_name = classmethod(checked)
    return tfds


def prepared_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """A TFDS builder whose files exist: of any format, or else written now, in one that needs no TensorFlow.

    Raises FileNotFoundError if the data set is missing and cannot be prepared.
    """
    builder = import_tfds().builder(name, data_dir=data_dir)
    if builder.is_prepared():
        return builder
    if importlib.util.find_spec('tensorflow') is None and _has_images(builder):  # TFDS asks after a download
        raise _absent(name, builder, f'TFDS writes images with TensorFlow: run {_TENSORFLOW}')
    try:
        builder = import_tfds().builder(name, data_dir=data_dir, file_format='array_record')
        builder.download_and_prepare()
    except Exception as error:
        # When several processes start together, the first to finish wins: use its files.
        builder = import_tfds().builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            reason = f'could not be prepared there ({type(error).__name__}: {one_line(error)})'
            why = f'run {_TENSORFLOW}' if _lacks_tensorflow(error) else reason
            raise _absent(name, builder, why) from error
    return builder


def _absent(name: str, builder: Any, why: str) -> FileNotFoundError:
    """The error of a data set that is missing: `why`, with its own remedy if there is one, comes first."""
    return FileNotFoundError(
        f'Data set {name!r} is not in {builder.data_path}: {why}. Without a network, or with files that you '
        f'must download yourself into DIR/downloads/manual, run `tfds build {name} --data_dir=DIR '
        f'--file_format=array_record`, copy DIR/{name} here, and set the environment variable TFDS_DATA_DIR, '
        'or --config.data_dir, to the folder that has it.'
    )


def _lacks_tensorflow(error: BaseException | None) -> bool:
    """Whether it is why: TFDS raises the error again, of the same class but without the module's name."""
    while error is not None and getattr(error, 'name', '') != 'tensorflow':
        error = error.__cause__ or error.__context__
    return error is not None


def _has_images(builder: Any) -> bool:
    features, kind = builder.info.features, import_tfds().features.Image
    return any(isinstance(feature, kind) for feature in jax.tree.leaves(dict(features)))


def examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split, as NumPy arrays and bytes, in the order of its files."""
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:  # files that are read in order only, as TFRecord files
        return _examples_in_order(builder, split)
    return (source[position] for position in range(len(source)))


def _examples_in_order(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ValueError(
            f'the files of data set {builder.name!r} in {builder.data_path} need TensorFlow ({error}). Run '
            f'{_TENSORFLOW}, or `tfds build {builder.name} --file_format=array_record --data_dir=DIR`.'
        ) from error
    # Off JAX's GPUs; too late if the caller's own TensorFlow code has already claimed them.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], 'GPU')
    shapes = itertools.chain(
        *jax.tree.leaves(builder.info.features.shape, is_leaf=lambda x: type(x) is tuple)
    )
    batch_size = 1000 if None not in shapes else 1  # much faster than one by one
    batches = builder.as_dataset(split=split, shuffle_files=False, batch_size=batch_size)
    for batch in import_tfds().as_numpy(batches):
        for place in range(len(jax.tree.leaves(batch)[0])):
            yield jax.tree.map(operator.itemgetter(place), batch)
