"""VGG-16 on CIFAR-10, the paper's main experiment.

Table:    1 (and the VGG-16 column of Table 3)
Command:  python train.py --config=configs/cifar10.py --workdir=runs/cifar10
Expected: ratio 64, 16 workers: DEF 93.75 ± 0.12, DEF-A 93.61 ± 0.07; SGD 93.76 ± 0.14
Variants: --config.method=sgd | ef | saef | def | def_a, --config.ratio=16 | 64 | 256 | 512 | 1024

The paper tunes the learning rate per method; the authors' scripts use 0.05, and 0.01 for EF.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    """The complete configuration; see configs/digits.py for what each key means."""
    config = digits.get_config().unlock()

    config.fake_devices = False

    config.dataset = 'cifar10'
    config.model = 'vgg16'

    config.num_epochs = 200
    config.learning_rate = 0.05

    config.eval_every_epochs = 1
    config.log_every_steps = 100

    return config.lock()
