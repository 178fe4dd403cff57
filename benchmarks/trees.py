"""The networks whose parameters the benchmarks update, and their steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.optimizers import update
from def_jax.sharding.at_points import point
from def_jax.trainer.models import MODELS
from def_jax.trainer.models.transformer import Transformer

__all__ = ['NETWORKS', 'Network', 'gradient', 'shapes', 'whole_step']

PyTree = Any


class Network(NamedTuple):
    """A network, and the shape of the batch that its parameters are initialised for."""

    title: str
    model: nn.Module
    batch: tuple[int, ...]  # of images, [B, H, W, C], or of tokens, [B, L]

    @property
    def has_images(self) -> bool:
        return len(self.batch) == 4

    def inputs(self) -> jax.Array:
        return jnp.zeros(self.batch, jnp.float32 if self.has_images else jnp.int32)

    def variables(self) -> PyTree:
        options = {'train': False} if self.has_images else {}
        return jax.jit(lambda key: self.model.init(key, self.inputs(), **options))(jax.random.key(0))

    def loss(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
        """The mean cross-entropy of class or token 0 in training."""
        if self.has_images:
            logits, _ = self.model.apply(
                variables, inputs, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
            )
        else:
            logits = self.model.apply(variables, inputs)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0])


def shapes(network: Network) -> tuple[PyTree, PyTree]:
    """Shapes of the parameters, and of the other collections."""
    variables = dict(jax.eval_shape(network.variables))
    return variables.pop('params'), variables


def whole_step(network: Network, optimizer: optax.GradientTransformation) -> Callable:
    """A worker's step: (params, opt_state, other variables, batch) to new parameters and state."""

    def step(params, opt_state, rest, batch):
        grads = gradient(network, point(params, opt_state), rest, batch)
        return update(optimizer, params, opt_state, grads)

    return step


def gradient(network: Network, point: PyTree, rest: PyTree, batch: jax.Array) -> PyTree:
    """The gradient of the network's loss; `rest` are its other variables."""
    return jax.grad(lambda p: network.loss(rest | {'params': p}, batch))(point)


def _transformer(vocab_size: int, num_layers: int, width: int) -> Transformer:
    return Transformer(
        vocab_size=vocab_size, num_layers=num_layers, width=width, num_heads=width // 64, context=1024
    )


NETWORKS = {
    'vgg16': Network('VGG-16', MODELS['vgg16'](num_classes=10), (2, 32, 32, 3)),
    'resnet50': Network('ResNet-50', MODELS['resnet50'](num_classes=1000), (2, 224, 224, 3)),
    # GPT-2's vocabulary, whose size 50,257 only few ratios divide.
    'transformer': Network('Transformer of width 384', _transformer(50_257, 6, 384), (1, 128)),
    'transformer_85m': Network('Transformer of 85 M parameters', _transformer(256, 12, 768), (1, 128)),
}
