"""Which leaves of an optimizer's state are per-worker; test_varying.py proves that the others agree."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from def_jax.mesh.ownership import own_leaves
from def_jax.mesh.spmd.accumulation import accumulated

PARAMS = {'w': jnp.ones((4, 8)), 'b': jnp.ones(8)}


def feedback(**options):
    return def_jax.error_feedback(def_jax.random_block(4), 'workers', **options)


OPTIMIZERS = {
    'momentum': feedback(inner=optax.sgd(0.1, momentum=0.9)),
    'adamw, auto, outer': feedback(
        inner=optax.adamw(optax.linear_schedule(0.1, 0, 9)), detach='auto', bits=2, outer=optax.adam(0.1)
    ),
    'around it': optax.contrib.schedule_free(feedback(inner=optax.sgd(0.1)), 0.1),
    'accumulated': accumulated(feedback(inner=optax.adam(0.1)), 2),
    'dense': optax.chain(def_jax.all_reduce_mean('workers'), optax.adam(0.1)),
    'ef21': optax.chain(def_jax.ef21(def_jax.random_block(2), 'workers'), optax.sgd(0.1, momentum=0.9)),
}


def test_state_before_a_link_is_per_worker_but_nothing_says_so():
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), feedback())
    with pytest.raises(ValueError, match=r'precedes the link in the chain.* as inner='):
        def_jax.state_specs(optimizer, PARAMS)


@pytest.mark.parametrize(
    ('name', 'fields', 'expected'),
    [
        ('momentum', ('trace', 'residual'), True),
        ('adamw, auto, outer', ('residual',), True),
        ('adamw, auto, outer', ('energy', 'detach', 'step', 'key'), False),
        ('dense', ('mu', 'nu'), False),
        ('ef21', ('local',), True),
        ('ef21', ('mean', 'trace'), False),
        ('accumulated', ('grads', 'mu'), True),
        ('around it', ('z',), False),
    ],
)
def test_what_is_shared_is_not_stored_for_every_worker(name, fields, expected):
    own = own_leaves(OPTIMIZERS[name], PARAMS)
    for field in fields:
        assert set(jax.tree.leaves(optax.tree.get(own, field))) == {expected}, field


def test_specs_within_and_across_workers():
    specs = def_jax.state_specs(
        OPTIMIZERS['momentum'], PARAMS, {'w': P('model', None), 'b': P()}, axis_name=('nodes', 'devices')
    )
    workers = ('nodes', 'devices')
    assert optax.tree.get(specs, 'trace') == {'w': P(workers, 'model', None), 'b': P(workers)}
    assert optax.tree.get(specs, 'residual') == {'w': P(workers, 'model', None), 'b': P(workers)}
    assert optax.tree.get(specs, 'key') == P()


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
