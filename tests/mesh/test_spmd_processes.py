"""Two processes of four devices each, a process a worker: the trajectory of one, also from a checkpoint."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = """
import functools, os, sys
from pathlib import Path

folder, address, process, processes = *sys.argv[1:3], *map(int, sys.argv[3:])
os.environ['NPROC'] = '16'
import chex, jax, numpy as np, optax, orbax.checkpoint as ocp
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

chex.set_n_cpu_devices(8 // processes)
if processes > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(address, processes, process)
import def_jax

mesh = jax.make_mesh((2, 4), ('workers', 'shard'), axis_types=(AxisType.Auto,) * 2)
specs = {'in': P('shard'), 'out': P(None, 'shard')}
blocks = def_jax.random_block(4, order='shuffled')
optimizer = def_jax.error_feedback(blocks, 'workers', inner=optax.adamw(0.01), detach='auto')
dist = def_jax.spmd(optimizer, mesh, specs)
rng = np.random.default_rng(0)
shapes = {'in': (8, 16), 'out': (16, 8)}
start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def global_array(x, sharding):
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def loss_fn(params, x):
    return jnp.mean((jnp.tanh(x @ params['in']) @ params['out'] - x) ** 2)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def step(params, state, batch):
    _, grads = dist.value_and_grad(loss_fn)(params, state, batch)
    updates, state = dist.update(grads, state, params)
    return optax.apply_updates(params, updates), state


params = jax.tree.map(global_array, start, dist.shardings)
state = jax.jit(dist.init)(params)
first, saved = 0, Path(folder, 'checkpoint')
with ocp.StandardCheckpointer() as checkpointer:
    if saved.exists():
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        params, state = checkpointer.restore(saved, (target, dist.abstract_state(params)))
        first = 5
    for number in range(first, 10):
        batch = np.random.default_rng(number).normal(size=(8, 8)).astype(np.float32)
        batch = global_array(batch, NamedSharding(mesh, P(('workers', 'shard'))))
        params, state = jax.block_until_ready(step(params, state, batch))
        if processes > 1 and number == 4:
            checkpointer.save(saved, (params, state))
            checkpointer.wait_until_finished()
whole = jax.jit(lambda p, s: (p, dist.output_params(p, s)), out_shardings=NamedSharding(mesh, P()))
x, y = jax.device_get(whole(params, state))
if process == 0:
    np.savez(Path(folder, 'result.npz'), x_in=x['in'], x_out=x['out'], y_in=y['in'], y_out=y['out'])
"""


def start(folder, address='', process=0, processes=1):
    arguments = [str(folder), address, str(process), str(processes)]
    environment = {name: value for name, value in os.environ.items() if name != 'JAX_NUM_CPU_DEVICES'}
    root = str(Path(__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *arguments],
        cwd=root,
        env=environment | {'PYTHONPATH': root},
        stderr=subprocess.PIPE,
        text=True,
    )


def run_pair(folder):
    """What both processes end with."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    pair = [start(folder, address, process, 2) for process in (0, 1)]
    try:
        errors = [process.communicate(timeout=900)[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], errors
    finally:
        for process in pair:
            process.kill()
            process.communicate()
    return result(folder)


def result(folder):
    return dict(np.load(folder / 'result.npz'))


@pytest.mark.slow
def test_two_processes_follow_one_and_resume_bit_for_bit(tmp_path):
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    for folder in (alone, together):
        folder.mkdir()
    single = start(alone)
    errors = single.communicate(timeout=900)[1]
    assert single.returncode == 0, errors
    one, two = result(alone), run_pair(together)
    resumed = run_pair(together)  # from the checkpoint half-way
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(resumed[name], two[name])
        assert np.max(np.abs(one[name])) > 0.1
