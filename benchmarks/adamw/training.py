"""Trains the transformer, with all workers on one device."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.adamw import network, text
from benchmarks.workers import AXIS, mapped, own_axes, stacked, train_step

__all__ = ['Programs', 'adamw', 'course', 'evaluate', 'make_programs']

WARMUP, WEIGHT_DECAY = 0.1, 0.1
PyTree = Any
Point = Callable[[PyTree, PyTree], PyTree]  # of parameters and state


class Programs(NamedTuple):
    """Compiled, of all workers."""

    size: network.Size
    step: Callable  # (params, state, text, starts [workers, sequences], rate) -> params, state, loss
    losses: Callable  # (params, state, windows) -> the loss by point
    state: PyTree


def adamw(
    rate: Any, steps: int, scale: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """AdamW with warm-up and cosine, and weight decay on matrices; `scale` stands for Adam's."""
    unit = optax.warmup_cosine_decay_schedule(0.0, 1.0, int(WARMUP * steps), steps)
    return optax.chain(
        scale or optax.scale_by_adam(0.9, 0.95),
        optax.add_decayed_weights(WEIGHT_DECAY, lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        optax.scale_by_learning_rate(lambda count: rate * unit(count)),
    )


def make_programs(
    size: network.Size,
    workers: int,
    optimizer: Callable[[Any], optax.GradientTransformation],
    points: Mapping[str, Point],
    applied: Callable[[PyTree], PyTree] = lambda updates: updates,
) -> Programs:
    """The programs of a network and an optimizer.

    Args:
        size: of the network.
        workers: on the device.
        optimizer: a worker's whole chain, of the rate.
        points: by name, what is evaluated.
        applied: what the parameters receive of the updates.
    """
    params = network.init(size, 0)

    def mean_loss(params, tokens):
        return jnp.mean(network.losses(size, params, tokens))

    def worker(params, state, words, starts, rate):
        step = train_step(optimizer(rate), mean_loss, applied)
        params, state, loss = step(params, state, words[starts[:, None] + jnp.arange(size.context + 1)])
        return params, state, jax.lax.pmean(loss, AXIS)

    def losses(params, state, tokens):
        return jax.lax.pmean(
            {name: mean_loss(at(params, state), tokens) for name, at in points.items()}, AXIS
        )

    axes = own_axes(optimizer(0.1), params)
    step = mapped(worker, workers, (None, axes, None, 0, None), (None, axes, None))
    evaluated = mapped(losses, workers, (None, axes, None))
    return Programs(size, step, evaluated, stacked(optimizer(0.1), params, workers))


def course(
    programs: Programs, seed: int, rate: float, shape: tuple[int, int, int], parts: int
) -> Iterator[tuple[list[float], PyTree, PyTree]]:
    """Trains; after each of `parts` of the steps, the batches' losses since, the parameters and the state.

    `shape` is steps, workers and sequences.
    """
    words, params = jnp.asarray(text.split()['train']), network.init(programs.size, seed)
    state = programs.state
    for segment in np.split(text.starts(seed, shape), parts):
        trained = []
        for starts in segment:
            params, state, loss = programs.step(params, state, words, starts, rate)
            trained.append(loss)
        yield [float(loss) for loss in trained], params, state


def evaluate(programs: Programs, params: PyTree, state: PyTree, part: str, number: int) -> dict[str, float]:
    """The mean loss by point on windows of a part of the text, in nats a byte."""
    batches = text.batches(part, number, programs.size.context)
    found = [programs.losses(params, state, batch) for batch in batches]
    return {name: float(np.mean([losses[name] for losses in found])) for name in found[0]}
