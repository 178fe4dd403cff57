"""Rivals: published methods in their best form against DEF-Q, at 1/64 of the bytes.

The plan, committed before its runs. DEF-Q is `def_sgd` or `def_adamw` with its defaults. Every rival has its
rate tuned by the same rule, and momentum or the number of local steps from the grid below, each of whose
points is a row: the comparison that counts is with a rival's best row, chosen after the fact, which favours
the rival. "Same bytes" are those that a worker sends, except that methods that gather pass more over the
network: with 8 workers four times as much, so top-k and SparseLoCo have rows at a quarter of the message as
well. EF-signSGD had no row without momentum at first, and grids ended where the best rate was inside them,
though one at their edge might have been chosen as well: both were mended after the first results.
"""

from experiments.few_bits import again, def_q, on_digits
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS', 'perceptron', 'sign_ef', 'sparse_loco', 'top_k']

# Bits and local steps of the same bytes: 32 / bits · H.
_LOCAL = {64: ((2, 4), (4, 8), (8, 16)), 256: ((2, 16), (4, 32), (8, 64))}
_SPARSE_STEPS = {64: (1, 4), 256: (4, 16)}


def _local(compression: int, first: float) -> list[Contender]:
    """Local SGD and DiLoCo, which send everything after H steps, in few bits."""
    return [
        Contender(f'{title}, H = {every}, {bits} bits', method, {'every': every, 'bits': bits}, first)
        for method, title in (('local_sgd', 'local SGD'), ('diloco', 'DiLoCo'))
        for bits, every in _LOCAL[compression]
    ]


def _sparse(compression: int, first: float) -> list[Contender]:
    """Top-k with momentum before the choice and without, and SparseLoCo after H local steps."""
    sizes = (compression, 4 * compression)
    found = [top_k(size, momentum, first) for size in sizes for momentum in (0.9, 0.0)]
    return found + [sparse_loco(size, H, first) for size in sizes for H in _SPARSE_STEPS.get(size, ())]


def top_k(compression: int, momentum: float, first: float) -> Contender:
    """With momentum before the choice of elements."""
    options = {'ratio': compression, 'momentum': momentum}
    return Contender(f'top-k, 1/{compression}, momentum {momentum:g}', 'top_k', options, first)


def sign_ef(first: float, **options: float) -> Contender:
    """With momentum before the signs are taken, or without, as in its paper's algorithm."""
    momentum = options.get('momentum', 0.9)
    return Contender(f'EF-signSGD, 1/32, momentum {momentum:g}', 'sign_ef', options, first)


def sparse_loco(compression: int, every: int, first: float) -> Contender:
    """After H local steps; `compression` counts the bytes of all of them."""
    options = {'ratio': compression / every, 'every': every}
    return Contender(f'SparseLoCo 1/{compression}, H = {every}', 'sparse_loco', options, first)


def perceptron(compression: int) -> Setting:
    """All methods on the perceptron of width 64 at a size of the message, 64 or 256."""
    first = 0.1
    methods = [
        def_q(compression, 2, first),
        Contender('SGD', 'sgd', {}, first),
        Contender("the paper's DEF", 'def', {'ratio': compression}, first),
        *_sparse(compression, first),
        *_local(compression, first),
    ]
    if compression == 64:  # all but DeMo send 1/32 or more here, which favours them
        onebit = {'freeze_after': 120, 'momentum': 0.0}  # 15 % of the steps, as in its paper
        methods += [
            sign_ef(first / 10),
            sign_ef(8 * first, momentum=0.0),
            Contender('1-bit Adam, 1/32 and dense at first', 'onebit_adam', onebit, first / 50),
            Contender('PowerSGD, rank 1', 'powersgd', {'rank': 1}, first),
            Contender('DeMo', 'demo', {'ratio': compression, 'momentum': 0.0}, first / 50),
        ]
    return on_digits(f'digits, 1/{compression}', 64, methods)


# The methods that came closest, with fresh seeds; planned when the first seeds had been seen.
_CLOSE = (
    'top-k, 1/64, momentum 0',
    'top-k, 1/256, momentum 0',
    'SparseLoCo 1/64, H = 4',
    'local SGD, H = 4, 2 bits',
    'EF-signSGD, 1/32, momentum 0',
    'DeMo',
)
SETTINGS = [perceptron(64), again(perceptron(64), range(1000, 1060), *_CLOSE)]

PAGE = """\
# Rivals

**Question.** Does DEF-Q, with its defaults, train better than published methods at 1/64 of the bytes, each
with its rate tuned by the same rule, most with momentum 0.9? Other pages have
[1/256](../rivals_256/README.md) and [convolutions](../rivals_cifar/README.md).

![Differences from DEF-Q, with 95 % intervals](differences.png)

{table}

"Minus the first" is the method minus DEF-Q, in points of test accuracy, with a 95 % interval over fresh
seeds; "tuned again" adds the choice of both rates ([how](../README.md)); "within the margin" says whether the
whole interval lies above minus half a point.

**Findings.** No rival ended distinguishably above DEF-Q, at this size. The rows called "again" decide
between the closest; their seeds are new, and their number was fixed before. At 1/64, top-k without momentum,
whose message is as large as DEF-Q's,
ends <!-- number: rivals; digits, 1/64, again; top-k, 1/64, momentum 0; difference --><!-- /number -->
points from it: the same within half a point. Its 8 messages are gathered, four times DEF-Q's bytes on the
wire; with as many bytes there it
ends <!-- number: rivals; digits, 1/64, again; top-k, 1/256, momentum 0; difference --><!-- /number -->
from it. SparseLoCo with four local steps, gathered too,
ends <!-- number: rivals; digits, 1/64, again; SparseLoCo 1/64, H = 4; difference --><!-- /number -->
from it: measurably behind, within half a point. Local SGD in two bits
ends <!-- number: rivals; digits, 1/64, again; local SGD, H = 4, 2 bits; difference --><!-- /number -->
from it, DeMo <!-- number: rivals; digits, 1/64, again; DeMo; difference --><!-- /number -->,
and EF-signSGD without momentum, whose messages are twice as
large, <!-- number: rivals; digits, 1/64, again; EF-signSGD, 1/32, momentum 0; difference --><!-- /number -->.
With 20 seeds, the paper's DEF, DiLoCo and, with more bytes than DEF-Q, 1-bit Adam and PowerSGD of rank 1 end
behind, by intervals below zero.

**Setting.** The problem and the rule for rates are those of [few bits](../few_bits/README.md). Top-k and
EF-signSGD compress the updates of SGD, with momentum 0.9 or, as in their papers' algorithms, without; an
element of top-k takes 32 bits, its
value in bfloat16 and its place in 16 bits. SparseLoCo sends 2-bit values with 16-bit places. Local SGD and
DiLoCo, with momentum SGD inside, send everything every H steps in few bits, with error feedback.

**Limits.** A small network and short runs. Rows of one method differ in momentum or H; its
best row was not chosen by validation, which favours it. DiLoCo's outer optimizer is the published one, not
tuned; local SGD lacks it. Top-k lacks DGC's masking and warm-up. Of 1-bit Adam, whose rate had no warm-up,
two or three of twenty tuning runs diverged at each rate above 0.0016. Bytes are those that a worker sends:
with 8 workers, a method that gathers (top-k, SparseLoCo, DeMo, the sign methods) passes four times as many
over the network as one that reduces. Intervals are not corrected for the number of rows; p-values are.

{origins}

    python -m experiments run rivals
    python -m experiments page rivals
"""
