"""A transformer on the standard library's bytes, with Adam-like optimizers: about 20 CPU-seconds a run.

The network, the text and the draws of benchmarks/adamw: 33 k parameters, 8 workers of 4 sequences, 1,200
steps, warm-up and cosine, decoupled weight decay. Tuned on validation files with one seed; three others are
tested on test files.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optax

from benchmarks.adamw import network, training
from benchmarks.league.contenders import WORKERS, Contender, Problem, answer, narrower
from def_jax import get_method

__all__ = ['TRANSFORMER']

SIZE = network.SIZES['33k']
STEPS, LOCAL_BATCH, POINTS = 1200, 4, 6
WINDOWS, LAST_WINDOWS = 512, 8192  # for evaluation
HOPELESS = 3.5  # a run of so large a loss after a third of its steps is stopped


def inner(rate: Any, b1: float | None = 0.9, b2: float = 0.95) -> optax.GradientTransformation:
    """AdamW; without a first moment if b1 is 0, and without either if it is None."""
    if b1 is None:
        return training.adamw(rate, STEPS, optax.identity())
    if b1 == 0:
        second = optax.scale_by_rms(b2, 1e-8, eps_in_sqrt=False, bias_correction=True)
        return training.adamw(rate, STEPS, second)
    return training.adamw(rate, STEPS, optax.scale_by_adam(b1, b2))


def train(contender: Contender) -> Callable[[Sequence[float], Sequence[int], bool], np.ndarray]:
    """See `Problem`."""
    method = get_method(contender.method)
    programs = training.make_programs(
        SIZE,
        WORKERS,
        lambda rate: contender.optimizer(inner(rate, **contender.inner)),
        {'answer': functools.partial(answer, method)},
    )

    def run(rates, seeds, tuning):
        part = 'validation' if tuning else 'test'
        pairs = zip(rates, seeds, strict=True)
        return np.stack([curves(programs, rate, seed, part) for rate, seed in pairs])

    return run


def curves(programs: training.Programs, rate: float, seed: int, part: str) -> np.ndarray:
    """Trains once; returns [2, POINTS], the training loss and that on a part of the text."""
    found, shape = np.full((2, POINTS), np.inf), (STEPS, WORKERS, LOCAL_BATCH)
    for i, (trained, params, state) in enumerate(training.course(programs, seed, rate, shape, POINTS)):
        number = LAST_WINDOWS if i == POINTS - 1 else WINDOWS
        found[0, i] = np.mean(trained)
        found[1, i] = training.evaluate(programs, params, state, part, number)['answer']
        if i + 1 >= POINTS / 3 and not found[1, i] < HOPELESS:
            break
    return found


ADAM = {'b1': 0.9, 'b2': 0.95}
OURS = {'order': 'shuffled', 'allocation': 'balanced'}  # with what follows, the defaults of def_adamw
NESTEROV = {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True}
WITHOUT_FIRST, WITHOUT_ADAM = {'b1': 0.0, 'b2': 0.995}, {'b1': None}


def contenders(ratio: int) -> list[Contender]:
    """The methods whose messages follow the ratio; Streaming DiLoCo has four fragments."""
    every, fragment = {'every': ratio}, {'every': ratio // 4}
    return [
        Contender('DEF, ours', 'def', ratio, OURS, {'detach': 0.2}, {}, NESTEROV, WITHOUT_FIRST, 0.02),
        Contender('top-k', 'top_k', ratio, inner=ADAM, rate=0.015),
        Contender('DeMo', 'demo', ratio, inner=WITHOUT_ADAM, rate=0.003),
        Contender('DiLoCo', 'diloco', options=every, inner=ADAM, rate=0.004),
        Contender('Local AdamW', 'local_sgd', options=every, inner=ADAM, rate=0.01),
        Contender('DEF (paper), AdamW', 'def', ratio, inner=ADAM, rate=0.008),
        Contender('SPARTA', 'sparta', ratio, inner=ADAM, rate=0.008),
        Contender('Streaming DiLoCo', 'streaming_diloco', 4, options=fragment, inner=ADAM, rate=0.004),
        Contender('random replicator', 'random_replicator', ratio, inner=WITHOUT_FIRST, rate=0.008),
        Contender('CSER', 'cser', ratio, options={'every': 8}, inner=ADAM, rate=0.008),
        # Without a first moment, as ours.
        Contender('Local AdamW (b1 = 0)', 'local_sgd', options=every, inner=WITHOUT_FIRST, rate=0.02),
        Contender('DEF (paper), AdamW (b1 = 0)', 'def', ratio, inner=WITHOUT_FIRST, rate=0.02),
        Contender('SPARTA (b1 = 0)', 'sparta', ratio, inner=WITHOUT_FIRST, rate=0.02),
    ]


FIXED = [
    Contender('PowerSGD', 'powersgd', 16, inner=ADAM, rate=0.015),
    Contender('EF-signSGD', 'sign_ef', inner=ADAM, rate=0.01),
    Contender(
        '1-bit Adam',
        'onebit_adam',
        options={'freeze_after': 180},
        link={'eps': 1e-4, 'b2': 0.98},
        inner=WITHOUT_ADAM,
        rate=0.01,
    ),
]
# In the order in which they are run, the closest rivals first.
BY_RATIO = [contender for pair in zip(contenders(16), contenders(64), strict=True) for contender in pair]
CONTENDERS = [
    Contender('AdamW', 'sgd', inner=ADAM, rate=0.015),
    *BY_RATIO[:6],
    *narrower(BY_RATIO[1]),
    *FIXED[:2],
    *BY_RATIO[6:10],
    *FIXED[2:],
    *BY_RATIO[10:],
]

TRANSFORMER = Problem(
    CONTENDERS,
    network.init(SIZE, 0),
    STEPS,
    inner,
    train,
    reach=1,
    tuning_seeds=(0,),
    seeds=(1, 2, 3),
    metrics=('train_loss', 'test_loss'),
)
