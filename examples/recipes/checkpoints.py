"""orbax: save, and restore on another number of devices, under `pmap` and with `def_jax.spmd`.

    python examples/recipes/checkpoints.py

Eight workers save, four go on. Each gets the mean of the old residuals and moments, so x stays bit for bit,
and y to rounding. orbax restores into a target, which has the structure and the place of every array.
"""

import functools
import pathlib
import tempfile

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType
from sklearn.datasets import load_digits

import def_jax

optimizer = def_jax.def_adamw(3e-3, 64, 'workers')


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params['in']) @ params['out']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def save(folder, step, params, opt_state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, {'step': step, 'params': params, 'opt_state': opt_state})


def restore(folder, params, opt_state):
    """The saved values, in the structure and on the devices of these."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(folder, {'step': 0, 'params': params, 'opt_state': opt_state})
    return saved['step'], saved['params'], saved['opt_state']


def train_step(params, opt_state, batch):
    grads = jax.grad(loss_fn)(def_jax.detached_params(params, opt_state), batch)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def pmap_run(folder, start, batches, devices, resume=False):
    step, params, opt_state = 0, start, optimizer.init(start)
    if resume:
        step, params, saved = restore(folder, start, jax.tree.map(np.asarray, opt_state))
        opt_state = def_jax.unstack_state(saved, num_workers=len(devices))
    else:
        opt_state = jax.tree.map(lambda x: np.stack([x] * len(devices)), opt_state)
    params = jax.tree.map(lambda x: np.stack([x] * len(devices)), params)
    stepped = jax.pmap(train_step, 'workers', devices=devices)
    for batch in batches[step:]:
        batch = jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)
        params, opt_state = jax.block_until_ready(stepped(params, opt_state, batch))
    y = jax.pmap(lambda p, s: def_jax.output_params(p, s, 'workers'), 'workers', devices=devices)
    one = functools.partial(jax.tree.map, lambda x: np.asarray(x[0]))  # of what is replicated
    if not resume:
        save(folder, len(batches), one(params), def_jax.stack_state(opt_state))
    return one(params), one(y(params, opt_state))


def spmd_run(folder, start, batches, devices, resume=False):
    mesh = jax.make_mesh((len(devices),), ('workers',), axis_types=(AxisType.Auto,), devices=devices)
    dist = def_jax.spmd(optimizer, mesh)

    @jax.jit
    def stepped(params, opt_state, batch):
        _, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step, params = 0, jax.device_put(start, dist.shardings)
    if resume:
        target = dist.abstract_state(params, num_workers=8)  # of the run that wrote it
        step, params, saved = restore(folder, params, target)
        opt_state = dist.regroup(params, saved)  # for as many workers as there are now
    else:
        opt_state = dist.init(params)
    for batch in batches[step:]:
        params, opt_state = jax.block_until_ready(stepped(params, opt_state, batch))
    if not resume:
        save(folder, len(batches), params, opt_state)
    return params, dist.output_params(params, opt_state)


def main(num_steps=100):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    start = {'in': rng.normal(size=(64, 128)) / 8, 'out': rng.normal(size=(128, 10)) / 11}
    start = jax.tree.map(np.float32, start)
    batches = [(images[rows], labels[rows]) for rows in rng.integers(0, 1400, (2 * num_steps, 64))]
    losses = []
    for run in pmap_run, spmd_run:
        folder = pathlib.Path(tempfile.mkdtemp(), 'checkpoint')
        x, y = run(folder, start, batches[:num_steps], jax.devices()[:8])
        again = run(folder, start, batches[:num_steps], jax.devices()[:4], resume=True)  # no step is left
        jax.tree.map(np.testing.assert_array_equal, again[0], x)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), again[1], y)
        x, _ = run(folder, start, batches, jax.devices()[:4], resume=True)
        losses.append(float(loss_fn(x, (images[1400:], labels[1400:]))))
        print(f'{run.__name__}: test loss {losses[-1]:.3f}')
    return max(losses)


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 8)
    main()
