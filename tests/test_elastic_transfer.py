"""What a newcomer of an elastic run is given, as after a checkpoint, and what all tell each other before."""

import functools
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from sharded_workers import mesh_of, step_of

import def_jax
from def_jax import elastic
from def_jax.elastic import roll_call, service, transfer
from def_jax.state.regrouping import regroup, released


@pytest.mark.parametrize(
    ('values', 'dtype'),
    [
        ([1.5, 2.25, 4.0], 'float32'),
        ([1.5, 2.25, 4.0], 'bfloat16'),
        ([True, False, False], 'bool'),
        ([False, False, True], 'bool'),
        ([20_000_001, 20_000_003, 0], 'int32'),
    ],
)
def test_all_get_the_mean_of_floats_the_greatest_count_and_whether_any_has_a_flag(values, dtype):
    """Of NumPy's arrays, of JAX's, and of those who live, the first two of three workers."""
    rows = jnp.array(values, dtype)
    mean = rows[:2].astype(jnp.float32).mean().astype(rows.dtype)
    expected = rows[:2].max() if 'int' in dtype else mean
    state, own = {'step': jnp.int32(7), 'own': rows[:2]}, {'step': False, 'own': True}
    for arrays in (state, jax.tree.map(np.asarray, state)):
        regrouped = regroup(arrays, own, (2,), (3,))
        assert regrouped['step'] == 7 and regrouped['own'].tolist() == [expected] * 3
        virtual = regroup(arrays | {'own': arrays['own'].reshape(1, 2)}, own, (1, 2), (2, 2))
        assert virtual['own'].tolist() == [[expected] * 2] * 2

    def give(step, mine, valid, leads):
        return transfer.give(valid[None], leads[None], {'step': step, 'own': mine}, own, 'workers')

    steps, valid = jnp.array([7, 7, 0]), jnp.array([True, True, False])
    given = jax.vmap(give, axis_name='workers')(steps, rows, valid, jnp.array([True, False, False]))
    assert given['step'].tolist() == [7, 7, 7] and given['own'].tolist() == [*rows[:2].tolist(), expected]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_copy_has_the_bits_of_the_original(dtype):
    x = jnp.array([-0.0, jnp.nan, 3.0], dtype)

    def give(mine, valid, leads):
        return transfer.give(valid[None], leads[None], {'x': mine}, {'x': False}, 'workers')['x']

    leads = jnp.array([True, False])
    given = jax.vmap(give, axis_name='workers')(jnp.stack([x, x + 1]), leads, leads)
    assert np.asarray(given).tobytes() == 2 * np.asarray(x).tobytes()


def test_who_trains_leads_a_newcomer_with_a_later_checkpoint():
    def call(trained, step):
        return roll_call.Call(trained, step, True, [], {})

    found = roll_call.Answers({0: call(False, 9), 1: call(True, 3), 2: call(True, 3)}, {})
    assert (found.leader, found.valid) == (1, [1, 2])
    found = roll_call.Answers({0: call(False, 0), 1: call(False, 10)}, {})
    assert (found.leader, found.valid) == (1, [1])


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
    assert sum('calls of' in key for key in live_devices.told) == 1  # meetings before have left none
    dist = def_jax.spmd(optimizer, mesh_of(2, 2), specs, 'workers')
    x, state = params, dist.init(params)
    step_fn = jax.jit(functools.partial(train, dist))
    for step in range(6):
        x, state, _ = step_fn(x, state, batch(step, [0, 1], 2))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        team.fetch(),
        (x, released(state)),
    )


@pytest.mark.usefixtures('live_devices')
def test_a_copy_that_somebody_changed_is_not_saved():
    """The collectives do not look at it: the others' copies would go on."""
    optimizer = def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=optax.sgd(0.1))
    team = elastic.Team(optimizer, {'w': np.ones(8, np.float32)}, workers=2, note=lambda line: None)

    def train(dist, params, opt_state, x):
        return params, opt_state, ()

    def batch(step, workers, num_workers):
        return np.zeros((2, 1), np.float32)

    team.run(train, batch)
    team.fetch()
    params = team._state[0]
    w = params['w']
    first, second = (shard.data for shard in w.addressable_shards)
    params['w'] = jax.make_array_from_single_device_arrays(w.shape, w.sharding, [first, second.at[3].add(1)])
    with pytest.raises(elastic.DifferError, match=r'step 1: parameters, or .* differ .* was not saved'):
        team.fetch()
    params['w'] = w
    team._ask = lambda group, call: roll_call.Answers({}, {0: 'secret'})  # nor do they agree with a stranger
    with pytest.raises(elastic.DifferError):
        team._agree(team._group, 1, (), ())


