"""Keeps TFDS from importing the modules that the files of a data set name."""

from typing import Any

__all__ = ['refuse_foreign_features']

_OWN = 'tensorflow_datasets.'


def refuse_foreign_features(tfds: Any) -> None:
    """From now on, TFDS reads features of its own classes only, and of those that the program has imported.

    A data set's features.json names a class for each feature, and TFDS would import, and so run, its module.
    """
    connector = tfds.features.FeatureConnector
    find = connector.cls_from_name
    if getattr(find, 'refuses', False):
        return

    def checked(cls: Any, name: str) -> Any:
        if not name.startswith(_OWN) and name not in cls._registered_features:
            raise ValueError(
                f'features.json of a data set names the class {name!r}, whose module would be run. It must '
                f'be one of {_OWN}features. If you trust that module, import it in your configuration file.'
            )
        return find.__func__(cls, name)

    checked.refuses = True  # type: ignore[attr-defined]
    connector.cls_from_name = classmethod(checked)
