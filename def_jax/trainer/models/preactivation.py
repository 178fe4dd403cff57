"""Residual networks with pre-activation blocks, for CIFAR: ResNet-110 and wide residual networks.

Source: He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", 2016; Zagoruyko and
Komodakis, "Wide Residual Networks", 2016. `resnet110` and `wrn_28_10` are the networks in the code of
DEF's authors; the docstrings of the blocks describe where they differ from these papers.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.trainer.models import layers

__all__ = [
    'LateStrideBlock',
    'PreactivationBlock',
    'PreactivationBottleneck',
    'PreactivationResNet',
    'resnet110',
    'wrn_10_1',
    'wrn_28_10',
]

STEM_WIDTH = 16


class PreactivationResNet(nn.Module):
    """A 3×3 convolution, stages of pre-activation blocks, a global mean and a dense layer.

    Every stage after the first doubles the width and halves the image. Normalisation and ReLU precede the
    mean and every convolution except the first. Batch statistics are local to each worker.

    Attributes:
        block: one of this module's blocks.
        stage_sizes: the number of blocks in each stage.
        width: the number of channels inside the blocks of the first stage.
        num_classes: the number of logits.
        convolution_init: the initialisation of the convolutions, which decides whether they have biases.
        dense_init: the initialisation of the dense layer.
        dtype: the dtype of the computation. Parameters, statistics and logits are float32.
    """

    block: Callable[..., nn.Module]
    stage_sizes: Sequence[int]
    width: int
    num_classes: int
    convolution_init: layers.LayerInit = layers.he_fan_in
    dense_init: layers.LayerInit = layers.small_normal
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32 [B, num_classes], of standardised images.

        Args:
            images: float [B, H, W, C]; H and W are multiples of 2 ** (len(stage_sizes) - 1).
            train: whether to normalise with the batch statistics and update the running ones (collection
                `batch_stats`, then mutable), or to normalise with the running ones.
        """
        layers.check_images(images, halvings=len(self.stage_sizes) - 1)
        convolve = functools.partial(layers.convolution, init=self.convolution_init, dtype=self.dtype)
        normalise = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        x = convolve(images, STEM_WIDTH)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                x = self.block(self.width * 2**stage, stride, convolve, normalise)(x)
        x = jnp.mean(nn.relu(normalise(x)), axis=(1, 2))
        logits = layers.dense(x, self.num_classes, init=self.dense_init, dtype=self.dtype)
        return logits.astype(jnp.float32)


class PreactivationBlock(layers.Block):
    """Normalisation, ReLU and a 3×3 convolution, twice, with a shortcut.

    If the block changes the shape, the shortcut is a 1×1 convolution of the first ReLU's output, as in the
    code of Zagoruyko and Komodakis; otherwise it is the block's input.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, width]."""
        activated = nn.relu(self.normalise(x))
        y = self.convolve(activated, self.width, 3, self.stride)
        y = self.convolve(nn.relu(self.normalise(y)), self.width)
        shortcut = x if x.shape == y.shape else self.convolve(activated, self.width, 1, self.stride)
        return shortcut + y


class LateStrideBlock(layers.Block):
    """`PreactivationBlock` as in the code of DEF's authors.

    The second convolution is the strided one, so the first runs at full size, and the shortcut projects the
    block's input, before normalisation and ReLU.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, width]."""
        y = self.convolve(nn.relu(self.normalise(x)), self.width)
        y = self.convolve(nn.relu(self.normalise(y)), self.width, 3, self.stride)
        shortcut = x if x.shape == y.shape else self.convolve(x, self.width, 1, self.stride)
        return shortcut + y


class PreactivationBottleneck(layers.Block):
    """1×1, 3×3 and 1×1 convolutions, each preceded by normalisation and ReLU, with a shortcut.

    If the block changes the shape, the shortcut is a 1×1 convolution of the block's input.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, 4 * width]."""
        width_out = 4 * self.width
        y = self.convolve(nn.relu(self.normalise(x)), self.width, 1)
        y = self.convolve(nn.relu(self.normalise(y)), self.width, 3, self.stride)
        y = self.convolve(nn.relu(self.normalise(y)), width_out, 1)
        shortcut = x if x.shape == y.shape else self.convolve(x, width_out, 1, self.stride)
        return shortcut + y


# 1.1 M parameters in 332 leaves: 9n + 2 = 110 layers with n = 12. 32×32 images reach the mean as 8×8.
resnet110 = functools.partial(
    PreactivationResNet,
    block=PreactivationBottleneck,
    stage_sizes=(12, 12, 12),
    width=16,
    convolution_init=layers.he_fan_out,
    dense_init=layers.torch_default,
)

# 36.5 M parameters in 108 leaves: 6n + 4 = 28 layers with n = 4, 10 times as wide. 32×32 images reach the
# mean as 8×8. The authors define another initialisation, but do not apply it.
wrn_28_10 = functools.partial(
    PreactivationResNet,
    block=LateStrideBlock,
    stage_sizes=(4, 4, 4),
    width=160,
    convolution_init=layers.torch_default,
    dense_init=layers.torch_default,
)

# 78 k parameters in 25 leaves: n = 1. For CIFAR or images as small as digits on a CPU, with the blocks of
# Zagoruyko and Komodakis.
wrn_10_1 = functools.partial(PreactivationResNet, block=PreactivationBlock, stage_sizes=(1, 1, 1), width=16)