def test_who_comes_after_the_last_step_has_nothing_to_join(live_devices):
    """It would wait for the others' sums, and process 0, which waits for all to end, for it."""

    def made(optimizer=None, **options):
        optimizer = optimizer or def_jax.def_sgd(0.1, 16, 'workers')
        return elastic.Team(optimizer, {'w': np.ones(8, np.float32)}, **options)

    with pytest.raises(ValueError, match='EF21 cannot lose a worker'):
        made(optax.chain(def_jax.ef21(def_jax.random_block(2), 'workers'), optax.sgd(0.1)))
    noise = optax.add_noise(0.1, 0.5, key=0)
    with pytest.raises(ValueError, match=r'opt_state.inner.rng_key is a typed PRNG key, .* cannot exchange'):
        made(def_jax.error_feedback(def_jax.random_block(2), 'workers', inner=noise))
    with pytest.raises(elastic.TooFewError, match='1 workers after step 0, fewer than 2 for 0 s'):
        made(min_workers=2, patience=0).run(None, None)
    with pytest.raises(ValueError, match='workers=9 of shards=9 need 81 devices, but a process has'):
        made(workers=9, shards=9).run(None, None)
    assert made().local_params['w'].shape == (8,)

    def train(dist, params, opt_state, x):
        return params, opt_state, ()

    team = made()
    team.run(train, lambda step, workers, num_workers: np.zeros((1, 1), np.float32))
    team.close()
    with pytest.raises(elastic.GivenUpError, match='have made their last step'):
        made().run(train, lambda *_: ())


# --- What processes tell each other before they compute ---


@pytest.fixture
def processes(monkeypatch):
    """Calls `function(index)` in threads that stand for processes, which tell and ask each other."""
    told, place = {}, threading.local()

    def ask(key):
        while key not in told:
            time.sleep(0.001)
        return told[key]

    for module in (roll_call, service):
        monkeypatch.setattr(module, 'tell', told.__setitem__)
        monkeypatch.setattr(module, 'ask', ask)
        monkeypatch.setattr(module, 'versions', lambda: f'JAX {place.version}')
    monkeypatch.setattr(jax, 'process_index', lambda: place.process_id)
    monkeypatch.setattr(service, '_state', place)

    def each(function, *versions):
        def process(index, version):
            place.process_id, place.num_processes, place.version = index, len(versions), version
            return function(index)

        with ThreadPoolExecutor(len(versions)) as pool:
            return list(pool.map(process, range(len(versions)), versions))

    each.told = told
    return each


def test_a_proof_holds_for_one_exchange(processes):
    """A stranger that saw a newcomer join says the same again; the nonces of the others differ."""
    group = types.SimpleNamespace(name='group', incarnations=((0, 5), (1, 7)))

    def answered(index, secret='ours'):
        call = roll_call.Call(index == 0, 3, True, [[1]], {'seed': '0'})
        return roll_call.RollCall(secret)(group, call)

    both = processes(answered, '1', '1')
    assert [one.calls.keys() for one in both] == [{0, 1}] * 2 and not both[0].refused
    assert both[1].leader == 0 and both[1].valid == [0]
    for key in [key for key in processes.told if key.endswith('/0')]:
        del processes.told[key]  # process 0 has begun again, and what process 1 said is repeated
    assert processes(answered, '1')[0].refused == {1: 'secret (DEF_JAX_SECRET)'}
    processes.told.clear()
    both = processes(lambda index: answered(index, ('ours', 'guessed')[index]), '1', '1')
    assert [one.refused for one in both] == [{1: 'secret (DEF_JAX_SECRET)'}] * 2


def test_another_version_is_refused_whatever_its_call_is_like(processes):
    """By all alike, who say which each has; process 0 has the service, and so the right one."""
    group = types.SimpleNamespace(name='group', incarnations=((0, 5), (1, 7), (2, 8)))

    def answered(index):
        identity = {'seed': '0'} if index != 1 else {'grain': '0'}  # of another form
        return roll_call.RollCall('')(group, roll_call.Call(True, 3, True, [[1]], identity)).refused

    assert processes(answered, '1', '2', '1') == [{1: 'version (JAX 2, not JAX 1)'}] * 3


def test_processes_that_start_together_are_refused_unless_their_versions_agree(processes):
    def checked(index):
        with pytest.raises(service.RefusedError) as error:
            service.check_versions()
        return str(error.value)

    (said,) = set(processes(checked, '1', '2', '1', '2'))
    one = 'process 1 has JAX 2, but process 0 JAX 1; process 3 has JAX 2, but process 0 JAX 1'
    assert said == f'{one}. Give all the same versions and settings of JAX.'
    processes.told.clear()
    assert processes(lambda index: service.check_versions(), '1', '1') == [None] * 2


@pytest.mark.parametrize(
    ('setting', 'value'),
    [('enable_x64', True), ('threefry_partitionable', False), ('default_prng_impl', 'rbg')],
)
def test_settings_of_jax_that_change_what_is_drawn_or_sent_count_as_versions(setting, value):
    usual, before = service.versions(), getattr(jax.config, f'jax_{setting}')
    assert usual.startswith(f'def_jax {def_jax.__version__}, JAX {jax.__version__}, jaxlib ')
    for package in ('flax', 'optax', 'numpy'):
        assert f', {package} {metadata.version(package)}, ' in usual
    jax.config.update(f'jax_{setting}', value)
    try:
        differs = service.differing(usual, service.versions())
    finally:
        jax.config.update(f'jax_{setting}', before)
    assert differs == (f'jax_{setting} {before}', f'jax_{setting} {value}')
