"""The source code of Python's standard library: text that needs no download."""

import sysconfig
import tokenize
from pathlib import Path

__all__ = ['stdlib_files', 'stdlib_texts']

# Folders that are no part of the library, or that some distributions of Python leave out; pydoc_data is not
# source code but documentation, in one file of 0.7 MB.
_EXCLUDED = {
    *('site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'pydoc_data'),
    *('idlelib', 'lib2to3', 'tkinter', 'turtledemo', 'ensurepip', 'distutils'),
}
# Written when Python is built or installed; they describe the machine.
_BUILD_FILES = ('_sysconfigdata', 'sitecustomize', 'usercustomize')


def stdlib_texts(folder: Path | None = None) -> dict[str, bytes]:
    """The text of each of `stdlib_files`, in UTF-8; without a folder, of the Python that runs this."""
    texts = {}
    for path, file in stdlib_files(folder or Path(sysconfig.get_path('stdlib'))).items():
        with tokenize.open(file) as source:  # decodes as Python does
            texts[path] = source.read().encode()
    return texts


def stdlib_files(folder: Path) -> dict[str, Path]:
    """The modules of a standard library, by their path relative to its folder, in order."""
    files = {
        path.as_posix(): folder / path
        for path in sorted(file.relative_to(folder) for file in folder.rglob('*.py'))
        if _EXCLUDED.isdisjoint(path.parts)
        and not path.parts[0].startswith('config-')
        and not path.name.startswith(_BUILD_FILES)
    }
    if not files:  # as where Python reads its library from a zip file
        cure = 'Use another data set, or a Python that has its sources'
        raise ValueError(f'{folder} has no Python modules. {cure}.')
    return files
