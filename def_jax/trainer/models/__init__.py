"""The networks used in the experiments, by name."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from def_jax.checks import look_up
from def_jax.trainer.models.preactivation import (
    LateStrideBlock,
    PreactivationBlock,
    PreactivationBottleneck,
    PreactivationResNet,
    resnet110,
    wrn_10_1,
    wrn_28_10,
)
from def_jax.trainer.models.resnet import BasicBlock, Bottleneck, ResNet, resnet8, resnet50, resnet110_basic
from def_jax.trainer.models.transformer import (
    Transformer,
    transformer_1m,
    transformer_11m,
    transformer_85m,
    transformer_115k,
)
from def_jax.trainer.models.vgg import VGG, vgg16, vgg_digits, vgg_small, vgg_strided

__all__ = [
    'LANGUAGE_MODELS',
    'MODELS',
    'VGG',
    'BasicBlock',
    'Bottleneck',
    'LateStrideBlock',
    'PreactivationBlock',
    'PreactivationBottleneck',
    'PreactivationResNet',
    'ResNet',
    'Transformer',
    'get_model',
    'resnet8',
    'resnet50',
    'resnet110',
    'resnet110_basic',
    'transformer_1m',
    'transformer_11m',
    'transformer_85m',
    'transformer_115k',
    'vgg16',
    'vgg_digits',
    'vgg_small',
    'vgg_strided',
    'wrn_10_1',
    'wrn_28_10',
]

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    # From the paper.
    'vgg16': vgg16,
    'resnet110': resnet110,
    'wrn_28_10': wrn_28_10,
    'resnet50': resnet50,
    # Small networks of the same kinds, for CPUs.
    'vgg_digits': vgg_digits,
    'vgg_small': vgg_small,
    'vgg_strided': vgg_strided,
    'resnet8': resnet8,
    'wrn_10_1': wrn_10_1,
    # From He et al.
    'resnet110_basic': resnet110_basic,
}

LANGUAGE_MODELS: Mapping[str, Callable[..., nn.Module]] = {
    'transformer_115k': transformer_115k,
    'transformer_1m': transformer_1m,
    'transformer_11m': transformer_11m,
    'transformer_85m': transformer_85m,
}


def get_model(name: str, num_classes: int, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """Builds one of the networks in `MODELS`.

    Every network is called as `model.apply(variables, images, train=…)` with float32 images
    [B, H, W, C], returns float32 logits [B, num_classes], and has the collections `params` and
    `batch_stats`. `vgg16` has dropout, so training needs `rngs={'dropout': key}`.

    Args:
        name: a key of `MODELS`.
        num_classes: the number of logits.
        dtype: the dtype of the computation, e.g. bfloat16; parameters, statistics and logits stay float32.

    Returns:
        The Flax module, not yet initialised.

    Raises:
        ValueError: if the name is unknown or `num_classes` is not positive.

    >>> import jax, jax.numpy as jnp
    >>> model = get_model('vgg_digits', num_classes=10)
    >>> images = jnp.zeros((2, 8, 8, 1))
    >>> variables = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    18482
    """
    make = look_up('model', name, MODELS)
    if num_classes < 1:
        raise ValueError(f'{num_classes=} must be at least 1: the number of labels in the data set.')
    return make(num_classes=num_classes, dtype=dtype)
