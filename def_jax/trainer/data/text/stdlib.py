"""TFDS builder for the source code of Python's standard library: text that needs no download."""

import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from def_jax.trainer.data.text.corpus import split_of

__all__ = ['PythonStdlib', 'stdlib_files']

_DESCRIPTION = """\
The modules of the standard library of the Python that runs this, one file per example, without tests and
what distributions of Python leave out or ship apart. Files are assigned to the splits by a hash of their
path: about a tenth for validation, a tenth for testing.
"""

# Folders that are no part of the library, or that some distributions of Python leave out; pydoc_data is not
# source code but documentation, in one file of 0.7 MB.
_EXCLUDED = {
    *('site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'pydoc_data'),
    *('idlelib', 'lib2to3', 'tkinter', 'turtledemo', 'ensurepip', 'distutils'),
}
# Written when Python is built or installed; they describe the machine.
_BUILD_FILES = ('_sysconfigdata', 'sitecustomize', 'usercustomize')


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """Features: `path`, relative to the library's folder, and `text`, the file as UTF-8.

    The configuration's name is Python's version, so versions do not share their files.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'One file per example, split by a hash of the path.'}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(
            name=platform.python_version(), description=f'Python {platform.python_version()}.'
        )
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({'path': tfds.features.Text(), 'text': tfds.features.Text()}),
            homepage='https://docs.python.org/3/library/',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # The files are part of Python.
        files = stdlib_files(Path(sysconfig.get_path('stdlib')))
        return {
            split: self._generate_examples(
                {path: file for path, file in files.items() if split_of(path) == split}
            )
            for split in ('train', 'validation', 'test')
        }

    def _generate_examples(self, files: dict[str, Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, file in files.items():
            with tokenize.open(file) as source:  # decodes as Python does
                yield path, {'path': path, 'text': source.read()}


def stdlib_files(folder: Path) -> dict[str, Path]:
    """The modules of a standard library, by their path relative to its folder, in order.

    Raises:
        ValueError: if there are none, as where Python reads its library from a zip file.
    """
    files = {
        path.as_posix(): folder / path
        for path in sorted(file.relative_to(folder) for file in folder.rglob('*.py'))
        if _EXCLUDED.isdisjoint(path.parts)
        and not path.parts[0].startswith('config-')
        and not path.name.startswith(_BUILD_FILES)
    }
    if not files:
        raise ValueError(
            f'{folder} has no Python modules. Use another data set, or a Python that has its sources.'
        )
    return files
