"""Image classification: dropout. Augmentation is in test_steps.py, what is counted in test_evaluation.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.models.vgg import VGG
from def_jax.trainer.tasks.classification import ImageClassification

SPEC = dataclasses.replace(DATASETS['digits'], crop_padding=0, flip=False)


def test_dropout_draws_by_the_key_of_the_step_and_of_the_worker():
    images = np.random.default_rng(0).integers(0, 256, (4, *SPEC.image_shape), np.uint8)
    batch = {'image': images, 'label': jnp.arange(4)}
    task = ImageClassification(VGG(stages=((4,),), num_classes=10, hidden=(8,)), SPEC)
    variables = jax.jit(task.init)(jax.random.key(0))
    keys = [jax.random.key(0), *jax.random.split(jax.random.key(0), 3)]
    losses = jax.vmap(lambda key: task.loss(variables['params'], variables['batch_stats'], batch, key)[0])
    found = jax.jit(losses)(jnp.stack([*keys, keys[0]])).tolist()
    assert found[0] == found[-1] and len(set(found)) == 4
