"""Table 2: test accuracy of ResNet-50 on ImageNet by method and ratio; about 85 GPU hours a run."""

from experiments.paper_tables import by_ratio

__all__ = ['EXECUTOR', 'PAGE', 'SETTINGS']

EXECUTOR = 'trainer'
SGD = '76.04'
PAPER = {
    16: ('75.29', '75.83', '75.63', '75.98', '76.10'),
    64: ('73.05', '74.65', '74.84', '76.16', '76.37'),
    128: ('63.80', '74.26', '74.12', '76.17', '76.14'),
    256: ('diverges', '73.83', '73.02', '75.71', '76.00'),
    512: ('diverges', '73.00', '72.60', '75.52', '75.77'),
    1024: ('diverges', '71.89', '71.82', '75.64', '75.57'),
}
SETTINGS = by_ratio('ResNet-50', {'name': 'imagenet'}, SGD, PAPER, seeds=(0,))

PAGE = """\
# Table 2: ResNet-50 on ImageNet

**Question.** How do the paper's methods compare with SGD as the ratio grows?

![Differences from SGD](differences.png)

{table}

**Limits.** One seed for each method, as in the paper.

{origins}

    JAX_PLATFORMS=cuda python -m experiments run table2
    python -m experiments page table2
"""
