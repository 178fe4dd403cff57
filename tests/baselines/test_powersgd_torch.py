"""PowerSGD's steps equal those of PyTorch's hook, if PyTorch is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax import baselines

STEPS, WORKERS, RANK = 4, 2, 2


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='PyTorch is not installed')
def test_steps_equal_those_of_pytorchs_hook(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {'b': (6,), 'v': (8, 20), 'w': (16, 12)}
    grads = {n: rng.normal(size=(STEPS, WORKERS, *s)).astype(np.float32) for n, s in shapes.items()}
    np.savez(tmp_path / 'grads.npz', **grads)
    script = Path(__file__).with_name('torch_powersgd.py')
    workers = [
        subprocess.Popen([sys.executable, script, tmp_path, str(worker)], stderr=subprocess.PIPE, text=True)
        for worker in range(WORKERS)
    ]
    errors = [worker.communicate(timeout=300)[1] for worker in workers]
    assert not any(worker.returncode for worker in workers), errors
    theirs = dict(np.load(tmp_path / 'updates.npz'))

    link = baselines.powersgd(1, 'workers', rank=RANK)
    carry = {'b': jnp.zeros(()), 'v': theirs['q_v'], 'w': theirs['q_w']}

    def worker(grads):
        state = link.init({name: jnp.zeros(shape) for name, shape in shapes.items()})
        state, updates = state._replace(carry=jax.tree.map(jnp.asarray, carry)), []
        for step in range(STEPS):
            update, state = link.update({name: g[step] for name, g in grads.items()}, state)
            updates.append(update)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates)

    ours = jax.jit(jax.vmap(worker, in_axes=1, axis_name='workers'))(grads)
    for name in shapes:
        np.testing.assert_allclose(ours[name][0], theirs[name], atol=1e-5)
