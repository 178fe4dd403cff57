"""Parameters in bfloat16: what rounding them costs dense training and DEF-Q, whose residual takes it up.

The plan, committed before its runs. An update of less than half a unit in a parameter's last place is lost
where parameters are bfloat16. Dense training therefore keeps a float32 copy, the masters; DEF-Q's residual
has what rounding takes, so y is that copy. Rates are chosen by the rule of all experiments.

Rows "through the momentum outside" ran while what was rounded was sent again through `outer`, whose momentum
amplified it. The others followed, with an array for it in the state.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from def_jax.ground.types import PyTree
from experiments.adamw import adamw
from experiments.methods import APART
from experiments.own_chunk import exact
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS', 'with_masters']


class _Masters(NamedTuple):
    copy: PyTree
    inner: PyTree


def with_masters(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, b1: float, b2: float
) -> optax.GradientTransformation:
    """AdamW on a float32 copy of the parameters, which follow it, rounded."""
    inner = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay)

    def init(params):
        copy = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return _Masters(copy, inner.init(copy))

    def update(updates, state, params=None):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), updates)
        updates, after = inner.update(wide, state.inner, state.copy)
        copy = optax.apply_updates(state.copy, updates)
        # In float32, so that adding this to the parameters makes them the rounded copy.
        missing = jax.tree.map(lambda m, x: m.astype(x.dtype).astype(jnp.float32) - x, copy, params)
        return missing, _Masters(copy, after)

    return optax.GradientTransformation(init, update)


_B1, _B2 = 0.8, 0.95  # the best of experiments/adamw.py
_MASTERS = Contender(
    'AdamW with masters',
    'sgd',
    {
        'weight_decay': 0.0,
        'optimizer': 'experiments.narrow:with_masters',
        'optimizer_options': {'weight_decay': 0.1, 'b1': _B1, 'b2': _B2},
    },
    0.025,
)
_DEF_Q = exact(64, 2, 0.0177), exact(256, 1, 0.0177)
SETTINGS = [
    Setting(
        name='33 k, bfloat16 parameters',
        problem='text',
        where={'size': '33k', 'narrow': True},
        contenders=[
            _MASTERS,
            adamw(_B1, _B2, 0.025),
            *(each._replace(revision=APART) for each in _DEF_Q),
            *(each._replace(title=f'{each.title}, through the momentum outside') for each in _DEF_Q),
        ],
        tuning_seeds=range(100, 102),
        seeds=range(1000, 1005),
        margin=0.01,
    ),
    Setting(
        name='33 k, float32 parameters',
        problem='text',
        where={'size': '33k'},
        contenders=[adamw(_B1, _B2, 0.025), *_DEF_Q],
        tuning_seeds=range(100, 102),
        seeds=range(1000, 1005),
        margin=0.01,
    ),
]

PAGE = """\
# Parameters in bfloat16

**Question.** With parameters in bfloat16, does DEF-Q need a float32 copy of them, as dense training does?

![Differences from the first row, with 95 % intervals](differences.png)

{table}

"Minus the first" is the first row's loss minus the method's, so greater is better, with a 95 % interval over
fresh seeds; "tuned again" adds the choice of both rates ([how](../README.md)).

**Findings.** Without masters, AdamW
ends <!-- number: narrow; 33 k, bfloat16 parameters; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number --> nats from AdamW with
them. DEF-Q has no masters, but with `outer` an array of what x lacks, and
ends <!-- number: narrow; 33 k, bfloat16 parameters; 1/64, 2 bits; difference --><!-- /number --> from it at 1/64,
and <!-- number: narrow; 33 k, bfloat16 parameters; 1/256, 1 bit; difference --><!-- /number --> at 1/256. While what x lacks passed
the momentum outside, it
ended <!-- number: narrow; 33 k, bfloat16 parameters; 1/64, 2 bits, through the momentum outside; difference --><!-- /number -->
and <!-- number: narrow; 33 k, bfloat16 parameters; 1/256, 1 bit, through the momentum outside; difference --><!-- /number -->. With float32 parameters, it
ends <!-- number: narrow; 33 k, float32 parameters; 1/64, 2 bits; difference --><!-- /number -->
and <!-- number: narrow; 33 k, float32 parameters; 1/256, 1 bit; difference --><!-- /number --> from AdamW. So at x, which is
bfloat16, it now ends about as far behind as with float32 parameters; no run has diverged.

**Setting.** The transformer of 33 k parameters, its data and the rule for rates are those of
[few bits](../few_bits/README.md). Parameters are bfloat16 or float32; the network computes in float32. AdamW
has decays of 0.8 and 0.95, and moments in the dtype of the parameters it is given, as in optax. "With
masters", it keeps a float32 copy of the parameters besides, 4 bytes each. DEF-Q is evaluated at x, which is
bfloat16.

**Limits.** One small transformer in a short run.

{origins}

    python -m experiments run narrow
    python -m experiments page narrow
"""  # noqa: E501
