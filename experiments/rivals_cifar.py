"""Rivals on the reduced CIFAR-10, at 1/64 of the bytes; the plan is that of `experiments.rivals`.

The question, fixed before the runs: DEF-Q at 1/64 minus the best rival, at an equal message and at equal
bytes on the wire. Sixteen workers gather eight times DEF-Q's bytes, so top-k has a row at an eighth of the
message; PowerSGD of rank 1 and EF-signSGD send about 1/32 here, which favours them.
"""

from experiments.few_bits import def_q, on_convolutions
from experiments.rivals import sign_ef, sparse_loco, top_k
from experiments.tuning import Contender

__all__ = ['PAGE', 'SETTINGS']

SETTINGS = [
    on_convolutions(
        'CIFAR-10, 1/64',
        [
            def_q(64, 2, 0.2),
            Contender('SGD', 'sgd', {}, 0.2),
            Contender('SGD, momentum 0', 'sgd', {'momentum': 0.0}, 0.8),
            def_q(256, 2, 0.2),
            Contender("the paper's DEF", 'def', {'ratio': 64}, 0.1),
            top_k(64, 0.9, 0.1),
            top_k(64, 0.0, 0.8),
            top_k(512, 0.0, 0.8),
            sparse_loco(64, 4, 0.1),
            Contender('PowerSGD, rank 1', 'powersgd', {'rank': 1}, 0.1),
            sign_ef(0.01),
            sign_ef(0.2, momentum=0.0),
        ],
    )
]

PAGE = """\
# Rivals on convolutions

**Question.** That of [rivals](../rivals/README.md) on the reduced CIFAR-10, with sixteen workers.

![Differences from DEF-Q, with 95 % intervals](differences.png)

{table}

**Findings.** No rival ended distinguishably above DEF-Q. Top-k without momentum, with messages as large as
DEF-Q's and eight times the bytes on the wire,
ends <!-- number: rivals_cifar; CIFAR-10, 1/64; top-k, 1/64, momentum 0; difference --><!-- /number -->
points from it; with as many bytes on the
wire, <!-- number: rivals_cifar; CIFAR-10, 1/64; top-k, 1/512, momentum 0; difference --><!-- /number -->.
EF-signSGD without momentum, with messages twice as large and sixteen times the bytes on the wire,
ends <!-- number: rivals_cifar; CIFAR-10, 1/64; EF-signSGD, 1/32, momentum 0; difference --><!-- /number -->
from it.
The others end behind, by intervals below zero: top-k with
momentum <!-- number: rivals_cifar; CIFAR-10, 1/64; top-k, 1/64, momentum 0.9; difference --><!-- /number -->,
SparseLoCo with four local
steps <!-- number: rivals_cifar; CIFAR-10, 1/64; SparseLoCo 1/64, H = 4; difference --><!-- /number -->,
PowerSGD <!-- number: rivals_cifar; CIFAR-10, 1/64; PowerSGD, rank 1; difference --><!-- /number -->,
EF-signSGD with momentum
at <!-- number: rivals_cifar; CIFAR-10, 1/64; EF-signSGD, 1/32, momentum 0.9; difference --><!-- /number -->,
not surely (p), and the paper's
DEF <!-- number: rivals_cifar; CIFAR-10, 1/64; the paper's DEF; difference --><!-- /number -->.
Uncompressed SGD
ends <!-- number: rivals_cifar; CIFAR-10, 1/64; SGD; difference --><!-- /number -->
from DEF-Q, without momentum
at <!-- number: rivals_cifar; CIFAR-10, 1/64; SGD, momentum 0; difference --><!-- /number -->.

**Setting.** The problem and the rule for rates are those of [few bits](../few_bits/README.md): five
convolutions of 71 k parameters, 10,000 training images, 2,340 steps. The methods are those of
[rivals](../rivals/README.md).

**Limits.** A small network and short runs, on two kinds of machine; five seeds; two chose each rate, a factor
of two apart. Bytes are those that a worker sends: with 16 workers, a method that gathers (top-k, SparseLoCo,
EF-signSGD) passes eight times as many over the network as DEF-Q does with a message of that size.

{origins}

    python -m experiments run rivals_cifar
    python -m experiments page rivals_cifar
"""
