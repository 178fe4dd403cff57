"""Ranks and dtypes are never promoted in silence, so users may forbid both."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from sharded_workers import EXPLICIT, mesh_of, step_of

import def_jax

PARAMS = {'w': jnp.ones((8, 4)), 'b': jnp.ones(4)}
SHUFFLED = {'order': 'shuffled', 'allocation': 'balanced'}
# Every option of a block and of the link, several at once where they can be combined.
OPTIONS = [
    ({}, {'detach': 'auto', 'bits': 8, 'skip_nonfinite': True}),
    (SHUFFLED, {'detach': 'auto', 'bits': 16, 'decay': 0.9, 'average_every': 3}),
    ({'order': 'cyclic'}, {'every': 2, 'outer': optax.sgd(0.7, 0.9, nesterov=True), 'bits': 1}),
    (SHUFFLED, {'overlap': True, 'detach': 'auto', 'bits': 2}),
    (SHUFFLED, {'overlap': True, 'skip_nonfinite': True}),
]
OPTIMIZERS = [
    *(
        def_jax.error_feedback(
            def_jax.random_block(3, **blocks), 'workers', inner=optax.sgd(0.1, 0.9), **options
        )
        for blocks, options in OPTIONS
    ),
    def_jax.error_feedback(def_jax.random_k(3), 'workers', overlap=True),
    def_jax.error_feedback(def_jax.scaled(0.5), 'workers', outer=optax.sgd(0.7, 0.9)),
    def_jax.def_sgd(0.1, 64, 'workers'),
]
METHODS = [name for name, method in def_jax.METHODS.items() if method.link is not None]


def method_optimizer(name):
    method = def_jax.METHODS[name]
    chosen = {'ratio': 2, 'chunk': 4, 'freeze_after': 2} | ({'every': 2} if name == 'sparse_loco' else {})
    options = {option: value for option, value in chosen.items() if option in method.options}
    return method.optimizer(optax.identity(), optax.sgd(0.1, 0.9), 'workers', method.compressor(2), **options)


def test_all_that_sends_traces_without_promotion():
    """On Explicit axes, where arrays have types that operations must agree on, too."""

    def loss_fn(params, batch):
        whole = jax.sharding.reshard(params, P())
        return jnp.mean((batch @ whole['w'] + whole['b'][None]) ** 2)

    def step(dist, params, batch):
        state = dist.init(params)
        params, state, _ = step_of(dist, loss_fn)(params, state, batch)
        if isinstance(state, def_jax.ErrorFeedbackState):
            dist.output_params(params, state)
        return params

    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
        for optimizer in [*OPTIMIZERS, *map(method_optimizer, METHODS)]:
            dist = def_jax.spmd(optimizer, mesh_of(2, 4, EXPLICIT), {'w': P('shard'), 'b': None})
            params = jax.device_put(PARAMS, dist.shardings)
            jax.eval_shape(functools.partial(step, dist), params, jnp.ones((4, 8)))
