"""Image classification: what the key of a step is used for, and what the sums of a test batch count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from def_jax.trainer.data import augmentation
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.models.vgg import VGG
from def_jax.trainer.tasks.classification import ImageClassification

SPEC = DATASETS['digits']
UNAUGMENTED = dataclasses.replace(SPEC, crop_padding=0, flip=False)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, *SPEC.image_shape), np.uint8)
    return {'image': images, 'label': jnp.arange(4), 'mask': jnp.array([1, 1, 1, 0])}


def make_task(spec, hidden):
    """The task, and a function from a batch and a key to its training loss at the initial parameters."""
    task = ImageClassification(VGG(stages=((4,),), num_classes=10, hidden=hidden), spec)
    variables = jax.jit(task.init)(jax.random.key(0))

    def loss(batch, key):
        return task.loss(variables['params'], variables['batch_stats'], batch, key)[0]

    return task, variables, jax.jit(loss)


def test_augmentation_draws_from_the_key_of_the_step_itself(batch):
    task, variables, loss = make_task(SPEC, hidden=())

    @jax.jit
    def both(key):
        images = augmentation.augment(key, batch['image'], SPEC)
        logits, _ = task.model.apply(variables, images, train=True, mutable=['batch_stats'])
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
        return loss(batch, key), expected

    for seed in range(3):
        np.testing.assert_array_equal(*both(jax.random.key(seed)))


def test_dropout_draws_by_the_key_of_the_step_and_of_the_worker(batch):
    for hidden in ((), (8,)):
        *_, loss = make_task(UNAUGMENTED, hidden)
        losses = [float(loss(batch, jax.random.key(seed))) for seed in (0, 0, 1, 2)]
        assert losses[0] == losses[1]
        assert len(set(losses)) == (3 if hidden else 1)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(4))
    losses = jax.vmap(loss, in_axes=(None, 0))(batch, keys)
    assert len(set(losses.tolist())) == 4


def test_nothing_is_dropped_in_evaluation(batch):
    task, variables, _ = make_task(SPEC, hidden=(8,))

    sums = jax.jit(task.test_sums)(variables, batch)

    images = augmentation.standardise(batch['image'], SPEC)
    logits = task.model.apply(variables, images, train=False)[:3]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'][:3])
    assert sums['count'] == 3
    assert sums['loss'] == pytest.approx(float(losses.sum()), rel=1e-5)
    assert sums['accuracy'] == (logits.argmax(-1) == batch['label'][:3]).sum()
