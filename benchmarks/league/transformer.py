"""A transformer on the standard library's bytes, with Adam-like optimizers: about 20 CPU-seconds a run.

The network, the text and the draws of benchmarks/adamw: 33 k parameters, 8 workers of 4 sequences, 1,200
steps, warm-up and cosine, decoupled weight decay. Tuned on validation files with one seed; three others are
tested on test files.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.adamw import network, text
from benchmarks.league.contenders import WORKERS, Contender, Problem, answer, gradient_point, narrower
from def_jax import get_method
from def_jax.mesh.ownership import own_leaves

__all__ = ['TRANSFORMER']

SIZE = network.SIZES['33k']
STEPS, LOCAL_BATCH, POINTS = 1200, 4, 6
WARMUP, WEIGHT_DECAY = 0.1, 0.1
LONGEST = 64  # as benchmarks/adamw draws its places in the text
WINDOWS, LAST_WINDOWS, AT_ONCE = 512, 8192, 256  # for evaluation
HOPELESS = 3.5  # a run of so large a loss after a third of its steps is stopped
PyTree = Any

split = functools.cache(text.split)


def inner(rate: Any, b1: float | None = 0.9, b2: float = 0.95) -> optax.GradientTransformation:
    """AdamW; without a first moment if b1 is 0, and without either if it is None."""
    if b1 is None:
        scale = optax.identity()
    elif b1 == 0:
        scale = optax.scale_by_rms(b2, 1e-8, eps_in_sqrt=False, bias_correction=True)
    else:
        scale = optax.scale_by_adam(b1, b2)
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, int(WARMUP * STEPS), STEPS)
    return optax.chain(
        scale,
        optax.add_decayed_weights(WEIGHT_DECAY, lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(lambda count: rate * unit(count)),
    )


def train(contender: Contender) -> Callable[[Sequence[float], Sequence[int], bool], np.ndarray]:
    """See `Problem`."""
    programs = make_programs(contender)

    def run(rates, seeds, tuning):
        part = 'validation' if tuning else 'test'
        pairs = zip(rates, seeds, strict=True)
        return np.stack([curves(*programs, rate, seed, part) for rate, seed in pairs])

    return run


def curves(step: Callable, loss: Callable, state: PyTree, rate: float, seed: int, part: str) -> np.ndarray:
    """Trains once; returns [2, POINTS], the training loss and that on a part of the text."""
    words, params = jnp.asarray(split()['train']), network.init(SIZE, seed)
    starts = np.random.default_rng([17, seed]).integers(
        0, len(words) - LONGEST - 1, (STEPS, WORKERS, LOCAL_BATCH)
    )
    found = np.full((2, POINTS), np.inf)
    for i, segment in enumerate(np.split(starts, POINTS)):
        trained = []
        for places in segment:
            params, state, batch_loss = step(params, state, words, places, rate)
            trained.append(batch_loss)
        windows = text.windows(split()[part], LAST_WINDOWS if i == POINTS - 1 else WINDOWS, SIZE.context)
        evaluated = [loss(params, state, batch) for batch in np.split(windows, len(windows) // AT_ONCE)]
        found[:, i] = np.mean(trained), np.mean(evaluated)
        if i + 1 >= POINTS / 3 and not found[1, i] < HOPELESS:
            break
    return found


def make_programs(contender: Contender) -> tuple[Callable, Callable, PyTree]:
    """Compiled: one step of all workers, and the loss of what the method outputs; and the initial state."""
    method, params = get_method(contender.method), network.init(SIZE, 0)

    def mean_loss(params, tokens):
        return jnp.mean(network.losses(SIZE, params, tokens))

    def optimizer(rate):
        return contender.optimizer(inner(rate, **contender.inner))

    own = own_leaves(optimizer(0.1), params)
    axes = jax.tree.map(lambda is_own: 0 if is_own else None, own)
    state = jax.tree.map(
        lambda is_own, x: jnp.stack([x] * WORKERS) if is_own else x, own, optimizer(0.1).init(params)
    )

    def worker(params, state, words, places, rate):
        here = gradient_point(method, params, state)
        tokens = words[places[:, None] + jnp.arange(SIZE.context + 1)]
        loss, grads = jax.value_and_grad(mean_loss)(here, tokens)
        updates, state = optimizer(rate).update(grads, state, here)
        return optax.apply_updates(params, updates), state, jax.lax.pmean(loss, 'workers')

    def evaluated(params, state, tokens):
        return jax.lax.pmean(mean_loss(answer(method, params, state), tokens), 'workers')

    mapped = functools.partial(
        jax.vmap, axis_name='workers', axis_size=WORKERS
    )  # replicated arguments are not mapped
    step = mapped(worker, in_axes=(None, axes, None, 0, None), out_axes=(None, axes, None))
    loss = mapped(evaluated, in_axes=(None, axes, None), out_axes=None)
    return jax.jit(step), jax.jit(loss), state


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
    grid=(0.3, 1, 3),
    tuning_seeds=(0,),
    seeds=(1, 2, 3),
    metrics=('train_loss', 'test_loss'),
)
