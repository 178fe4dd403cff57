"""The data set, the model and the task that a configuration names."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from def_jax.trainer.configuration.factories import Factory, find
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.factories import FACTORIES
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS
from def_jax.trainer.tasks.base import Task

__all__ = ['find_dataset', 'find_model', 'find_task', 'make_dataset', 'make_task']


def find_dataset(config: Mapping[str, Any]) -> Factory:
    """The factory of the data set, which gets `data_dir` if it takes it; ValueError if there is none."""
    return find('dataset', config, FACTORIES)


def find_model(config: Mapping[str, Any]) -> Factory:
    """The factory of the model, which gets `dtype` and the data set's `model_options` if it takes them.

    Raises:
        ValueError: if there is none, or it cannot compute in `compute_dtype`.
    """
    factory = find('model', config, {**MODELS, **LANGUAGE_MODELS})
    if config['compute_dtype'] != 'float32' and not factory.takes('dtype'):
        raise ValueError(
            f'compute_dtype={config["compute_dtype"]!r} has no effect on {factory}, which takes no dtype. '
            "Set compute_dtype='float32'."
        )
    return factory


def find_task(config: Mapping[str, Any]) -> Factory:
    """The factory of the task, which must take `model` and `dataset`; ValueError if there is none."""
    return find('task', config, TASKS, required=['model', 'dataset'])


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says.

    Raises:
        ValueError: if it cannot be opened, or has too few examples or no split to evaluate on.
        FileNotFoundError: if it is not prepared and cannot be downloaded.
    """
    dataset = (
        find_dataset(config)
        .make(Dataset, required={}, data_dir=config['data_dir'] or None)
        .limited(
            train_examples=config['train_examples'],
            validation_examples=config['validation_examples'],
            test_examples=config['test_examples'],
        )
    )
    dataset.evaluated(config['evaluate_on'])  # that there is one
    if config['evaluate_train_examples'] > len(dataset.train):
        raise ValueError(
            f'evaluate_train_examples={config["evaluate_train_examples"]} must be at most '
            f'{len(dataset.train)}, the size of the training split.'
        )
    return dataset


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model, and the task of training it on a data set.

    Raises:
        ValueError: if a factory fails, or returns something else.
    """
    offered = {**dataset.model_options, 'dtype': jnp.dtype(config['compute_dtype'])}
    if (num_classes := {**offered, **config['model_options']}.get('num_classes', 1)) < 1:
        raise ValueError(
            f'{num_classes=} of the model must be at least 1: the number of labels in the data set.'
        )
    model = find_model(config).make(object, required={}, **offered)
    return find_task(config).make(Task, required={'model': model, 'dataset': dataset})
