"""What varies over workers: which leaves of a state, by types under shard_map too; and nothing is promoted.

With check_vma=True, gradients that JAX would sum over workers are errors; all else runs, with the numbers of
the oracles in test_error_feedback.py and test_random_composition.py.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optimizer_table import ROWS, with_links
from sharded_workers import EXPLICIT, mesh_of, step_of

import def_jax
from def_jax.baselines import METHODS
from def_jax.ground.collectives import vary_if_tracked
from def_jax.state.ownership import own_leaves

NUM_WORKERS = 4
# All different, so that which elements are the largest is no matter of rounding.
PARAMS = {'w': jnp.asarray(np.random.default_rng(1).normal(size=(4, 8)), jnp.float32), 'b': jnp.ones(8)}
BATCH = np.random.default_rng(0).normal(size=(NUM_WORKERS, 3, 4)).astype(np.float32)
MESH = jax.sharding.Mesh(jax.devices()[:NUM_WORKERS], ('workers',))


def loss_fn(params, batch):
    return jnp.mean((batch @ params['w'] + params['b']) ** 2)


def outside(params, state, batch):
    return jax.grad(loss_fn)(def_jax.detached_params(params, state), batch)


def inside(params, state, batch):
    return jax.grad(lambda p: loss_fn(def_jax.detached_params(p, state), batch))(params)


def at_params(params, state, batch):
    del state
    return jax.grad(loss_fn)(params, batch)


def at_own_params(params, state, batch):
    del state
    return jax.grad(loss_fn)(vary_if_tracked(params, 'workers'), batch)


def mapped(optimizer, gradient, check_vma=True):
    """A step under shard_map, and the first state: per-worker leaves have an axis of workers."""
    own = own_leaves(optimizer, PARAMS)
    specs = def_jax.state_specs(optimizer, PARAMS)
    update = optax.with_extra_args_support(optimizer).update

    @functools.partial(
        jax.shard_map,
        mesh=MESH,
        in_specs=(P(), specs, P('workers')),
        out_specs=(P(), specs),
        check_vma=check_vma,
    )
    def step(params, state, batch):
        state = jax.tree.map(lambda x, mine: x[0] if mine else x, state, own)
        grads = gradient(params, state, batch[0])
        updates, state = update(grads, state, params, value=1.0)
        state = jax.tree.map(lambda x, mine: x[None] if mine else x, state, own)
        return optax.apply_updates(params, updates), state

    first = optimizer.init(PARAMS)
    return step, jax.tree.map(lambda x, mine: jnp.stack([x] * NUM_WORKERS) if mine else x, first, own)


def trace(optimizer, gradient):
    step, state = mapped(optimizer, gradient)
    return jax.eval_shape(step, PARAMS, state, BATCH)


SGD, NESTEROV = optax.sgd(0.1, momentum=0.9), optax.sgd(0.7, momentum=0.9, nesterov=True)
SHUFFLED = {'order': 'shuffled', 'allocation': 'balanced'}
# Every option of a block and of the link, several at once where they can be combined; none promotes.
OPTIMIZERS = {
    'skipping, 8 bits': feedback(inner=SGD, skip_nonfinite=True, detach='auto', bits=8),
    '16 bits': feedback(3, blocks=SHUFFLED, inner=SGD, bits=16, detach='auto', decay=0.9, average_every=3),
    'every, 1 bit': feedback(
        3, blocks={'order': 'cyclic'}, inner=SGD, every=2, decay=0.9, outer=NESTEROV, bits=1
    ),
    'in flight, 2 bits': feedback(3, blocks=SHUFFLED, inner=SGD, overlap=True, detach='auto', bits=2),
    'shuffled, in flight': feedback(blocks=SHUFFLED, inner=optax.sgd(0.1), overlap=True, skip_nonfinite=True),
    'elements, in flight': def_jax.error_feedback(def_jax.baselines.random_k(3), 'workers', overlap=True),
    'scaled': def_jax.error_feedback(def_jax.baselines.scaled(0.5), 'workers', decay=0.9),
    'def_sgd': def_jax.def_sgd(0.1, 64, 'workers'),
}
COMPOSED = {
    'auto': feedback(inner=optax.adamw(0.01), detach='auto', outer=NESTEROV),
    'def_adamw, in flight': def_jax.def_adamw(0.01, 64, 'workers', overlap=True),
    'bare': optax.chain(SGD, feedback()),
    'injected': optax.inject_hyperparams(
        def_jax.def_adamw, static_args=('compression', 'bits', 'axis_name', 'detach', 'outer')
    )(0.01, 64, 'workers'),
    'a step size of its own': feedback(inner=optax.contrib.prodigy(0.1)),
    # The bias is not communicated in blocks, and a link of its own averages it.
    'masked': optax.chain(
        optax.masked(feedback(inner=SGD, average_every=2), {'w': True, 'b': False}),
        optax.masked(
            optax.chain(def_jax.all_reduce_mean('workers'), optax.sgd(0.1)), {'w': False, 'b': True}
        ),
    ),
}
# Of zeros that optax makes from a gradient, types do not tell that they are the same on all workers.
TABLE = {f'table: {name}': with_links(row) for name, row in ROWS.items() if name != 'masked'}


def method_optimizer(name):
    method = METHODS[name]
    chosen = {'ratio': 2, 'chunk': 4, 'freeze_after': 2} | ({'every': 2} if name == 'sparse_loco' else {})
    options = {option: value for option, value in chosen.items() if option in method.options}
    return method.optimizer(optax.identity(), SGD, 'workers', method.compressor(2), **options)


LINKED = {name: method_optimizer(name) for name, method in METHODS.items() if method.link is not None}


def with_point(name):
    """An optimizer, and the gradient that it is given."""
    if name in LINKED:
        return LINKED[name], outside if METHODS[name].kind == 'error_feedback' else at_own_params
    return (OPTIMIZERS | COMPOSED | TABLE)[name], outside


@pytest.mark.parametrize('name', [*OPTIMIZERS, *COMPOSED, *TABLE, *LINKED])
def test_types_prove_that_all_workers_get_the_same_parameters(name):
    """And the state's specs say which of its leaves differ."""
    trace(*with_point(name))


