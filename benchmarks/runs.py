"""The training runs that the benchmarks measure."""

from typing import Any

import ml_collections

from configs import cifar10, digits

__all__ = ['SMALL_CIFAR10', 'WINDOW', 'make_config']

WINDOW = 20  # steps between records
SMALL_CIFAR10 = {'model': 'vgg_small', 'train_examples': 10_000, 'test_examples': 512, 'fake_devices': True}
_EPOCHS = {'digits': 40, 'cifar10': 1}  # of 7 and 78 steps


def make_config(name: str, **changes: Any) -> ml_collections.ConfigDict:
    """The configuration to measure, with a single evaluation, at the end."""
    config = digits.get_config() if name == 'digits' else cifar10.get_config()
    epochs = {'num_epochs': _EPOCHS[name], 'eval_every_epochs': _EPOCHS[name]}
    own = {} if name == 'digits' else SMALL_CIFAR10
    config.update(own | epochs | {'log_every_steps': WINDOW} | changes)
    return config
