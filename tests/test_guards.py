"""Copies that should agree: every bit that differs on one worker is found, and its leaf is named."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from perceptron import mapped

import def_jax
from def_jax import guards

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 4
TREE = {'params': {'w': np.linspace(-1, 1, 6, dtype=np.float32), 'b': np.float32([0.0])}, 'step': np.int32(7)}


@functools.cache
def check(mapping):
    """A function of a tree's leaves, [K, ...] each."""

    def worker(leaves, _, axis_name, varying=None):
        def_jax.assert_replicated(jax.tree.unflatten(jax.tree.structure(TREE), leaves), axis_name)
        return [jnp.zeros(1)] * 3

    return mapped(mapping, worker, WORKERS)


@pytest.fixture
def differing(monkeypatch):
    """A function from a way to map and a tree to the leaves that differ, without the error about them.

    JAX keeps the error of a compiled program and raises it again at every later barrier, and on exit.
    """
    found = []

    def note(names, differ):
        found.append([name for name, differs in zip(names, differ, strict=True) if differs])

    monkeypatch.setattr(guards, '_raise_if', note)

    def differing(mapping, tree):
        found.clear()
        jax.block_until_ready(check(mapping)(jax.tree.leaves(tree), None))
        jax.effects_barrier()
        assert found and all(names == found[0] for names in found)
        return found[0]

    return differing


@pytest.mark.parametrize('mapping', ['pmap', 'vmap', 'pmap of vmap', 'shard_map'])
def test_one_flipped_bit_on_one_worker_is_found_and_named(mapping, differing):
    agree, differ = (
        jax.tree.map(lambda x: np.broadcast_to(x, (WORKERS, *x.shape)).copy(), TREE) for _ in range(2)
    )
    differ['params']['w'].view(np.uint32)[2, 5] ^= 1
    assert differing(mapping, agree) == []
    assert differing(mapping, differ) == ['params.w']


def test_the_error_names_three_leaves_and_counts_the_others():
    tree = {name: np.arange(2.0) for name in 'abcde'} | {'c': np.ones(2)}
    with pytest.raises(ValueError, match=r'^the workers do not agree on a, b, d and 1 more: their copies'):
        jax.vmap(lambda tree: def_jax.assert_replicated(tree, 'workers'), axis_name='workers')(tree)


def test_without_an_axis_the_copies_on_the_devices_are_compared():
    """A worker has several devices: their parts of one array are no copies."""
    mesh = jax.make_mesh((2, 2), ('workers', 'shard'), devices=jax.devices()[:WORKERS])
    sharding = NamedSharding(mesh, P('shard'))
    parts = [np.float32([n % 2 + (n == 3)]) for n in range(WORKERS)]
    copies = [jax.device_put(x, device) for x, device in zip(parts, mesh.devices.flat, strict=True)]
    w = jax.make_array_from_single_device_arrays((2,), sharding, copies)
    assert np.array_equal(np.asarray(w), [0, 1])  # reading shows one copy
    tree = {'w': w, 'b': jnp.ones(3), 'n': 5, 'k': jax.random.key(0)}
    with pytest.raises(ValueError, match='do not agree on w: '):
        def_jax.assert_replicated(tree, None)
    def_jax.assert_replicated(tree | {'w': jax.device_put(np.float32([0, 1]), sharding)}, None)
    stacked = jax.pmap(lambda i: i * jnp.ones(3))(jnp.arange(WORKERS))  # they differ, and are no copies
    with pytest.raises(ValueError, match=r'no two devices hold the same part .* in the mapped function'):
        def_jax.assert_replicated({'w': stacked}, None)


TWO_PROCESSES = """
import os
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
import def_jax
from def_jax.tools.place import find

place = find(None, None, None)
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(place.address, place.count, place.index)
sharding = NamedSharding(jax.make_mesh((2, 2), ('racks', 'shard')), P('shard'))
for differ in (0, 1):
    mine = np.float32([1, 2]) + differ * jax.process_index()
    w = jax.make_array_from_callback((2,), sharding, lambda index: mine[index])
    try:
        def_jax.assert_replicated({'w': w, 'n': np.arange(3), 'm': differ * jax.process_index()}, None)
    except ValueError as error:
        print(differ, error, flush=True)
stacked = NamedSharding(jax.make_mesh((4,), ('workers',)), P('workers'))
w = jax.make_array_from_callback((4,), stacked, lambda index: np.arange(4.0)[index])
try:
    def_jax.assert_replicated({'w': w}, None)
except ValueError as error:
    print(2, error, flush=True)
multihost_utils.sync_global_devices('both have printed')
os._exit(0)
"""


@pytest.mark.slow
def test_without_an_axis_copies_of_other_processes_are_compared(tmp_path):
    """Each process has one copy of a shard."""
    command = ['-m', 'def_jax.launch', '--processes=2', '--restarts=0', f'--log={tmp_path}/log', '--']
    program = [sys.executable, *command, sys.executable, '-c', TWO_PROCESSES]
    subprocess.run(program, cwd=ROOT, timeout=600)
    for process in range(2):
        printed = (tmp_path / f'log-{process}.log').read_text()
        said = [line for line in printed.splitlines() if 'agree' in line]
        assert [line.partition(':')[0] for line in said] == ['1 the workers do not agree on m, w'], printed
        assert '2 no two devices hold the same part of these arrays' in printed


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool', 'complex64'])
def test_any_change_of_one_element_changes_the_checksum(dtype):
    x = np.arange(12).reshape(3, 4) % 2
    others = [np.where(np.arange(12).reshape(3, 4) == place, 1 - x, x) for place in range(12)]
    sums = jax.vmap(lambda x: guards.checksums([x])[0])(jnp.asarray(np.stack([x, *others]), dtype))
    assert int(sums[0]) not in sums[1:].tolist()


def test_checksums_see_bits_places_and_keys():
    def checksum(x):
        return int(guards.checksums([x])[0])

    assert checksum(jnp.float32([0.0])) != checksum(jnp.float32([-0.0]))
    assert checksum(jnp.float32([1, 2])) != checksum(jnp.float32([2, 1]))
    assert checksum(jnp.float32([np.nan])) == checksum(jnp.float32([np.nan]))
    assert checksum(jax.random.key(0)) != checksum(jax.random.key(1))
    assert checksum(jnp.zeros((0,))) == 0
    for size in (512, 4096, 3 * 512):  # of all elements alike, which cancelled in a plain sum
        x = jax.random.normal(jax.random.key(0), (size,))
        assert len({checksum(x * factor) for factor in (1, -1, 2, 0.5, 4)}) == 5
    assert guards.checksums({}).shape == (0,)


def test_the_debug_mode_takes_empty_tensors():
    optimizer = def_jax.def_sgd(0.1, 64, 'workers')  # whose state has no moments

    def run(params, _):
        def_jax.debug(params, optimizer.update(params, optimizer.init(params), params)[1], 'workers')

    for params in ({'w': jnp.ones(8), 'none': jnp.zeros(0)}, {}):
        jax.jit(jax.vmap(functools.partial(run, params), axis_name='workers'))(jnp.arange(2.0))
        jax.effects_barrier()
