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
    keys = [jax.random.key(0), *jax.random.split(jax.random.key(0), 3)]
    for hidden in ((), (8,)):
        task = ImageClassification(VGG(stages=((4,),), num_classes=10, hidden=hidden), SPEC)
        variables = jax.jit(task.init)(jax.random.key(0))

        @jax.jit
        @jax.vmap
        def losses(key, task=task, variables=variables):
            return task.loss(variables['params'], variables['batch_stats'], batch, key)[0]

        found = losses(jnp.stack([*keys, keys[0]])).tolist()
        assert found[0] == found[-1]
        assert len(set(found)) == (4 if hidden else 1)
