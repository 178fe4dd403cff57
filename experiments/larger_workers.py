"""Larger workers: the same sequences a step, by fewer workers of several devices each, as `inside` has them.

The plan, committed before its runs. A step takes 32 sequences, as 8 workers of one device with 4 each, as 4
workers of two devices, or as 2 workers of four; a worker's devices average their gradients, so a worker of
S devices is one of one device with S times the sequences, as which it runs here. AdamW has the better of the
two decays that experiments/adamw.py found best. Rates are chosen by the rule of all experiments.

Two further rows ask why larger workers train better, if they do. A worker's optimizer has the second moment
of its own gradients, most of which is the noise of its few sequences. "Squares averaged" gives each worker
the mean over workers of these squares: as much noise, measured better. "Squares of the mean" gives it the
square of the mean gradient, as dense AdamW has it. Both need a dense all-reduce each step, so they are no
methods, but they tell second moments from gradients: what they do not gain is left to the gradients. Without
compression, what remains of the gain has nothing to do with what waits.

The perceptron of width 64 likewise: 64 images a step, by 2, 8 and 4 workers, beside SGD, with the rule, seeds
and margin of `experiments.few_bits`; two workers come first.

The transformer of 115 k parameters follows, with the steps, seeds, rates and AdamW's decays of
`experiments.transformers`: first two workers, then eight, whose AdamW is on record there, then four. Of 1 M,
where a run takes twenty minutes of a core, eight workers at 1/256 come first, in 1 bit: beside AdamW and the
2 bits that are on record there, they also say whether `bits='auto'` holds at that size. Two workers follow,
at 1/256 in 1 bit beside AdamW on their batches, then at 1/1024 and 1/64.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from def_jax.ground.types import PyTree
from def_jax.trainer.workers import AXIS
from experiments.adamw import adamw
from experiments.few_bits import again, on_digits
from experiments.methods import REVISION
from experiments.own_chunk import UNCOMPRESSED, exact, rounded
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS', 'of_115k', 'shared_moments']

_SEQUENCES = 32  # a step


class _Moments(NamedTuple):
    steps: jax.Array
    nu: PyTree


def shared_moments(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, of_the_mean: bool
) -> optax.GradientTransformation:
    """What `def_adamw` has inside, with second moments that all workers share.

    Args:
        learning_rate, weight_decay: see `def_adamw`.
        of_the_mean: whether these are of the mean gradient; otherwise squares are averaged over workers.
    """
    b2, eps, factor = 0.995, 1e-8, 3.0

    def squares(gradient: jax.Array) -> jax.Array:
        if of_the_mean:
            return jax.lax.pmean(gradient, AXIS) ** 2
        return jax.lax.pmean(gradient**2, AXIS)

    def init(params: PyTree) -> _Moments:
        return _Moments(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: PyTree, state: _Moments, params: PyTree = None) -> tuple[PyTree, _Moments]:
        del params
        steps = state.steps + 1
        nu = jax.tree.map(lambda nu, g: b2 * nu + (1 - b2) * squares(g), state.nu, updates)
        scaled = jax.tree.map(lambda g, nu: factor * g / (jnp.sqrt(nu / (1 - b2**steps)) + eps), updates, nu)
        return scaled, _Moments(steps, nu)

    return optax.chain(
        optax.GradientTransformation(init, update),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _sharing(title: str, of_the_mean: bool) -> Contender:
    options = {
        'ratio': 256,
        'bits': 1,
        'detach': 0.2,
        'optimizer': 'experiments.larger_workers:shared_moments',
        'optimizer_options': {'weight_decay': 0.1, 'of_the_mean': of_the_mean},
        'weight_decay': 0.0,
        'outer': 'sgd',
        'outer_options': {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True},
    }
    return Contender(f'1/256, 1 bit, {title}', 'def_q', options, 0.0177, revision=REVISION)


def _setting(workers: int, *further: Contender) -> Setting:
    """AdamW, and DEF-Q at 1/64, 1/256 and 1/1024, each in the bits that own_chunk found better."""
    where: dict[str, object] = {'size': '33k'}
    if workers != 8:
        where |= {'workers': workers, 'sequences': _SEQUENCES // workers}
    devices = 8 // workers
    return Setting(
        name=f'{workers} workers of {devices} device{"s" if devices > 1 else ""}',
        problem='text',
        where=where,
        contenders=[
            adamw(0.8, 0.95, 0.025),
            exact(64, 2, 0.0177),
            exact(256, 1, 0.0177),
            exact(1024, 1, 0.0125),
            UNCOMPRESSED,
            *further,
        ],
        tuning_seeds=range(100, 102),
        seeds=range(1000, 1005),
        margin=0.015,
    )


def _larger(title: str, size: str, steps: int, small: Setting, *contenders: Contender) -> Setting:
    """A setting of 33 k on a larger transformer, with the seeds and rule of `experiments.transformers`."""
    return dataclasses.replace(
        small,
        name=f'{title}, {small.name}',
        where={**small.where, 'size': size, 'steps': steps},
        contenders=list(contenders),
        tuning_seeds=range(100, 101),
        seeds=range(3),
        factor=2.0,
        tuning_where={'steps': 1000},
    )


of_115k = functools.partial(_larger, '115 k', '115k', 5000)
_of_1m = functools.partial(_larger, '1 M', '1m', 3000)


def _perceptron(workers: int) -> Setting:
    contenders = [
        Contender('SGD', 'sgd', {}, 0.14),
        exact(64, 2, 0.14),
        exact(256, 1, 0.1),
        exact(1024, 1, 0.1),
    ]
    setting = on_digits(f'perceptron, {workers} workers', 64, contenders)
    where = {'width': 64} | ({'workers': workers} if workers != 8 else {})
    return dataclasses.replace(setting, where=where)


_TWO = _setting(2, exact(256, 2, 0.0177))
_AT_115K = [adamw(0.8, 0.99, 0.0125), *(exact(*each, 0.0125) for each in ((256, 1), (64, 2), (1024, 1)))]
SETTINGS = [
    _TWO,
    _setting(
        8,
        _sharing('squares averaged', of_the_mean=False),
        _sharing('squares of the mean', of_the_mean=True),
        exact(256, 2, 0.0177),
    ),
    _setting(4),
    again(_TWO, range(1010, 1020), '1/64, 2 bits', '1/256, 1 bit'),  # the first five left both open
    *(of_115k(_setting(workers), *_AT_115K) for workers in (2, 8, 4)),
    *map(_perceptron, (2, 8, 4)),
    _of_1m(_setting(8), adamw(0.8, 0.99, 0.00625), exact(256, 1, 0.00625), rounded(256, 2, 0.00625)),
    _of_1m(
        _setting(2),
        adamw(0.8, 0.99, 0.00625),
        exact(256, 1, 0.00625),
        *(exact(*each, 0.0015625) for each in ((1024, 1), (64, 2))),
    ),
]

PAGE = """\
# Larger workers

