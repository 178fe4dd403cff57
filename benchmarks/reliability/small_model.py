"""A network that compiles in a second: `--config.model=benchmarks.reliability.small_model:Perceptron`."""

from flax import linen as nn


class Perceptron(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        del train
        hidden = nn.relu(nn.Dense(256)(images.reshape(len(images), -1)))
        return nn.Dense(self.num_classes)(hidden)
