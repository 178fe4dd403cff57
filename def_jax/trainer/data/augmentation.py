"""Image preprocessing on the device: random crops and flips for training, standardisation for all images."""

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.trainer.data.dataset import DatasetSpec

__all__ = ['augment', 'standardise']


def augment(key: jax.Array, images: jax.Array, spec: DatasetSpec) -> jax.Array:
    """Crops and flips each training image at random, then standardises it: uint8 [B, H, W, C] to float32.

    Images are padded with zero pixels, as in torchvision's `RandomCrop`, so the padding becomes -mean / std.
    """
    _check_images(images, spec)
    padding = spec.crop_padding
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * padding + 1)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), spec.image_shape)

    images = jax.vmap(crop)(padded, corners)
    if spec.flip:
        flipped = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(flipped, images[:, :, ::-1], images)
    return standardise(images, spec)


def standardise(images: jax.Array, spec: DatasetSpec) -> jax.Array:
    """Scales pixels, uint8, to mean 0 and standard deviation 1 over the data set, as for test images."""
    _check_images(images, spec)
    mean, std = jnp.float32(spec.mean), jnp.float32(spec.std)
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def _check_images(images: jax.Array, spec: DatasetSpec) -> None:
    """Raises ValueError for images that would be scaled or broadcast wrongly."""
    if images.dtype != np.uint8 or images.shape[1:] != spec.image_shape:
        wanted = f'uint8 [B, {", ".join(map(str, spec.image_shape))}] for data set {spec.name!r}'
        raise ValueError(f'{images.dtype=}, {images.shape=} must be {wanted}, as loaded.')
