"""ResNet-50 on ImageNet.

Table:    2, 16 workers
Command:  python train.py --config=configs/imagenet.py --workdir=runs/imagenet
          python train.py --config=configs/imagenet.py:ratio=256,workers_per_device=4 --workdir=runs/in256
Expected: ratio 64: DEF 76.16 and DEF-A 76.37 % test accuracy; one run of method def gives both, as y and x.

Table 2: test accuracy in %, by method and ratio:

    ratio  sgd    ef        saef   psync  def    def_a
    1      76.04
    16            75.29     75.83  75.63  75.98  76.10
    64            73.05     74.65  74.84  76.16  76.37
    128           63.80     74.26  74.12  76.17  76.14
    256           diverges  73.83  73.02  75.71  76.00
    512           diverges  73.00  72.60  75.52  75.77
    1024          diverges  71.89  71.82  75.64  75.57

The paper tunes the learning rate per method over 0.1, 0.05, 0.01, ... but does not report it; this is the
first.
The data set must be prepared by TFDS as ArrayRecord files; docs/paper_tables.md says how.
"""

import ml_collections

from def_jax.trainer.configuration import defaults


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The complete configuration; def_jax/trainer/configuration/defaults.py explains every key.

    Args:
        arg: settings, e.g. 'ratio=256,workers_per_device=4'; see above.
    """
    config = defaults.get_defaults()

    config.method = 'def'
    config.ratio = 64

    config.num_workers = 16
    config.sequential_workers = True  # under vmap, their convolutions would be grouped

    config.dataset = 'imagenet2012'
    config.model = 'resnet50'

    config.batch_size = 256
    config.num_epochs = 100
    config.learning_rate = 0.1
    config.learning_rate_drops = (0.3, 0.6, 0.9)
    config.weight_decay = 1e-4

    config.eval_every_epochs = 1
    config.log_every_steps = 100

    return defaults.override(config, arg)