@pytest.mark.parametrize('workers', [1, NUM_WORKERS])
@pytest.mark.parametrize('name', [*OPTIMIZERS, *LINKED])
def test_a_state_that_is_made_inside_has_the_types_of_later_ones(name, workers):
    optimizer = (OPTIMIZERS | LINKED)[name]

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(grads):
        (params, _), _ = jax.lax.scan(
            step, (PARAMS, optimizer.init(PARAMS)), jax.tree.map(lambda g: g[0], grads)
        )
        return params

    mesh = jax.sharding.Mesh(jax.devices()[:workers], ('workers',))
    grads = jax.tree.map(lambda x: jnp.ones((workers, 3, *x.shape)), PARAMS)
    jax.eval_shape(jax.shard_map(run, mesh=mesh, in_specs=P('workers'), out_specs=P()), grads)


@pytest.mark.parametrize(
    ('optimizer', 'gradient', 'message'),
    [
        (COMPOSED['auto'], inside, 'is the same on all workers: .* Take it outside of the loss'),
        (
            *(def_jax.def_adamw(0.1, 64, 'workers'), at_params),
            r"updates\['b'\] is the same on all workers: .*detached_params",
        ),
        (
            *(optax.chain(optax.sgd(0.1), feedback()), at_params),
            r"updates\['b'\] is the same on all workers: .*with point = def_jax.detached_params",
        ),
        (LINKED['sgd'], at_params, re.escape('without error feedback, jax.lax.pcast(params')),
    ],
    ids=['through the point', 'def_adamw', 'at x', 'a link without a detached point'],
)
def test_a_gradient_that_would_be_summed_is_refused(optimizer, gradient, message):
    with pytest.raises(ValueError, match=message):
        trace(optimizer, gradient)


