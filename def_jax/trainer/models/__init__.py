"""The networks used in the experiments, by name.

Those of `MODELS` take `num_classes` and `dtype`, that of the computation, and map float32 images [B, H, W, C]
and `train` to float32 logits. `vgg16` needs `rngs={'dropout': key}`.
"""

from collections.abc import Callable

from flax import linen as nn

from def_jax.trainer.models import resnet, transformer, vgg

__all__ = ['LANGUAGE_MODELS', 'MODELS']

MODELS: dict[str, Callable[..., nn.Module]] = {
    # From the paper.
    'vgg16': vgg.vgg16,
    'resnet110': resnet.resnet110,
    'wrn_28_10': resnet.wrn_28_10,
    'resnet50': resnet.resnet50,
    # Small networks of the same kinds, for CPUs.
    'vgg_digits': vgg.vgg_digits,
    'vgg_small': vgg.vgg_small,
    'vgg_strided': vgg.vgg_strided,
    'resnet8': resnet.resnet8,
}

LANGUAGE_MODELS: dict[str, Callable[..., nn.Module]] = {
    'transformer_115k': transformer.transformer_115k,
    'transformer_1m': transformer.transformer_1m,
    'transformer_11m': transformer.transformer_11m,
    'transformer_85m': transformer.transformer_85m,
}
