"""One rule for another number of workers, in a checkpoint and for a newcomer of an elastic run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_workers import mesh_of, step_of

import def_jax
from def_jax import elastic
from def_jax.elastic import transfer
from def_jax.mesh.regrouping import regroup


@pytest.mark.parametrize(
    ('values', 'dtype'),
    [
        ([1.5, 2.25, 4.0], 'float32'),
        ([1.5, 2.25, 4.0], 'bfloat16'),
        ([True, False, False], 'bool'),
        ([False, False, True], 'bool'),
    ],
)
def test_all_get_the_mean_of_floats_and_whether_any_has_a_flag(values, dtype):
    """Of NumPy's arrays, of JAX's, and of those who live, the first two of three workers."""
    rows = jnp.array(values, dtype)
    expected = rows[:2].astype(jnp.float32).mean().astype(rows.dtype)
    state, own = {'step': jnp.int32(7), 'own': rows[:2]}, {'step': False, 'own': True}
    for arrays in (state, jax.tree.map(np.asarray, state)):
        regrouped = regroup(arrays, own, (2,), (3,))
        assert regrouped['step'] == 7 and regrouped['own'].tolist() == [expected] * 3

    def give(step, mine, valid, leads):
        return transfer.give(valid[None], leads[None], {'step': step, 'own': mine}, own, 'workers')

    steps, valid = jnp.array([7, 7, 0]), jnp.array([True, True, False])
    given = jax.vmap(give, axis_name='workers')(steps, rows, valid, jnp.array([True, False, False]))
    assert given['step'].tolist() == [7, 7, 7] and given['own'].tolist() == [*rows[:2].tolist(), expected]


def test_each_device_of_a_newcomer_receives_its_shard():
    mesh, owns = mesh_of(3, 2), {'x': False, 'own': True}
    specs = {'x': P('shard'), 'own': P('workers', 'shard')}
    whole, rows = np.arange(4.0, dtype=np.float32), np.arange(12.0, dtype=np.float32).reshape(3, 4)

    def place(spec, parts):
        arrays = [jax.device_put(parts(*at), mesh.devices[at]) for at in np.ndindex(3, 2)]
        shape = (3, 4) if len(spec) == 2 else (4,)
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, spec), arrays)

    # The third worker, which comes, has something else in place of x.
    state = {
        'x': place(specs['x'], lambda worker, shard: whole[2 * shard : 2 * shard + 2] - 9 * (worker == 2)),
        'own': place(
            specs['own'], lambda worker, shard: rows[worker : worker + 1, 2 * shard : 2 * shard + 2]
        ),
    }
    give = functools.partial(transfer.give, owns=owns, axis='workers')
    flags = P('workers')
    mapped = jax.shard_map(give, mesh=mesh, in_specs=(flags, flags, specs), out_specs=specs, check_vma=False)
    given = jax.jit(mapped)(np.array([True, True, False]), np.array([False, True, False]), state)
    for shard in given['x'].addressable_shards:
        assert np.asarray(shard.data).tolist() == whole[shard.index].tolist()
    assert np.asarray(given['own']).tolist() == [*rows[:2].tolist(), rows[:2].mean(axis=0).tolist()]


def test_a_team_whose_workers_are_several_devices_trains_like_spmd(live_devices):
    """Also after it has met again under other incarnations, on another mesh."""
    chance = np.random.default_rng(0)
    params = {'w': chance.normal(size=(8, 4)).astype(np.float32), 'b': np.zeros(4, np.float32)}
    specs = {'w': P('shard'), 'b': P()}
    examples = chance.normal(size=(6, 8, 8)).astype(np.float32)

    def batch(step, workers, num_workers):
        return examples[step].reshape(num_workers, -1, 8)[workers].reshape(-1, 8)

    def loss_fn(params, x):
        return jnp.mean((x @ params['w'] + params['b']) ** 2)

    def train(dist, params, opt_state, x):
        return step_of(dist, loss_fn)(params, opt_state, x)

    optimizer = def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=optax.sgd(0.1, momentum=0.5))
    team = elastic.Team(optimizer, params, workers=2, shards=2, param_specs=specs, note=lambda line: None)
    for step in range(6):
        live_devices.incarnation = 1 + step // 3
        team.run(train, batch)
        assert team.local_params['w'].shape == (4, 4)  # a shard
    assert (
        len([key for key in live_devices.told if 'calls of' in key]) == 1
    )  # those of the meetings before are gone
    dist = def_jax.spmd(optimizer, mesh_of(2, 2), specs, 'workers')
    x, state = params, dist.init(params)
    step_fn = jax.jit(functools.partial(train, dist))
    for step in range(6):
        x, state, _ = step_fn(x, state, batch(step, [0, 1], 2))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), team.fetch(), (x, state)
    )


def test_who_comes_after_the_last_step_has_nothing_to_join(live_devices):
    """It would wait for the others' sums, and process 0, which waits for all to end, for it."""

    def made():
        return elastic.Team(def_jax.def_sgd(0.1, 16, 'workers'), {'w': np.ones(8, np.float32)})

    def train(dist, params, opt_state, x):
        return params, opt_state, ()

    team = made()
    team.run(train, lambda step, workers, num_workers: np.zeros((1, 1), np.float32))
    team.close()
    with pytest.raises(elastic.GivenUpError, match='have made their last step'):
        made().run(train, lambda *_: ())
