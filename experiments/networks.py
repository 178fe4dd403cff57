"""Networks that experiments train and the trainer has no name for."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from def_jax.trainer.models.transformer import Transformer

__all__ = ['NarrowTransformer', 'Perceptron']


class Perceptron(nn.Module):
    """Dense layers with ReLU between them, on the pixels of an image.

    Attributes:
        widths: of the hidden layers.
        num_classes: the number of logits.
    """

    widths: Sequence[int]
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [B, num_classes], of images [B, H, W, C]; `train` makes no difference."""
        del train
        x = jnp.reshape(images, (len(images), -1))
        for width in self.widths:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.he_normal())(x)


class NarrowTransformer(Transformer):
    """A transformer whose parameters are kept in bfloat16, and computes in float32."""

    def init(self, *args, **kwargs):
        variables = super().init(*args, **kwargs)
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
