"""Mistakes that a user of the library can make, and the errors that name them."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import def_jax
from def_jax import baselines, diagnostics
from def_jax.ground.random import shared_key

BLOCK = def_jax.random_block(4)
PARAMS = {'w': jnp.ones((4, 8)), 'b': jnp.ones(3)}
MORE = PARAMS | {'new': jnp.ones(2)}
FEEDBACK, EF21 = LINKS = def_jax.error_feedback(BLOCK, None), def_jax.ef21(BLOCK, None)
WRAPPER = def_jax.error_feedback(BLOCK, None, inner=optax.sgd(0.1, momentum=0.9))
WITHIN = [
    *(WRAPPER, optax.chain(optax.identity(), WRAPPER)),
    optax.inject_hyperparams(def_jax.def_sgd, static_args=('compression', 'bits'))(0.1, 64, None),
    optax.multi_transform({'sent': WRAPPER, 'still': optax.set_to_zero()}, {'w': 'sent', 'b': 'still'}),
]
PRESET = functools.partial(def_jax.def_sgd, 0.1, 64, None)
CHAIN = optax.chain(optax.sgd(0.1, momentum=0.9), FEEDBACK)
TWICE = optax.chain(FEEDBACK, FEEDBACK)
AS_DICTS = {'0': {}, '1': CHAIN.init(PARAMS)[1]._asdict()}
POINTS = def_jax.detached_params, functools.partial(def_jax.output_params, axis_name=None)
FOREIGN = NamedTuple('FOREIGN', [('residual', jax.Array)])(jnp.ones(2))
NUMBERS = [jnp.arange(3), jnp.ones(3, bool), 1.0, 'x', jax.random.key(0), jnp.tanh]


def like(value):
    return jax.tree.map(lambda x: jnp.full(x.shape, value), PARAMS)


def stacked(optimizer):
    return jax.tree.map(lambda x: jnp.stack([x] * 8), (PARAMS, optimizer.init(PARAMS)))


def seeded(make):
    return lambda seed: make(BLOCK, None, seed=seed)


MISTAKES = [
    *(
        (rf'compressor={name} must be called first: pass what {name}', make, function, 'workers')
        for make in (def_jax.error_feedback, def_jax.ef21)
        for function in (def_jax.random_block, def_jax.identity, baselines.random_k, baselines.scaled)
        for name in [function.__name__]
    ),
    *(
        (r'seed is an array of .* and shape .*, but must be an integer', make, seed)
        for make in (seeded(def_jax.error_feedback), seeded(def_jax.ef21))
        for seed in (jax.random.key(0), jax.random.PRNGKey(0), jnp.float32(1))
    ),
    *(
        (r"params\['a'\] is .*, but must be a floating-point array", link.init, {'a': number})
        for link in LINKS
        for number in NUMBERS
    ),
    *(
        ('is float8_e5m2, but must have 16 bits', link.init, {'a': jnp.zeros(3, jnp.float8_e5m2)})
        for link in LINKS
    ),
    *(
        (words, link.update, updates, link.init(PARAMS))
        for link in LINKS
        for words, updates in (
            ('is complex64, but must be a floating-point array. Of complex arrays, put optax', like(1j)),
            ('is bool, but must be a floating-point array', like(True)),
            (r"updates\['new'\] is .*, but the residual in opt_state is not there", MORE),
        )
    ),
    *(
        (rf'state is a {type(state).__name__}, but must be \w+State', link.update, PARAMS, state)
        for link, state in (
            *((FEEDBACK, state) for state in (None, (), CHAIN.init(PARAMS), EF21.init(PARAMS))),
            (FEEDBACK, FEEDBACK.init(PARAMS)._asdict()),
            (EF21, FEEDBACK.init(PARAMS)),
        )
    ),
    (
        'inner= holds another def_jax.error_feedback',
        def_jax.error_feedback(BLOCK, None, inner=def_jax.def_sgd(0.1, 16, None)).init,
        PARAMS,
    ),
    *(  # what emits zeros between its steps sends at every one of them
        (
            rf'inner= holds optax\.{name}, .* by accumulate=',
            def_jax.error_feedback(BLOCK, None, inner=inner).init,
            PARAMS,
        )
        for name, inner in (
            ('MultiSteps', optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
            ('apply_every', optax.chain(optax.apply_every(4), optax.sgd(0.1))),
        )
    ),
    *(
        (
            rf'{where} def_jax\.error_feedback, optax\.apply_every, .* by accumulate=',
            POINTS[0],
            PARAMS,
            optax.chain(*links).init(PARAMS),
        )
        for where, links in (
            *(('before', (optax.apply_every(4), link)) for link in (WRAPPER, FEEDBACK)),
            ('after', (WRAPPER, optax.apply_every(4))),
        )
    ),
    *(
        (words, functools.partial(def_jax.error_feedback, BLOCK, None, **options))
        for words, options in (
            ('outer must be elementwise', {'outer': optax.clip_by_global_norm(1.0)}),
            ('outer must be elementwise', {'outer': optax.stateless(lambda u, _: jnp.cumsum(u))}),
            ('outer cannot be applied to a single block', {'outer': optax.adamw(0.1)}),
            ('every=2 and average_every=3 cannot be combined', {'every': 2, 'average_every': 3}),
            ('every=2 and skip_nonfinite=True cannot be', {'every': 2, 'skip_nonfinite': True}),
        )
    ),
    ("order='sorted' must be .*'cyclic'", functools.partial(def_jax.random_block, 4, order='sorted')),
    ("allocation=0 must be .* or 'balanced'", functools.partial(def_jax.random_block, 4, allocation=0)),
    *((r'must be a number in \(0, 1\]', baselines.scaled, delta) for delta in (0, 1.1, math.nan, True)),
    (r'compression=8 with bits=2.* Choose compression >= 16', def_jax.def_sgd, 0.1, 8, None),
    ('compression=0.5 must be a finite number >= 1', def_jax.def_adamw, 0.1, 0.5, None),
    (r'momentum=1 must be a number in \[0, 1\)', functools.partial(PRESET, momentum=1)),
    ('bits=3 must be 1', functools.partial(PRESET, bits=3)),
    *(
        ('learning_rate must be a number .*pass inner=optimizer', preset, optax.sgd(0.1), 64, None)
        for preset in (def_jax.def_sgd, def_jax.def_adamw)
    ),
    *(
        (
            rf"{name} is an array.* static_args=\('{name}', ",
            optax.inject_hyperparams(def_jax.def_sgd, static_args=static)(
                0.1, 64.0, 'workers', bits=2, inside=4
            ).init,
            jnp.ones(8),
        )
        for name, static in (
            ('compression', ()),
            ('bits', ('compression',)),
            ('inside', ('compression', 'bits')),
        )
    ),
    ('momentum=1.5 must be a number in', functools.partial(PRESET, momentum=jnp.float32(1.5))),
    ('every is an array', functools.partial(def_jax.error_feedback, BLOCK, None, every=jnp.int32(2))),
    (
        'detach=.* must be a number in',
        functools.partial(def_jax.error_feedback, BLOCK, None, detach=jnp.ones(2)),
    ),
    *(
        (
            'skip_nonfinite does not hold it.* as inner=',
            read,
            PARAMS,
            optax.chain(optax.sgd(0.1, 0.9), def_jax.error_feedback(BLOCK, None, skip_nonfinite=True)).init(
                PARAMS
            ),
        )
        for read in POINTS
    ),
    *(  # a NaN would stay in the mean of gradients, and all workers skip all later steps
        (
            'skip_nonfinite does not hold it.* as inner=',
            read,
            PARAMS,
            optax.chain(optax.ema(0.9), PRESET(skip_nonfinite=True)).init(PARAMS),
        )
        for read in POINTS
    ),
    (
        r"mask=False must be a pytree .* static_args=\(.*'mask'\)",
        optax.inject_hyperparams(def_jax.def_adamw, static_args=('compression', 'bits'))(
            0.1, 16, None, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        ).init,
        PARAMS,
    ),
    *((r"two error_feedback links act on \['b'\]", read, PARAMS, TWICE.init(PARAMS)) for read in POINTS),
    *(
        ('_params: opt_state holds no residual', read, PARAMS, state)
        for read in POINTS
        for state in ((), None, optax.sgd(0.1, momentum=0.9).init(PARAMS), FOREIGN)
    ),
    *(  # what decides for itself whether to step would hang, and of the others x would drift apart
        ('detached_params: the optimizer .* is inside optax', POINTS[0], PARAMS, around.init(PARAMS))
        for around in (
            optax.apply_if_finite(FEEDBACK, 5),
            optax.MultiSteps(FEEDBACK, 2, should_skip_update_fn=optax.transforms.skip_not_finite),
            optax.conditionally_transform(FEEDBACK, lambda step: step > 3),
            optax.contrib.mechanize(WRAPPER),
            optax.contrib.sam(WRAPPER, optax.sgd(0.1), opaque_mode=False),
        )
    ),
    *(
        (
            'something stands after def_jax.* as inner=',
            read,
            PARAMS,
            optax.chain(FEEDBACK, after).init(PARAMS),
        )
        for read in POINTS
        for after in (optax.adam(0.01), optax.sgd(0.1), optax.scale(-0.1))
    ),
    *(
        (
            r'a schedule \(optax.scale_by_schedule .* follows the link .* learning_rate',
            read,
            PARAMS,
            optax.chain(PRESET(), optax.scale_by_learning_rate(lambda count: 0.1)).init(PARAMS),
        )
        for read in POINTS
    ),
    *(
        (
            'a part of one .ScaleByAdamState., precedes another .* as inner=',
            read,
            PARAMS,
            optax.chain(optax.adam(0.1), within).init(PARAMS),
        )
        for read in POINTS
        for within in WITHIN
    ),
    *(  # whose λ would be broadcast
        (r'detached_params: opt_state is stacked over workers. .* jax.vmap', POINTS[0], *stacked(optimizer))
        for optimizer in (FEEDBACK, WRAPPER)
    ),
    ('one worker; the variance between workers needs', diagnostics.gradient_statistics, PARAMS, None),
    ('error_statistics: opt_state holds no residual', diagnostics.error_statistics, (), None),
    # A trainer that was left as it is takes its gradient at x, too.
    (r'update\(grads, opt_state, params\).*detached_params', WRAPPER.update, PARAMS, WRAPPER.init(PARAMS)),
    *(
        (r'holds no residual .* restored without a target', function, *arguments, AS_DICTS)
        for function, *arguments in ((POINTS[0], PARAMS), (def_jax.stack_state,), (def_jax.unstack_state,))
    ),
    (
        r"params\['new'\] is .*, but the residual in opt_state is not there",
        POINTS[0],
        MORE,
        CHAIN.init(PARAMS),
    ),
]


@pytest.mark.parametrize(('message', 'function', 'arguments'), [(m, f, a) for m, f, *a in MISTAKES])
def test_a_mistake_is_named(message, function, arguments):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_what_resembles_a_mistake():
    """Links on different tensors, a flattened state of NumPy arrays, integers as seeds, an inner wrapper."""
    inside = def_jax.error_feedback(BLOCK, None, inner=optax.apply_if_finite(optax.sgd(0.1), 5))
    def_jax.detached_params(PARAMS, inside.init(PARAMS))
    for around in (
        optax.contrib.sam(WRAPPER, optax.sgd(0.1), opaque_mode=True),
        optax.conditionally_mask(WRAPPER, lambda step: step > 3),
    ):
        def_jax.detached_params(PARAMS, around.init(PARAMS))
    for first in (FEEDBACK, optax.adam(0.1)):
        parts = zip((first, FEEDBACK), (True, False), strict=True)
        apart = optax.chain(*(optax.masked(part, {'w': w, 'b': not w}) for part, w in parts))
        def_jax.detached_params(PARAMS, apart.init(PARAMS))
    state = optax.chain(optax.sgd(0.1), optax.flatten(FEEDBACK)).init(PARAMS)
    read = def_jax.detached_params(PARAMS, jax.tree.map(np.asarray, state))
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, PARAMS)
    keys = [shared_key(seed) for seed in (5, np.int8(5), jnp.int32(5))]
    assert all(np.array_equal(key, keys[0]) for key in keys)


def test_what_precedes_a_wrapper_is_judged_by_what_it_is():
    """A mean of gradients is like the parameters as moments are, and does not negate."""
    optimizer = optax.chain(optax.ema(0.9), WRAPPER)
    state = optimizer.init(PARAMS)
    assert def_jax.detached_params(PARAMS, state) is not None
