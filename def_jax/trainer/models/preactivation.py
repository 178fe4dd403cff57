"""Residual networks with pre-activation blocks, for CIFAR: ResNet-110 and wide residual networks.

Source: He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", 2016; Zagoruyko and
Komodakis, "Wide Residual Networks", 2016. `resnet110` and `wrn_28_10` are the networks in the code of
DEF's authors; the docstrings of the blocks describe where they differ from these papers.
"""

import functools

import jax
from flax import linen as nn

from def_jax.trainer.models import layers
from def_jax.trainer.models.resnet import ResNet

__all__ = ['LateStrideBlock', 'PreactivationBottleneck', 'PreactivationResNet', 'resnet110', 'wrn_28_10']

PreactivationResNet = functools.partial(ResNet, preactivated=True, stem_width=16)


class LateStrideBlock(layers.Block):
    """Normalisation, ReLU and a 3×3 convolution, twice, with a shortcut, as in the code of DEF's authors.

    The second convolution is the strided one, so the first runs at full size; if the block changes the shape,
    the shortcut is a 1×1 convolution of its input, before normalisation and ReLU.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps float [B, H, W, C] to float [B, H / stride, W / stride, width]."""
        y = self.convolve(nn.relu(self.normalise(x)), self.width)
        y = self.convolve(nn.relu(self.normalise(y)), self.width, 3, self.stride)
        shortcut = x if x.shape == y.shape else self.convolve(x, self.width, 1, self.stride)
        return shortcut + y


class PreactivationBottleneck(layers.Block):
    """1×1, 3×3 and 1×1 convolutions, each after normalisation and ReLU; shortcut as `LateStrideBlock`'s."""

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
