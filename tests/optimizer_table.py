"""One table for all test files: optax's optimizers inside a link, its wrappers around one, and options.

A row is a function of `wrap`, which puts a link around a worker's optimizer, or of no optimizer is the link.
Where `wrap` returns the optimizer alone, the row is plain optax.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from compressing import feedback

import def_jax

SGD = optax.sgd(0.1, momentum=0.5)
NESTEROV = optax.sgd(0.7, momentum=0.5, nesterov=True)
SHUFFLED = {'order': 'shuffled', 'allocation': 'balanced'}
ONLY = {name: {leaf: leaf == name for leaf in 'wb'} for name in 'wb'}  # masks


class Row(NamedTuple):
    make: Callable[[Callable], optax.GradientTransformation]  # from `wrap`
    options: Mapping[str, Any]  # of `compressing.feedback`
    narrow: Any  # the dtype of b, one of two parameters


def around(make, narrow=jnp.bfloat16, **options):
    return Row(make, options, narrow)


def inside(optimizer, narrow=jnp.bfloat16, **options):
    return Row(lambda wrap: wrap(optimizer), options, narrow)


ROWS = {
    'sgd': inside(SGD, detach='auto'),
    'adamw': inside(optax.adamw(0.03, weight_decay=0.01), bits=8, skip_nonfinite=True),
    'lion': inside(optax.lion(0.02), bits=1, blocks=SHUFFLED, decay=0.99),
    'muon': inside(optax.contrib.muon(0.05), average_every=3),
    'adafactor': inside(optax.adafactor(0.05, min_dim_size_to_factor=4), overlap=True),
    'lamb': inside(optax.lamb(0.03), outer=NESTEROV, every=2, blocks={'order': 'cyclic'}),
    'noise': inside(optax.chain(optax.add_noise(0.01, 0.55, key=0), SGD), bits=2, overlap=True),
    'injected inside': inside(
        optax.inject_hyperparams(optax.adam)(0.03),
        narrow=jnp.float32,  # optax multiplies moments by an array of float32, which widens them
        skip_nonfinite=True,
        overlap=True,
    ),
    'frozen inside': inside(
        optax.partition({'train': SGD, 'freeze': optax.set_to_zero()}, {'w': 'train', 'b': 'freeze'})
    ),
    'finite inside': inside(optax.apply_if_finite(SGD, 5), bits=2, blocks=SHUFFLED, detach='auto'),
    'no optimizer inside': around(lambda wrap: optax.chain(optax.sgd(0.1), wrap()), bits=2),
    'schedule_free': around(lambda wrap: optax.contrib.schedule_free(wrap(optax.sgd(0.1)), 0.1)),
    'masked': around(
        lambda wrap: optax.chain(
            optax.masked(wrap(SGD), ONLY['w']), optax.masked(optax.set_to_zero(), ONLY['b'])
        ),
    ),
    'multi_transform': around(
        lambda wrap: optax.multi_transform(
            {'w': wrap(optax.adam(0.03)), 'b': wrap(SGD)}, {'w': 'w', 'b': 'b'}
        ),
        bits=2,
    ),
    'inject_hyperparams': around(
        lambda wrap: optax.inject_hyperparams(lambda rate: wrap(optax.sgd(rate)))(rate=0.1), outer=NESTEROV
    ),
    'flatten': around(lambda wrap: optax.flatten(wrap(optax.adamw(0.03))), bits=2),
    'chain': around(
        lambda wrap: optax.chain(
            optax.inject_hyperparams(optax.clip_by_global_norm)(max_norm=1.0),  # no moment, though a float
            wrap(SGD),
            optax.add_decayed_weights(-0.001),
            optax.scale_by_trust_ratio(0.02),
            optax.contrib.reduce_on_plateau(),
        ),
        narrow=jnp.float32,  # likewise
        skip_nonfinite=True,
        bits=2,
    ),
    'named_chain': around(lambda wrap: optax.named_chain(('clip', optax.clip(1.0)), ('link', wrap(SGD)))),
}


def with_links(row, axis_name='workers', ratio=None, inside=None):
    """The row's optimizer with a link where `wrap` stands, of the row's options or of a ratio alone.

    `inside` joins a worker's optimizer.
    """
    link = functools.partial(feedback, axis_name=axis_name)
    link = functools.partial(link, ratio) if ratio else functools.partial(link, **row.options)

    def wrap(inner=None):
        if inner is None:
            return link()
        return link(inner=optax.chain(inside, inner) if inside else inner)

    return row.make(wrap)


def plain(row):
    """The row's optimizer without links: optax's own."""
    return row.make(lambda inner=None: inner or optax.identity())


PRESETS = {
    'def_sgd': def_jax.def_sgd(0.1, 64, 'workers'),
    'def_adamw': def_jax.def_adamw(0.03, 64, 'workers'),
}
