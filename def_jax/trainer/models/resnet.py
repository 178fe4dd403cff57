"""Residual networks: ResNet-50 for ImageNet, and for CIFAR ResNet-110 and a wide one, with preactivation.

Sources: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, and "Identity Mappings
in Deep Residual Networks", 2016; Zagoruyko and Komodakis, "Wide Residual Networks", 2016. `resnet50` is
torchvision's, as in the code of DEF's authors, whose networks `resnet110` and `wrn_28_10` are; the docstrings
of the blocks describe where they differ from these papers.
"""

import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.trainer.models import layers

__all__ = [
    *('BasicBlock', 'Bottleneck', 'LateStrideBlock', 'PreactivationBottleneck', 'ResNet', 'ResidualBlock'),
    *('resnet110', 'resnet50', 'resnet8', 'wrn_28_10'),
]


class ResNet(nn.Module):
    """A stem, stages of residual blocks, a global mean and a dense layer.

    The first stage keeps the stem's size; each later stage doubles the width and halves the image. Batch
    statistics are local to each worker.

    If its blocks are `preactivated`, normalisation and ReLU precede the mean, else they follow the stem. With
    `large_images`, the stem is a 7×7 convolution and a 3×3 max pooling, which each halve the image, else a
    3×3 convolution, which preserves its size.
    """

    block: type['ResidualBlock']
    stage_sizes: Sequence[int]  # the number of blocks in each stage
    width: int  # the number of channels inside the blocks of the first stage
    num_classes: int
    stem_width: int | None = None  # None for `width`
    large_images: bool = False
    convolution_init: layers.LayerInit = layers.he_fan_in
    dense_init: layers.LayerInit = layers.small_normal
    dtype: DTypeLike = jnp.float32  # of the computation, logits too; parameters and statistics are float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [B, num_classes], of standardised images, float [B, H, W, C]."""
        layers.check_images(images, halvings=len(self.stage_sizes) - 1 + 2 * self.large_images)
        convolve = functools.partial(layers.convolution, init=self.convolution_init, dtype=self.dtype)
        normalise = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        kernel, stride = (7, 2) if self.large_images else (3, 1)
        x = convolve(images, self.stem_width or self.width, kernel, stride)
        if not self.block.preactivated:
            x = nn.relu(normalise(x))
        if self.large_images:
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.width * 2**stage, stride, convolve, normalise)(x)
        if self.block.preactivated:
            x = nn.relu(normalise(x))
        x = jnp.mean(x, axis=(1, 2))
        logits = layers.dense(x, self.num_classes, init=self.dense_init, dtype=self.dtype)
        return logits.astype(jnp.float32)


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut around them, which is projected by a 1×1 convolution if the shapes differ.

    Normalisation and ReLU precede every convolution if the block is `preactivated`. Else they follow, but for
    the last ReLU, which follows the sum, and the projection is normalised.
    """

    width: int  # inner channels
    stride: int
    convolve: layers.Layer  # given a width, a kernel size and a stride
    normalise: layers.Layer

    preactivated = False
    # For each, its kernel, whether it is strided, and its outer over the inner width.
    convolutions: ClassVar[tuple[tuple[int, bool, int], ...]]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, outer width]."""
        y = x
        for index, (kernel, strided, widening) in enumerate(self.convolutions):
            if self.preactivated or index:
                y = nn.relu(self.normalise(y))
            y = self.convolve(y, widening * self.width, kernel, self.stride if strided else 1)
        if self.preactivated:
            return self.shortcut(x, y) + y
        y = self.normalise(y)
        return nn.relu(self.shortcut(x, y) + y)

    def shortcut(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The input of the block, in the shape of the output."""
        if x.shape == y.shape:
            return x
        x = self.convolve(x, y.shape[-1], 1, self.stride)
        return x if self.preactivated else self.normalise(x)


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions with a parameter-free shortcut, option A of He et al.

    If the block changes the shape, the shortcut takes every `stride`-th pixel and appends zero channels.
    """

    convolutions = ((3, True, 1), (3, False, 1))

    def shortcut(self, x: jax.Array, y: jax.Array) -> jax.Array:
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))


class Bottleneck(ResidualBlock):
    """1×1, 3×3 and 1×1 convolutions with a shortcut that is projected, option B.

    The 3×3 convolution is strided, not the first 1×1 one: this is torchvision's "version 1.5".
    """

    convolutions = ((1, False, 1), (3, True, 1), (1, False, 4))


class PreactivationBottleneck(Bottleneck):
    """The same with normalisation and ReLU before each; the shortcut begins before these."""

    preactivated = True


class LateStrideBlock(ResidualBlock):
    """Normalisation, ReLU and a 3×3 convolution, twice, with a shortcut, as in the code of DEF's authors.

    The second convolution is the strided one, so the first runs at full size; the shortcut begins before
    normalisation and ReLU.
    """

    preactivated = True
    convolutions = ((3, False, 1), (3, True, 1))


# 25.6 M parameters in 161 leaves; 224×224 images reach the mean as 7×7.
resnet50 = functools.partial(
    ResNet,
    block=Bottleneck,
    stage_sizes=(3, 4, 6, 3),
    width=64,
    large_images=True,
    convolution_init=layers.he_fan_out,
    dense_init=layers.torch_default,
)

# 75 k parameters in 23 leaves: n = 1. For CIFAR or images as small as digits, on a CPU.
resnet8 = functools.partial(ResNet, block=BasicBlock, stage_sizes=(1, 1, 1), width=16)

# 1.1 M parameters in 332 leaves: 9n + 2 = 110 layers with n = 12. 32×32 images reach the mean as 8×8.
resnet110 = functools.partial(
    ResNet,
    stem_width=16,
    block=PreactivationBottleneck,
    stage_sizes=(12, 12, 12),
    width=16,
    convolution_init=layers.he_fan_out,
    dense_init=layers.torch_default,
)

# 36.5 M parameters in 108 leaves: 6n + 4 = 28 layers with n = 4, 10 times as wide. 32×32 images reach the
# mean as 8×8. The authors define another initialisation, but do not apply it.
wrn_28_10 = functools.partial(
    ResNet,
    stem_width=16,
    block=LateStrideBlock,
    stage_sizes=(4, 4, 4),
    width=160,
    convolution_init=layers.torch_default,
    dense_init=layers.torch_default,
)
