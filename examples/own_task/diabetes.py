"""A model, a data set and a loss that def_jax does not know: regression on scikit-learn's diabetes table.

`config.py` beside this file names the three functions at the end.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import sklearn.datasets

from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.tasks.base import Metric, Task


class Perceptron(nn.Module):
    width: int

    @nn.compact
    def __call__(self, features):
        hidden = nn.tanh(nn.Dense(self.width)(features))
        return nn.Dense(1)(hidden)[..., 0]


class Regression(Task):
    headline = Metric('r2', greater_is_better=True)

    def __init__(self, model, num_features):
        self.model, self.num_features = model, num_features

    def init(self, key):
        variables = self.model.init(key, jnp.zeros((1, self.num_features)))
        return {'params': variables['params'], 'batch_stats': {}}

    def loss(self, params, batch_stats, batch, key):
        predicted = self.model.apply({'params': params}, batch['features'])
        errors = predicted - batch['target']
        return jnp.mean(errors**2), ({'mean_absolute_error': jnp.mean(jnp.abs(errors))}, batch_stats)

    def test_sums(self, variables, batch):
        predicted = self.model.apply({'params': variables['params']}, batch['features'])
        target, mask = batch['target'], batch['mask']
        return {
            'loss': jnp.sum(mask * (predicted - target) ** 2),
            'target': jnp.sum(mask * target),
            'square': jnp.sum(mask * target**2),
            'count': jnp.sum(mask),
        }

    def metrics(self, sums):
        mean, count = sums['target'] / sums['count'], sums['count']
        return {'loss': sums['loss'] / count, 'r2': 1 - sums['loss'] / (sums['square'] - count * mean**2)}


def diabetes(test_share: float = 0.2) -> Dataset:
    """The data set: 442 patients in a fixed random order, scaled by its training patients."""
    features, target = sklearn.datasets.load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    features, target, first = features[order], target[order], round(len(target) * (1 - test_share))
    features = features / features[:first].std(axis=0)
    target = (target - target[:first].mean()) / target[:first].std()
    data = Arrays({'features': features.astype(np.float32), 'target': target.astype(np.float32)})
    return Dataset(train=data.part(0, first), test=data.part(first, len(data)), unit='patients')


def perceptron(width: int = 16) -> nn.Module:
    """The model."""
    return Perceptron(width)


def regression(model: nn.Module, dataset: Dataset) -> Task:
    """The task: what is minimised, and what is reported."""
    return Regression(model, dataset.train.arrays['features'].shape[-1])
