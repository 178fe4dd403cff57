"""The map on CIFAR-10: DEF against SGD by the width of the network and the number of training images.

Command:  python -m paper.sweep --config=configs/tables/map.py --workdir=runs/map_cifar10
          python -m paper.report --workdir=runs/map_cifar10 --output=results/map/cifar10
          (75 runs to tune, a quarter as long, and 125 more; 10 minutes to some hours each on a core, by width.
          On one GPU, add --config.base.fake_devices=False --config.base.workers_per_device=16)
Expected: not run. On digits (results/map) the gap falls as SGD comes closer to zero training error; a gap that
          stays where SGD reaches it would refute that.

`vgg_strided` of 71 k parameters and twice and four times as wide, on 50,000 images; the first also on 2,000 and
10,000. All runs have 11,700 steps. Three rates around each method's best in results/cifar10 are tried, on
images that the runs do not train on; extend a row whose choice is at an edge. λ = 1 is measured at y.
"""

import functools

import ml_collections

from configs import cifar10
from configs.tables import momentum, tables
from def_jax.trainer.models import VGG

STEPS, BATCH = 11_700, 128
twice = functools.partial(VGG, stages=((), (32,), (64, 64), (128, 128)), strided=True)
four_times = functools.partial(VGG, stages=((), (64,), (128, 128), (256, 256)), strided=True)
ROWS = {  # model and training images
    '2,000 images': ('vgg_strided', 2_000),
    '10,000 images': ('vgg_strided', 10_000),
    '50,000 images': ('vgg_strided', 50_000),
    '×2 wide': ('configs.tables.map:twice', 50_000),
    '×4 wide': ('configs.tables.map:four_times', 50_000),
}


def cells(row: str) -> list[dict]:
    """SGD and four methods at the bytes of 64."""
    model, images = ROWS[row]
    kept = images - images // 10  # a tenth is held out to tune
    sizes = {'model': model, 'train_examples': images, 'num_epochs': round(STEPS * BATCH / images)}

    def cell(column: str, rates: tuple[float, ...], **settings) -> dict:
        return tables.cell(row, column, tuned={'learning_rate': rates}, **sizes, **settings)

    del kept
    ours = momentum.OURS | {'allocation': 'balanced'}
    return [
        cell('SGD', (0.4, 0.2, 0.1), method='sgd', ratio=1),
        cell('DEF (paper)', (0.2, 0.1, 0.05), method='def', ratio=64),
        cell('λ = 1 at y', (0.1, 0.05, 0.025), method='saef', ratio=64, point='y'),
        cell('DEF, ours', (2.0, 1.0, 0.5), method='def', ratio=64, **ours),
        cell('DEF, ours, int8', (2.0, 1.0, 0.5), method='def', ratio=16, wire_dtype='int8', **ours),
    ]
