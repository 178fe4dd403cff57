"""The problems, each defined once: data and their split, network, workers, batch, steps and schedule.

A problem is a configuration of the trainer, whatever executes the run. 'validation' examples choose rates,
'test' ones none; only in the paper's protocol do reported runs train on the former as well.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from def_jax.trainer.configuration import defaults
from def_jax.trainer.data.dataset import Dataset, Split
from def_jax.trainer.data.text.windows import Windows
from experiments.spec import Spec

__all__ = ['PROBLEMS', 'Problem', 'check_disjoint']


class Problem(NamedTuple):
    """A problem, and how it is run here.

    Attributes:
        config: a function of the spec's `where` to the trainer's configuration, of dense training.
        headline: the metric that is reported, 'accuracy' or 'loss'.
        lanes: how many runs train side by side in one program; 1 where a program of several is slower.
    """

    config: Callable[..., ml_collections.ConfigDict]
    headline: str
    lanes: int


def _base(workers: int, steps: int) -> ml_collections.ConfigDict:
    """All workers on one device; a cosine without restarts."""
    config = defaults.get_defaults()
    config.method, config.ratio = 'sgd', 1.0
    config.num_workers = config.workers_per_device = workers
    config.num_steps = config.eval_every_steps = steps
    config.schedule, config.schedule_options = 'cosine', {'warmup': 0.0}
    config.keep_checkpoints = 1
    return config


def digits(width: int = 64, workers: int = 8, steps: int = 800) -> ml_collections.ConfigDict:
    """A perceptron with two hidden layers on scikit-learn's digits: 800 to train, 200 to choose, 797 to test.

    A step takes 64 images, shifted at random by up to a pixel, whatever the number of workers.
    """
    config = _base(workers, steps)
    config.dataset, config.validation_examples = 'digits', 200
    config.model, config.model_options = 'experiments.networks:Perceptron', {'widths': (width, width)}
    config.batch_size = 64
    config.weight_decay = 0.0
    config.evaluate_train_examples = 800
    return config


# Layers, width, heads and context, by the number of parameters.
TRANSFORMERS = {
    '33k': (2, 32, 2, 32),
    '115k': (2, 64, 4, 64),
    '358k': (3, 96, 4, 64),
    '1m': (5, 128, 4, 64),
    '11m': (6, 384, 6, 64),
}


def text(
    size: str = '33k', workers: int = 8, steps: int = 1200, sequences: int = 4, narrow: bool = False
) -> ml_collections.ConfigDict:
    """A transformer on the bytes of Python's standard library; a file's path decides its split.

    Each worker takes that many sequences at a step. Parameters are float32, or bfloat16 if `narrow`.
    """
    config = _base(workers, steps)
    num_layers, width, num_heads, context = TRANSFORMERS[size]
    config.task = 'language_modelling'
    config.dataset, config.dataset_options = 'python_stdlib', {'context': context}
    config.test_examples = 8192
    config.model = 'def_jax.trainer.models.transformer:Transformer'
    if narrow:
        config.model = 'experiments.networks:NarrowTransformer'
    config.model_options = {
        'num_layers': num_layers,
        'width': width,
        'num_heads': num_heads,
        'context': context,
    }
    config.batch_size = sequences * workers
    config.optimizer, config.weight_decay = 'adamw', 0.1
    config.schedule_options = {'warmup': 0.1}
    return config


def cifar10_reduced(workers: int = 16, steps: int = 2340) -> ml_collections.ConfigDict:
    """Five convolutions of 71 k parameters on 10,000 CIFAR-10 images; 5,000 to choose, all 10,000 to test.

    A step takes 128 images. BatchNorm's statistics are recalibrated before an evaluation.
    """
    config = _base(workers, steps)
    config.sequential_workers = True
    config.dataset, config.train_examples, config.validation_examples = 'cifar10', 10_000, 5_000
    config.model = 'vgg_strided'
    config.batch_size = 128
    config.recalibrate_batches = 8
    config.evaluate_train_examples = 2_000
    return config


def paper(name: str, **changes: Any) -> ml_collections.ConfigDict:
    """A configuration of configs/, with all workers on one device, and what differs from it.

    The paper's protocol: runs that choose rates hold out training images, which the runs that are reported
    train on.
    """
    config = importlib.import_module(f'configs.{name}').get_config()
    config.update(changes)
    config.fake_devices, config.workers_per_device = False, config.num_workers
    return config.copy_and_resolve_references().unlock()


PROBLEMS = {
    'digits': Problem(digits, 'accuracy', 10),
    'text': Problem(text, 'loss', 1),
    'cifar10_reduced': Problem(cifar10_reduced, 'accuracy', 1),
    'paper': Problem(paper, 'accuracy', 1),
}


def config_of(spec: Spec) -> ml_collections.ConfigDict:
    """The problem's configuration with the rate, the seed and the evaluated split of a run.

    Raises:
        ValueError: if there is no such problem.
    """
    if spec.problem not in PROBLEMS:
        raise ValueError(f'problem={spec.problem!r} must be one of {", ".join(PROBLEMS)}.')
    config = PROBLEMS[spec.problem].config(**spec.where)
    config.learning_rate, config.seed, config.evaluate_on = spec.rate, spec.seed, spec.evaluate_on
    return config


def check_disjoint(dataset: Dataset) -> None:
    """Raises ValueError if an example of the validation or test split is also trained on.

    Images are compared by content and label, texts document by document, as two files may share a window.
    """
    trained = _fingerprints(dataset.train)
    for name in ('validation', 'test'):
        split: Any = getattr(dataset, name)
        if split is not None and (shared := trained & _fingerprints(split)):
            raise ValueError(
                f'{len(shared)} of the examples of the {name} split are also in the training split. Divide '
                'the data set before anything is trained or chosen on it.'
            )


def _fingerprints(split: Split) -> set[bytes]:
    return {hashlib.blake2b(example, digest_size=16).digest() for example in _examples(split)}


def _examples(split: Any) -> Iterable[bytes]:
    if isinstance(split, Windows):
        first, last = split.start * split.context, (split.start + len(split)) * split.context
        starts = np.concatenate([[0], split.corpus.ends[:-1]])
        for start, end in zip(starts, split.corpus.ends, strict=True):
            if first < end and start < last:  # a document of which any byte is in the split
                yield bytes(split.corpus.text[start:end])
    else:
        arrays = split.take(np.arange(len(split)))
        for row in zip(*(arrays[name] for name in sorted(arrays)), strict=True):
            yield b''.join(np.asarray(part).tobytes() for part in row)
