"""A network that compiles in a second: `--config.model=faults.small_model:perceptron`."""

import jax.numpy as jnp
from flax import linen as nn


class Perceptron(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        del train
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1).astype(jnp.float32)))
        return nn.Dense(self.num_classes)(hidden)


def perceptron(num_classes, dtype):
    del dtype
    return Perceptron(num_classes)
