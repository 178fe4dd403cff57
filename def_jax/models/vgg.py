"""VGG with batch normalisation, for CIFAR-size images and smaller.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015; the CIFAR variant has one dense layer in place of three.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


class VGG(nn.Module):
    """Stages of 3×3 convolutions with max pooling in between, a global mean and a dense layer.

    Each convolution is followed by batch normalisation, which would cancel a bias, so there is none,
    and a rectifier. Batch statistics are those of one worker.

    Attributes:
        stages: the widths of each stage's convolutions. A 2×2 max pooling stands between
            consecutive stages, so an empty last stage, `()`, ends the network with a pooling.
        num_classes: the number of logits.
        dtype: the type of the computation. Parameters, statistics and logits are float32.
    """

    stages: Sequence[Sequence[int]]
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes the logits.

        Args:
            images: standardised images, float [B, H, W, C]; H and W are multiples of
                2 ** (len(stages) - 1).
            train: whether to normalise by the batch's statistics and to update the running ones
                (collection `batch_stats`, which must then be mutable), or to use the latter.

        Returns:
            Logits, float32 [B, num_classes].

        Raises:
            ValueError: if the images have the wrong rank, type or size.
        """
        _check_images(images, multiple=2 ** (len(self.stages) - 1))
        convolution = functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
        )
        normalise = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
        )
        x = images
        for index, widths in enumerate(self.stages):
            if index > 0:
                x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            for width in widths:
                x = nn.relu(normalise()(convolution(width)(x)))
        x = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype)(x)
        return logits.astype(jnp.float32)


def _check_images(images: jax.Array, multiple: int) -> None:
    """Raises ValueError for images that would fail deep inside the network, or not at all."""
    if images.ndim != 4:
        raise ValueError(f'{images.shape=} must have four axes, [B, H, W, C].')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f'{images.dtype=} must be a float type: standardise the images first.')
    height, width = images.shape[1:3]
    if height % multiple or width % multiple or height * width == 0:
        raise ValueError(
            f'{images.shape=} must have a height and a width that are multiples of {multiple}, since the '
            f'network halves them {multiple.bit_length() - 1} times. Resize or pad the images, or choose a '
            'model for their size.'
        )


# 14.7 M parameters in 41 leaves; 32×32 images reach the global mean as 1×1.
vgg16 = functools.partial(
    VGG, stages=((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512), ())
)

# 18 k parameters in 20 leaves; 8×8 images reach the global mean as 2×2.
vgg_digits = functools.partial(VGG, stages=((8, 8), (16, 16), (32, 32)))
