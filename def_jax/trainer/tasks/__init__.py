"""Training tasks, one per file: the loss, the metrics and the variables that they depend on."""

from collections.abc import Callable, Mapping

from def_jax.trainer.tasks.base import Task
from def_jax.trainer.tasks.classification import image_classification
from def_jax.trainer.tasks.language_modelling import language_modelling

__all__ = ['TASKS']

TASKS: Mapping[str, Callable[..., Task]] = {
    'image_classification': image_classification,
    'language_modelling': language_modelling,
}
