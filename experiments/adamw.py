"""AdamW tuned as DEF-Q is: its two decays as well as its rate, and DEF-Q's own optimizer without compression.

The plan, committed before its runs. DEF-Q's transformer preset was made with another optimizer inside than
AdamW's (no momentum in the worker, b2 = 0.995, Nesterov momentum of the mean), so a gap to AdamW mixes what
compression costs with what that optimizer gains. Every rate is tuned by the same rule; the comparison
that counts is with AdamW's best row, chosen after the fact, which favours AdamW.
"""

from pathlib import Path

from experiments import pages
from experiments.few_bits import def_q
from experiments.plan import Contender, Setting

__all__ = ['SETTINGS', 'write']

_RATE = 0.025  # what the first experiment chose for both
_DECAYS = ((0.9, 0.95), (0.9, 0.99), (0.9, 0.999), (0.8, 0.99), (0.95, 0.99))


def _adamw(b1: float, b2: float) -> Contender:
    return Contender(
        f'AdamW, b1 = {b1:g}, b2 = {b2:g}', 'sgd', {'optimizer_options': {'b1': b1, 'b2': b2}}, _RATE
    )


SETTINGS = [
    Setting(
        name='transformer, 33 k',
        problem='text',
        where={'size': '33k'},
        contenders=[
            def_q(64, 2, 0.014),
            *(_adamw(*each) for each in _DECAYS),
            Contender('DEF-Q, uncompressed', 'def_q', {'ratio': 1, 'bits': 32}, _RATE),
        ],
        tuning_seeds=range(100, 103),
        seeds=range(1000, 1010),
        margin=0.01,
    )
]

_PAGE = """\
# AdamW

{table}

{origins}

    python -m experiments run adamw
    python -m experiments page adamw
"""


def write(folder: Path) -> None:
    """Writes the page and its picture from the records in a folder."""
    pages.write_experiment(SETTINGS, _PAGE, folder)
