"""VGG with batch normalisation, for CIFAR-sized and smaller images.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015; `vgg16` is the network in the code of DEF's authors.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.trainer.models import layers

__all__ = ['VGG', 'vgg16', 'vgg_digits', 'vgg_small', 'vgg_strided']


class VGG(nn.Module):
    """Stages of 3×3 convolutions, each at half the resolution of the last; a global mean and dense layers.

    Batch normalisation and ReLU follow each convolution; dropout at rate 0.5 precedes hidden dense layers.
    A 2×2 max pooling separates consecutive stages, so an empty last one, `()`, adds a final pooling.
    """

    stages: Sequence[Sequence[int]]  # the widths of each stage's convolutions
    num_classes: int
    hidden: Sequence[int] = ()  # the widths of the dense layers before the last one
    convolution_init: layers.LayerInit = layers.he_fan_in
    dense_init: layers.LayerInit = layers.small_normal
    dtype: DTypeLike = jnp.float32  # of the computation, logits too; parameters and statistics are float32
    strided: bool = False  # whether stages begin with a convolution of stride 2, in place of the pooling

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [B, num_classes], of standardised images, float [B, H, W, C]."""
        layers.check_images(images, halvings=len(self.stages) - 1)
        x = images
        for index, widths in enumerate(self.stages):
            if index > 0 and not self.strided:
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for position, width in enumerate(widths):
                stride = 2 if self.strided and index > 0 and position == 0 else 1
                x = layers.convolution(x, width, stride=stride, init=self.convolution_init, dtype=self.dtype)
                x = nn.relu(layers.batch_norm(x, train=train, dtype=self.dtype))
        x = jnp.mean(x, axis=(1, 2))
        for width in self.hidden:
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.relu(layers.dense(x, width, init=self.dense_init, dtype=self.dtype))
        logits = layers.dense(x, self.num_classes, init=self.dense_init, dtype=self.dtype)
        return logits.astype(jnp.float32)


# 15.3 M parameters in 58 leaves; 32×32 images reach the dense layers as 1×1. DEF's authors keep the biases
# of the convolutions, although batch normalisation cancels them.
vgg16 = functools.partial(
    VGG,
    stages=((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512), ()),
    hidden=(512, 512),
    convolution_init=functools.partial(layers.he_fan_out, bias=True),
    dense_init=layers.torch_default,
)

# 18 k parameters in 20 leaves; 8×8 images reach the global mean as 2×2.
vgg_digits = functools.partial(VGG, stages=((8, 8), (16, 16), (32, 32)))

# 73 k parameters in 20 leaves, for CIFAR on a CPU; 32×32 images reach the global mean as 8×8.
vgg_small = functools.partial(VGG, stages=((16, 16), (32, 32), (64, 64)))

# 71 k parameters in 17 leaves, at a sixth of the cost; 32×32 images reach the global mean as 4×4. Strides
# replace pooling as in Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2015.
vgg_strided = functools.partial(VGG, stages=((), (16,), (32, 32), (64, 64)), strided=True)