**Question.** The same sequences a step can be many small workers or few large ones, as `inside` makes of the
devices of a node. Which trains better, and why?

![Differences from AdamW, with 95 % intervals](differences.png)

{table}

"Minus the first" is AdamW's loss minus the method's, so greater is better, with a 95 % interval over fresh
seeds; "tuned again" adds the choice of both rates ([how](../README.md)); "within the margin" says whether the
whole interval lies above -0.015 nats.

**Findings.** Larger workers train better, the more so the more is compressed. At 1/64, the ten further seeds
of two workers end <!-- number: larger_workers; 2 workers of 4 devices, again; 1/64, 2 bits; difference --><!-- /number -->
nats from AdamW, at 1/256 in 1
bit <!-- number: larger_workers; 2 workers of 4 devices, again; 1/256, 1 bit; difference --><!-- /number -->; eight workers of one
device end <!-- number: larger_workers; 8 workers of 1 device; 1/64, 2 bits; difference --><!-- /number -->
and <!-- number: larger_workers; 8 workers of 1 device; 1/256, 1 bit; difference --><!-- /number -->. At 1/1024 two
workers are behind, too
(<!-- number: larger_workers; 2 workers of 4 devices; 1/1024, 1 bit; difference --><!-- /number -->), eight far more
(<!-- number: larger_workers; 8 workers of 1 device; 1/1024, 1 bit; difference --><!-- /number -->).

Second moments explain little of it. Of eight workers at 1/256 in 1 bit, which
reach <!-- number: larger_workers; 8 workers of 1 device; 1/256, 1 bit; result --><!-- /number --> nats,
those with squares averaged over workers
reach <!-- number: larger_workers; 8 workers of 1 device; 1/256, 1 bit, squares averaged; result --><!-- /number -->,
with squares of the
mean <!-- number: larger_workers; 8 workers of 1 device; 1/256, 1 bit, squares of the mean; result --><!-- /number -->; two
workers reach <!-- number: larger_workers; 2 workers of 4 devices; 1/256, 1 bit; result --><!-- /number -->.
Without compression, they
reach <!-- number: larger_workers; 2 workers of 4 devices; DEF-Q, uncompressed; result --><!-- /number -->, eight
workers <!-- number: larger_workers; 8 workers of 1 device; DEF-Q, uncompressed; result --><!-- /number -->: all of
the gain at 1/64 is there without compression, and less than half of that at 1/256, where less waits, too.

