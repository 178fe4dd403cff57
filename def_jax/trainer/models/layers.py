"""Building blocks of all networks: input checks, convolutions, normalisation and dense layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

__all__ = [
    *('Layer', 'LayerInit', 'batch_norm', 'check_images', 'convolution', 'dense'),
    *('he_fan_in', 'he_fan_out', 'small_normal', 'torch_default'),
]

STATISTICS_MOMENTUM = 0.9  # the weight of the old running statistics at each step

Layer = Callable[..., jax.Array]
# Maps a layer's fan-in to the arguments of Flax's layer for its initialisers and its bias.
LayerInit = Callable[[int], dict[str, Any]]


def he_fan_in(fan_in: int) -> dict[str, Any]:
    """Kernels N(0, 2 / fan_in), truncated at two standard deviations; no bias.

    Source: He et al., "Delving Deep into Rectifiers", 2015.
    """
    return {'kernel_init': nn.initializers.he_normal(), 'use_bias': False}


def he_fan_out(fan_in: int, *, bias: bool = False) -> dict[str, Any]:
    """Kernels N(0, 2 / fan_out), fan_out the kernel's area times the output channels; biases zero, if any.

    Source: He et al., 2015; the convolutions of torchvision, and of the paper's VGG-16 and ResNet-110.
    """
    return {'kernel_init': nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'), 'use_bias': bias}


def small_normal(fan_in: int) -> dict[str, Any]:
    """Kernels N(0, 0.01²), biases zero; in the last layer, the initial loss is close to that of guessing.

    Source: Goyal et al., "Accurate, Large Minibatch SGD", 2017, Section 5.1.
    """
    return {'kernel_init': nn.initializers.normal(0.01)}


def torch_default(fan_in: int) -> dict[str, Any]:
    """Kernels and biases uniform in ±1/√fan_in, the default of PyTorch's `Conv2d` and `Linear`."""

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return {'kernel_init': uniform, 'bias_init': uniform}


def check_images(images: jax.Array, *, halvings: int) -> None:
    """Raises ValueError unless height and width are even each time that a network halves them.

    Else pooling drops the last row, and strided convolutions treat the two borders differently.
    """
    if images.ndim != 4:
        raise ValueError(f'{images.shape=} must have four axes, [B, H, W, C].')
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f'{images.dtype=} must be a floating-point type: standardise the images first.')
    height, width = images.shape[1:3]
    multiple = 2**halvings
    if height % multiple or width % multiple or height * width == 0:
        why = f'since the network halves them {halvings} times. Resize or pad the images'
        raise ValueError(f'{images.shape=} must have sides that are multiples of {multiple}, {why}.')


def convolution(
    x: jax.Array,
    width: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    init: LayerInit = he_fan_in,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Applies a convolution padded by `kernel // 2` zeros on each side; `init` decides on its bias."""
    return nn.Conv(
        width,
        kernel_size=(kernel, kernel),
        strides=stride,
        # With stride 2, 'SAME' would pad only the far border; the published networks pad both.
        padding=kernel // 2,
        conv_general_dilated=_convolve,
        dtype=dtype,
        **init(kernel * kernel * x.shape[-1]),
    )(x)


def _convolve(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated`; for small images on CPUs, a matrix product, up to 40 times as fast."""
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


def batch_norm(x: jax.Array, *, train: bool, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Applies batch normalisation, in training by the batch's statistics, which update the running ones."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=STATISTICS_MOMENTUM, epsilon=1e-5, dtype=dtype
    )(x)


def dense(x: jax.Array, width: int, *, init: LayerInit, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Applies a dense layer, [B, C] to [B, width]."""
    return nn.Dense(width, dtype=dtype, **init(x.shape[-1]))(x)
