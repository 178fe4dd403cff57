"""Says where a module or a command went that had another name in an earlier version."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['announce']

_MOVED = {
    'collectives': 'def_jax.mesh.collectives',
    'configuration': 'def_jax.trainer.configuration',
    'data': 'def_jax.trainer.data',
    'experiments': 'paper, which is not installed: run python -m paper.sweep in a checkout',
    'mapping': 'def_jax.mesh',
    'markdown': 'def_jax.tools.markdown',
    'models': 'def_jax.trainer.models',
    'ownership': 'def_jax.mesh.ownership',
    'pictures': 'def_jax.tools.pictures',
    'spmd': 'def_jax.mesh.spmd; the function is def_jax.spmd',
    'tasks': 'def_jax.trainer.tasks',
    'theory': 'docs/theory/bounds.py, which is not installed',
    'training': 'def_jax.trainer',
}


class _Finder(MetaPathFinder):
    """Asked first: folders of caches that an earlier version left look like packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        package, _, name = fullname.partition('.')
        if package == __package__ and name in _MOVED:
            raise ModuleNotFoundError(f'{fullname} moved to {_MOVED[name]}', name=fullname)
        return None


def announce() -> None:
    """Lets an import of a former name raise an error that has the present one."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