The transformer of 115 k parameters, in 5,000 steps, ends in nats from AdamW (three seeds):

| | 1/64, 2 bits | 1/256, 1 bit | 1/1024, 1 bit |
|---|---|---|---|
| 8 workers | <!-- number: larger_workers; 115 k, 8 workers of 1 device; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 8 workers of 1 device; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 8 workers of 1 device; 1/1024, 1 bit; difference --><!-- /number --> |
| 4 workers | <!-- number: larger_workers; 115 k, 4 workers of 2 devices; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 4 workers of 2 devices; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 4 workers of 2 devices; 1/1024, 1 bit; difference --><!-- /number --> |
| 2 workers | <!-- number: larger_workers; 115 k, 2 workers of 4 devices; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 2 workers of 4 devices; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; 115 k, 2 workers of 4 devices; 1/1024, 1 bit; difference --><!-- /number --> |

At 1/1024, eight and four workers are behind and two are not: in a run four times as long, the gap that two workers of
33 k have there is gone.

The transformer of 1 M, eight workers at 1/256 in 1 bit, reaches, in 3,000
steps, <!-- number: larger_workers; 1 M, 8 workers of 1 device; 1/256, 1 bit; result --><!-- /number -->
nats, <!-- number: larger_workers; 1 M, 8 workers of 1 device; 1/256, 1 bit; difference --><!-- /number --> from AdamW
(three seeds). In 2 bits, with the own chunk still rounded, it
reached <!-- number: larger_workers; 1 M, 8 workers of 1 device; 1/256, 2 bits, rounded; result --><!-- /number -->
([page](../transformers/README.md)). Two workers of four devices
reach <!-- number: larger_workers; 1 M, 2 workers of 4 devices; 1/256, 1 bit; result --><!-- /number -->
nats, <!-- number: larger_workers; 1 M, 2 workers of 4 devices; 1/256, 1 bit; difference --><!-- /number --> from AdamW.
Four workers did not run at that size, nor did 1/64 and 1/1024 with two.

The perceptron of width 64, with 64 images a step, ends in points from SGD:

| | 1/64, 2 bits | 1/256, 1 bit | 1/1024, 1 bit |
|---|---|---|---|
| 8 workers | <!-- number: larger_workers; perceptron, 8 workers; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 8 workers; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 8 workers; 1/1024, 1 bit; difference --><!-- /number --> |
| 4 workers | <!-- number: larger_workers; perceptron, 4 workers; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 4 workers; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 4 workers; 1/1024, 1 bit; difference --><!-- /number --> |
| 2 workers | <!-- number: larger_workers; perceptron, 2 workers; 1/64, 2 bits; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 2 workers; 1/256, 1 bit; difference --><!-- /number --> | <!-- number: larger_workers; perceptron, 2 workers; 1/1024, 1 bit; difference --><!-- /number --> |

At 1/256 two workers end level with SGD and eight behind; at 1/64 it is the other way round, though the
intervals overlap once the choice of rates counts. So on the perceptron larger workers are not better at every
compression, unlike on the transformer.

**Setting.** The transformer of 33 k parameters, its data and the rule for rates are those of
[few bits](../few_bits/README.md): 32 sequences a step in 1,200 steps. Those of 115 k and 1 M have the steps, rates and
decays of AdamW of [transformers](../transformers/README.md). A worker of S devices runs as one
device with S times the sequences, which is the same arithmetic up to rounding. AdamW has decays of 0.8 and
0.95, the best of those [tried](../adamw/README.md).

**Limits.** Small transformers in short runs; two seeds chose each rate, five are reported. The perceptron's
rates were chosen by 20 seeds, and 20 others are reported. Of 115 k and 1 M, one seed
chose each rate, and three are reported. The rows that
share second moments send every gradient in float32 besides the message, so they explain and do not compete.
DEF-Q has another optimizer inside than AdamW, and what it leads by may be that optimizer's.

{origins}

    python -m experiments run larger_workers
    python -m experiments page larger_workers
"""  # noqa: E501
