"""DEF on scikit-learn's digits: the default run. Nothing is downloaded, 2 CPU cores suffice.

Table:    none; a small stand-in for the paper's Table 1 (VGG on CIFAR-10, 16 workers)
Command:  python train.py --config=configs/digits.py --workdir=runs/digits
Expected: test accuracy of x and y at least 98 % at ratio 64 (uncompressed SGD: about 99 %).
Variants: --config.method=sgd (uncompressed), --config.method=ef (diverges), --config.ratio=256, ...

To train on your own terms, copy this file: python -m def_jax.train --config=mine.py --workdir=runs/mine
"""

import ml_collections

from def_jax.trainer.configuration import defaults


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The complete configuration; def_jax/trainer/configuration/defaults.py explains every key.

    Args:
        arg: settings, e.g. 'method=ef,ratio=256'; see above.
    """
    config = defaults.get_defaults()

    config.method = 'def'
    config.ratio = 64

    config.num_workers = 16
    config.fake_devices = True

    config.dataset = 'digits'
    config.model = 'vgg_digits'

    config.batch_size = 128
    config.num_epochs = 140
    config.learning_rate = 0.1

    config.eval_every_epochs = 20
    config.log_every_steps = 20

    return defaults.override(config, arg)
