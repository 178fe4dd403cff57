"""Residual networks; with post-activation blocks, ResNet-50 for ImageNet and He et al.'s CIFAR networks.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016; `resnet50` is
torchvision's, as in the code of DEF's authors.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.trainer.models import layers

__all__ = ['BasicBlock', 'Bottleneck', 'ResNet', 'resnet8', 'resnet50']


class ResNet(nn.Module):
    """A stem, stages of residual blocks, a global mean and a dense layer.

    The first stage keeps the stem's size; each later stage doubles the width and halves the image. Batch
    statistics are local to each worker.

    With `preactivated`, normalisation and ReLU precede the mean and every convolution but the first, else
    they follow every convolution. With `large_images`, the stem is a 7×7 convolution and a 3×3 max pooling,
    which each halve the image, else a 3×3 convolution, which preserves its size.
    """

    block: Callable[..., nn.Module]  # one of this module's blocks, or of `preactivation`
    stage_sizes: Sequence[int]  # the number of blocks in each stage
    width: int  # the number of channels inside the blocks of the first stage
    num_classes: int
    stem_width: int | None = None  # None for `width`
    preactivated: bool = False
    large_images: bool = False
    convolution_init: layers.LayerInit = layers.he_fan_in
    dense_init: layers.LayerInit = layers.small_normal
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, statistics and logits are float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [B, num_classes], of standardised images, float [B, H, W, C]."""
        layers.check_images(images, halvings=len(self.stage_sizes) - 1 + 2 * self.large_images)
        convolve = functools.partial(layers.convolution, init=self.convolution_init, dtype=self.dtype)
        normalise = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        kernel, stride = (7, 2) if self.large_images else (3, 1)
        x = convolve(images, self.stem_width or self.width, kernel, stride)
        if not self.preactivated:
            x = nn.relu(normalise(x))
        if self.large_images:
            x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.width * 2**stage, stride, convolve, normalise)(x)
        if self.preactivated:
            x = nn.relu(normalise(x))
        x = jnp.mean(x, axis=(1, 2))
        logits = layers.dense(x, self.num_classes, init=self.dense_init, dtype=self.dtype)
        return logits.astype(jnp.float32)


class BasicBlock(layers.Block):
    """Two 3×3 convolutions with a parameter-free shortcut, option A of He et al.

    If the block changes the shape, the shortcut takes every `stride`-th pixel and appends zero channels.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, width]."""
        y = nn.relu(self.normalise(self.convolve(x, self.width, 3, self.stride)))
        y = self.normalise(self.convolve(y, self.width))
        shortcut = x[:, :: self.stride, :: self.stride]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.width - x.shape[-1])))
        return nn.relu(shortcut + y)


class Bottleneck(layers.Block):
    """1×1, 3×3 and 1×1 convolutions with a shortcut that is projected if the shapes differ, option B.

    The 3×3 convolution is strided, not the first 1×1 one: this is torchvision's "version 1.5".
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, 4 * width]."""
        width_out = 4 * self.width
        y = nn.relu(self.normalise(self.convolve(x, self.width, 1)))
        y = nn.relu(self.normalise(self.convolve(y, self.width, 3, self.stride)))
        y = self.normalise(self.convolve(y, width_out, 1))
        if x.shape != y.shape:
            x = self.normalise(self.convolve(x, width_out, 1, self.stride))
        return nn.relu(x + y)


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
