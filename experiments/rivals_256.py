"""Rivals at 1/256 of the bytes, on the perceptron; the plan is that of `experiments.rivals`."""

from experiments.few_bits import again
from experiments.rivals import perceptron

__all__ = ['PAGE', 'SETTINGS']

_CLOSE = ('top-k, 1/256, momentum 0', 'SparseLoCo 1/256, H = 4', 'local SGD, H = 16, 2 bits')
SETTINGS = [perceptron(256), again(perceptron(256), range(1000, 1060), *_CLOSE)]

PAGE = """\
# Rivals at 1/256

**Question.** That of [rivals](../rivals/README.md), at 1/256 of the bytes.

![Differences from DEF-Q, with 95 % intervals](differences.png)

{table}

**Findings.** No rival ended distinguishably above DEF-Q. With sixty seeds, top-k without momentum, equal
messages and four times the bytes on the wire,
ends <!-- number: rivals_256; digits, 1/256, again; top-k, 1/256, momentum 0; difference --><!-- /number -->
points from it, SparseLoCo, gathered too, stands
at <!-- number: rivals_256; digits, 1/256, again; SparseLoCo 1/256, H = 4; difference --><!-- /number -->
and local SGD
at <!-- number: rivals_256; digits, 1/256, again; local SGD, H = 16, 2 bits; difference --><!-- /number -->.
With twenty, top-k with as many bytes on the
wire ends <!-- number: rivals_256; digits, 1/256; top-k, 1/1024, momentum 0; difference --><!-- /number -->
from it, and the paper's
DEF <!-- number: rivals_256; digits, 1/256; the paper's DEF; difference --><!-- /number -->.

**Setting and limits** are those of [rivals](../rivals/README.md).

{origins}

    python -m experiments run rivals_256
    python -m experiments page rivals_256
"""
