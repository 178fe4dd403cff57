"""AdamW tuned as DEF-Q is: its two decays as well as its rate, and DEF-Q's own optimizer without compression.

The plan, committed before its runs. DEF-Q's transformer preset was made with another optimizer inside than
AdamW's (no momentum in the worker, b2 = 0.995, Nesterov momentum of the mean), so a gap to AdamW mixes what
compression costs with what that optimizer gains. Every rate is tuned by the same rule; the comparison
that counts is with AdamW's best row, chosen after the fact, which favours AdamW.
"""

from experiments.few_bits import def_q
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS', 'adamw']

_RATE = 0.025  # what the first experiment chose for both
# The last two were added when 0.8, the least b1 so far, had come out best.
_DECAYS = ((0.9, 0.95), (0.9, 0.99), (0.9, 0.999), (0.8, 0.99), (0.95, 0.99), (0.8, 0.95), (0.6, 0.99))


def adamw(b1: float, b2: float, first: float) -> Contender:
    """Uncompressed AdamW with these decays; the grid of its rates begins at `first`."""
    return Contender(
        f'AdamW, b1 = {b1:g}, b2 = {b2:g}', 'sgd', {'optimizer_options': {'b1': b1, 'b2': b2}}, first
    )


SETTINGS = [
    Setting(
        name='transformer, 33 k',
        problem='text',
        where={'size': '33k'},
        contenders=[
            def_q(64, 2, 0.014),
            *(adamw(*each, _RATE) for each in _DECAYS),
            Contender('DEF-Q, uncompressed', 'def_q', {'ratio': 1, 'bits': 32}, _RATE),
        ],
        tuning_seeds=range(100, 103),
        seeds=range(1000, 1010),
        margin=0.01,
    )
]

PAGE = """\
# AdamW, tuned

**Question.** Is AdamW ahead of DEF-Q at 1/64 of its bytes if its decays are tuned as well as its rate? And
what does compression cost the optimizer that DEF-Q has inside?

![Differences from DEF-Q, with 95 % intervals](differences.png)

{table}

"Minus the first" is DEF-Q's loss minus the method's, so greater is better, with a 95 % interval over fresh
seeds; "tuned again" adds the choice of both rates ([how](../README.md)); "within the margin" says whether all
of it lies above -0.01 nats, so that AdamW is not behind by that. DEF-Q is not behind by that if all of it
lies below +0.01.

**Findings.** At decays in common use we cannot tell who is ahead; with the best of those tried it is AdamW,
by <!-- number: adamw; transformer, 33 k; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
nats. DEF-Q at 1/64 can't be distinguished from the same optimizer without compression. AdamW with decays of
0.9 and 0.95
ends <!-- number: adamw; transformer, 33 k; AdamW, b1 = 0.9, b2 = 0.95; difference --><!-- /number -->
nats from DEF-Q (greater is better), with 0.9 and
0.99 <!-- number: adamw; transformer, 33 k; AdamW, b1 = 0.9, b2 = 0.99; difference --><!-- /number -->,
with 0.8 and
0.99 <!-- number: adamw; transformer, 33 k; AdamW, b1 = 0.8, b2 = 0.99; difference --><!-- /number -->.
DEF-Q's optimizer
uncompressed <!-- number: adamw; transformer, 33 k; DEF-Q, uncompressed; difference --><!-- /number -->.

These runs of DEF-Q rounded a worker's own chunk. [The own chunk exact](../own_chunk/README.md) compares AdamW
with DEF-Q as it is now; other pages quote its figure.

**Setting.** The transformer of 33 k parameters, its data and the rule for rates are those of
[few bits](../few_bits/README.md), and so are the runs of its first two rows. Uncompressed, DEF-Q is
`def_jax.def_adamw(rate, 1, 'workers', bits=32)`: every step sends everything, so all workers stand at x.

**Limits.** One small transformer in a short run. AdamW's best row was chosen after the fact, which favours
AdamW. DEF-Q's own decays were chosen on such transformers, which favours DEF-Q.

{origins}

    python -m experiments run adamw
    python -m experiments page adamw
"""
