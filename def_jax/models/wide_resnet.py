"""Wide residual networks, for CIFAR.

Source: Zagoruyko and Komodakis, "Wide Residual Networks", 2016.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.models import layers

__all__ = ['PreactivationBlock', 'WideResNet', 'wrn_10_1', 'wrn_28_10']


class WideResNet(nn.Module):
    """A 3×3 convolution, three stages of pre-activation blocks, a global mean and a dense layer.

    The stages are `widen` times as wide as those of the CIFAR ResNet: 16, 32 and 64 times `widen`; the
    second and the third halve the image. There is no dropout. Batch statistics are those of one worker.

    Attributes:
        depth: the number of convolutions on the longest path and the dense layer, without projections:
            6n + 4 with n blocks a stage.
        widen: the factor of the width.
        num_classes: the number of logits.
        dtype: the type of the computation. Parameters, statistics and logits are float32.
    """

    depth: int
    widen: int
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Computes the logits.

        Args:
            images: standardised images, float [B, H, W, C]; H and W are multiples of 4.
            train: whether to normalise by the batch's statistics and to update the running ones
                (collection `batch_stats`, which must then be mutable), or to use the latter.

        Returns:
            Logits, float32 [B, num_classes].

        Raises:
            ValueError: if the images have the wrong rank, type or size, or the depth is not 6n + 4.
        """
        blocks_per_stage, rest = divmod(self.depth - 4, 6)
        if rest or blocks_per_stage < 1:
            raise ValueError(f'depth={self.depth} must be 6n + 4 with n >= 1 blocks a stage, e.g. 28.')
        layers.check_images(images, halvings=2)
        convolution = functools.partial(layers.convolution, dtype=self.dtype)
        normalise = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        x = convolution(16)(images)
        for stage in range(3):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                x = PreactivationBlock(16 * 2**stage * self.widen, stride, convolution, normalise)(x)
        x = nn.relu(normalise()(x))
        return layers.logits(x, self.num_classes, dtype=self.dtype)


class PreactivationBlock(nn.Module):
    """Twice a normalisation, a rectifier and a 3×3 convolution, beside a shortcut.

    Where the block changes the shape, the shortcut is a 1×1 convolution of what the first rectifier lets
    through, as in the authors' code; elsewhere it is the block's input itself.

    Attributes:
        width: the number of channels that come out.
        stride: by which the first convolution divides the height and the width.
        convolution: makes a convolution of a width, a kernel size and a stride.
        normalise: makes a batch normalisation.
    """

    width: int
    stride: int
    convolution: layers.LayerMaker
    normalise: layers.LayerMaker

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, width]."""
        activated = nn.relu(self.normalise()(x))
        y = self.convolution(self.width, 3, self.stride)(activated)
        y = self.convolution(self.width)(nn.relu(self.normalise()(y)))
        shortcut = x if x.shape == y.shape else self.convolution(self.width, 1, self.stride)(activated)
        return shortcut + y


# 36.5 M parameters in 80 leaves: 28 = 6n + 4 layers with n = 4. 32×32 images reach the mean as 8×8.
wrn_28_10 = functools.partial(WideResNet, depth=28, widen=10)

# 78 k parameters in 26 leaves: n = 1. For CIFAR, and as small a thing as digits, on a CPU.
wrn_10_1 = functools.partial(WideResNet, depth=10, widen=1)
