"""What every network shares: the check of its images, its convolutions, its normalisation, its last layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

__all__ = ['STATISTICS_MOMENTUM', 'LayerMaker', 'batch_norm', 'check_images', 'convolution', 'logits']

STATISTICS_MOMENTUM = 0.9  # what the running statistics of batch normalisation keep of themselves a step

LayerMaker = Callable[..., nn.Module]


def check_images(images: jax.Array, *, halvings: int) -> None:
    """Raises ValueError for images that would fail deep inside a network, or not at all.

    Args:
        images: what the network was called with.
        halvings: how often the network halves the height and the width. Both must be even each time:
            where they are not, poolings drop the last row, and strided convolutions treat the two
            borders differently.

    Raises:
        ValueError: if the images are not float [B, H, W, C] with H and W multiples of 2 ** halvings.

    >>> check_images(jnp.zeros((2, 28, 28, 3)), halvings=2)
    """
    if images.ndim != 4:
        raise ValueError(f'{images.shape=} must have four axes, [B, H, W, C].')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f'{images.dtype=} must be a float type: standardise the images first.')
    height, width = images.shape[1:3]
    multiple = 2**halvings
    if height % multiple or width % multiple or height * width == 0:
        raise ValueError(
            f'{images.shape=} must have a height and a width that are multiples of {multiple}, since the '
            f'network halves them {halvings} times. Resize or pad the images, or choose a model for their '
            'size.'
        )


def convolution(width: int, kernel: int = 3, stride: int = 1, *, dtype: DTypeLike = jnp.float32) -> nn.Conv:
    """A convolution without bias, He initialised, padded by `kernel // 2` zeros on each side.

    Source: He et al., "Delving Deep into Rectifiers", 2015.

    Args:
        width: the number of channels that come out.
        kernel: the height and the width of the kernel, odd.
        stride: by which the height and the width are divided.
        dtype: the type of the computation.

    Returns:
        The layer, a part of the module in whose compact method this is called.
    """
    return nn.Conv(
        width,
        kernel_size=(kernel, kernel),
        strides=stride,
        # 'SAME' would pad only the far border where the stride is 2; the published networks pad both.
        padding=kernel // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=_convolve,
        dtype=dtype,
    )


def _convolve(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` of [B, H, W, C] and [h, w, C, D]; small ones as a matrix product on CPUs.

    On a CPU, XLA's gradient of a 3×3 convolution of 2×2 pixels and 512 channels takes 40 times as long as
    the product of the patches with the kernel. From 8×8 pixels on the two are about equal. Other backends
    have tuned convolutions.
    """
    axes = zip(images.shape[1:3], padding, kernel.shape[:2], strides, strict=True)
    sizes = [(pixels + sum(pad) - extent) // stride + 1 for pixels, pad, extent, stride in axes]
    if jax.default_backend() != 'cpu' or max(sizes) > 4:
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns = (size * stride for size, stride in zip(sizes, strides, strict=True))
    windows = [
        padded[:, i : i + rows : strides[0], j : j + columns : strides[1]]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    patches = jnp.concatenate(windows, axis=-1)  # [B, H', W', h * w * C]
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def batch_norm(*, train: bool, zero_init: bool = False, dtype: DTypeLike = jnp.float32) -> nn.BatchNorm:
    """A batch normalisation; its running statistics keep `STATISTICS_MOMENTUM` of themselves.

    Args:
        train: whether to normalise by the batch's statistics and to update the running ones.
        zero_init: whether the scale starts at 0 in place of 1.
        dtype: the type of the computation; parameters and statistics are float32.

    Returns:
        The layer, a part of the module in whose compact method this is called.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=STATISTICS_MOMENTUM,
        epsilon=1e-5,
        scale_init=nn.initializers.zeros if zero_init else nn.initializers.ones,
        dtype=dtype,
    )


def logits(x: jax.Array, num_classes: int, *, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The mean over height and width and a dense layer: [B, H, W, C] to float32 [B, num_classes].

    The layer starts at N(0, 0.01²), so that the first loss is about that of guessing; a larger start sends
    VGG-16 far above it in the first steps.

    Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, Section 5.1; torchvision's VGG.
    """
    x = jnp.mean(x, axis=(1, 2))
    return nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.01), dtype=dtype)(x).astype(jnp.float32)