def test_a_state_that_is_stacked_as_a_whole_is_refused():
    optimizer = feedback(inner=optax.sgd(0.1))

    def step(params, state, batch):
        state = jax.tree.map(lambda x: x[0], state)
        updates, state = optimizer.update(outside(params, state, batch[0]), state, params)
        return optax.apply_updates(params, updates), jax.tree.map(lambda x: x[None], state)

    specs = (P(), P('workers'), P('workers'))
    mapped = jax.shard_map(step, mesh=MESH, in_specs=specs, out_specs=specs[:2])
    stacked = jax.tree.map(lambda x: jnp.stack([x] * NUM_WORKERS), optimizer.init(PARAMS))
    with pytest.raises(ValueError, match='the key of opt_state differs between workers'):
        jax.eval_shape(mapped, PARAMS, stacked, BATCH)


@pytest.mark.parametrize(
    ('name', 'fields', 'expected'),
    [
        ('skipping, 8 bits', ('trace', 'residual'), True),
        ('auto', ('residual', 'mu'), True),
        ('bare', ('trace', 'residual'), True),
        ('auto', ('energy', 'detach', 'step', 'key'), False),
        ('table: schedule_free', ('z',), False),
        ('sgd', ('trace',), False),
        ('ef21', ('local',), True),
        ('ef21', ('mean', 'trace'), False),
    ],
)
def test_what_is_shared_is_not_stored_for_every_worker(name, fields, expected):
    own = own_leaves(with_point(name)[0], PARAMS)
    for field in fields:
        assert set(jax.tree.leaves(optax.tree.get(own, field))) == {expected}, field


def test_a_named_chain_is_a_chain():
    parts = optax.adam(0.1), def_jax.error_feedback(def_jax.random_block(4), 'workers')
    named = own_leaves(optax.named_chain(*zip('ab', parts, strict=True)), PARAMS)
    assert jax.tree.leaves(named) == jax.tree.leaves(own_leaves(optax.chain(*parts), PARAMS))
    assert any(jax.tree.leaves(named['a']))


def test_updates_and_state_lie_where_the_parameters_do():
    """Without a mapped axis, as optax asks of its own optimizers."""
    mesh = jax.make_mesh((2,), ('x',), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    optimizer = def_jax.def_adamw(0.1, 32, axis_name=None)
    with jax.set_mesh(mesh):
        params = jax.device_put({'w': jnp.ones((8, 4))}, NamedSharding(mesh, P('x')))
        state = jax.jit(optimizer.init)(params)
        updates, after = jax.jit(optimizer.update)(params, state, params)
    specs = [
        jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree) for tree in (params, updates, state, after)
    ]
    assert specs[0] == specs[1] and specs[2] == specs[3]
    assert optax.tree.get(specs[2], 'residual')['w'] == P('x', None)


def test_all_that_sends_traces_without_promotion():
    """On Explicit axes, where arrays have types that operations must agree on, too."""

    def loss(params, batch):
        whole = jax.sharding.reshard(params, P())
        return jnp.mean((batch @ whole['w'] + whole['b'][None]) ** 2)

    def step(dist, params, batch):
        state = dist.init(params)
        params, state, _ = step_of(dist, loss)(params, state, batch)
        if isinstance(state, def_jax.ErrorFeedbackState):
            dist.output_params(params, state)
        return params

    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
        for optimizer in (OPTIMIZERS | LINKED).values():
            dist = def_jax.spmd(optimizer, mesh_of(2, 4, EXPLICIT), {'w': P('shard'), 'b': None})
            params = jax.device_put(PARAMS, dist.shardings)
            jax.eval_shape(functools.partial(step, dist), params, jnp.ones((4, 4)))
