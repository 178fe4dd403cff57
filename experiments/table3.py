"""Table 3: test accuracy of three networks on CIFAR-10 and CIFAR-100 at ratio 64, 16 workers.

A run takes about half a GPU hour with VGG-16, two with ResNet-110 and nine with WRN-28-10.
"""

from experiments.paper_tables import COMPRESSED, contender, protocol

__all__ = ['EXECUTOR', 'PAGE', 'SETTINGS']

EXECUTOR = 'trainer'
_METHODS = {'sgd': 'SGD', **COMPRESSED}
_NUMBERS = """
cifar10  vgg16     93.76 ± 0.14, 92.16 ± 0.06, 91.88 ± 0.14, 91.79 ± 0.17, 93.75 ± 0.12, 93.61 ± 0.07
cifar10  resnet110 94.73 ± 0.06, diverges,     92.95 ± 0.17, 92.26 ± 0.04, 94.34,        94.66 ± 0.07
cifar10  wrn_28_10 96.21 ± 0.07, diverges,     95.33 ± 0.01, 95.44 ± 0.13, 96.26 ± 0.05, 96.24 ± 0.12
cifar100 vgg16     72.50 ± 0.33, 68.87 ± 0.21, 67.00 ± 0.07, 65.68 ± 0.16, 72.02 ± 0.10, 72.38 ± 0.07
cifar100 resnet110 76.78 ± 0.29, diverges,     71.19 ± 0.31, 69.21 ± 0.04, 76.43 ± 0.12, 76.98 ± 0.21
cifar100 wrn_28_10 80.81 ± 0.12, diverges,     79.04 ± 0.01, 79.60 ± 0.12, 80.88 ± 0.16, 80.95 ± 0.16
"""


def _setting(line: str):
    dataset, model, numbers = line.split(None, 2)
    methods = [
        contender(title, name, paper=number.strip(), ratio=1 if name == 'sgd' else 64)
        for (name, title), number in zip(_METHODS.items(), numbers.split(','), strict=True)
    ]
    return protocol(f'{model}, {dataset}', {'name': dataset, 'model': model}, methods)


SETTINGS = [_setting(line) for line in _NUMBERS.strip().splitlines()]

PAGE = """\
# Table 3: three networks on CIFAR-10 and CIFAR-100

**Question.** How do the paper's methods compare with SGD at ratio 64, whatever the network?

![Differences from SGD, with 95 % intervals](differences.png)

{table}

**Limits.** Rates are chosen among the paper's three candidates with one seed.

{origins}

    JAX_PLATFORMS=cuda python -m experiments run table3
    python -m experiments page table3
"""
