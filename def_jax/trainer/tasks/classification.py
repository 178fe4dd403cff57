"""Image classification."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from def_jax.ground.types import PyTree
from def_jax.trainer.data import augmentation
from def_jax.trainer.data.dataset import Dataset, DatasetSpec
from def_jax.trainer.tasks.base import Batch, Metric, Task

__all__ = ['ImageClassification', 'image_classification']

# Folded into the step's key for the key of dropout. `augment` splits the step's key in two, which may equal
# folding in 0 and 1.
_DROPOUT = 2


@dataclasses.dataclass(frozen=True)
class ImageClassification(Task):
    """Cross-entropy and accuracy of a network on the images of a data set.

    Batches hold `image`, uint8 [b, H, W, C], and `label`, int32 [b].
    """

    # Maps float32 images and `train` to logits [b, classes]; may draw from the key 'dropout'.
    model: nn.Module
    spec: DatasetSpec
    headline = Metric('accuracy', greater_is_better=True, percent=True)

    def init(self, key: jax.Array) -> PyTree:
        variables = self.model.init(key, jnp.zeros((1, *self.spec.image_shape)), train=False)
        return {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}

    def loss(
        self, params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        images = augmentation.augment(key, batch['image'], self.spec)
        variables = {'params': params, 'batch_stats': batch_stats}
        rngs = {'dropout': jax.random.fold_in(key, _DROPOUT)}
        logits, mutated = self.model.apply(variables, images, train=True, mutable=['batch_stats'], rngs=rngs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
        accuracy = jnp.mean(logits.argmax(-1) == batch['label'])
        return loss, ({'accuracy': accuracy}, mutated.get('batch_stats', {}))

    def test_sums(self, variables: PyTree, batch: Batch) -> dict[str, jax.Array]:
        images = augmentation.standardise(batch['image'], self.spec)
        logits: Any = self.model.apply(variables, images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        mask = batch['mask'].astype(jnp.float32)
        correct = logits.argmax(-1) == batch['label']
        return {'accuracy': (correct * mask).sum(), 'loss': (losses * mask).sum(), 'count': mask.sum()}


def image_classification(model: nn.Module, dataset: Dataset) -> ImageClassification:
    """The task of a configuration; ValueError unless the data set's examples are images with labels."""
    if not isinstance(dataset.spec, DatasetSpec):
        cure = 'Choose another --config.task or --config.dataset'
        raise ValueError(f'its data set must have images with labels. {cure}.')
    return ImageClassification(model, dataset.spec)
