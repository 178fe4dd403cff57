"""Muon inside, with every matrix sharded over a node's devices (FSDP), and few bits between the nodes.

    python examples/recipes/muon.py

Two nodes of four devices. Muon orthogonalises whole matrices: `spmd` shows it whole tensors, and the compiler
gathers their shards inside a node alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import def_jax

NODES, DEVICES = 2, 4
SPECS = {'in': P('devices'), 'hidden': P('devices'), 'out': P('devices'), 'bias': P()}


def init_params(key):
    keys = jax.random.split(key, 3)
    shapes = {'in': (64, 128), 'hidden': (128, 128), 'out': (128, 10)}
    matrices = {
        name: jax.random.normal(k, s) / s[0] ** 0.5 for k, (name, s) in zip(keys, shapes.items(), strict=True)
    }
    return matrices | {'bias': jnp.zeros(10)}


def loss_fn(params, batch):
    images, labels = batch
    hidden = jax.nn.relu(jax.nn.relu(images @ params['in']) @ params['hidden'])
    logits = hidden @ params['out'] + params['bias']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(num_steps=150):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    mesh = jax.make_mesh((NODES, DEVICES), ('nodes', 'devices'), axis_types=(AxisType.Auto,) * 2)
    blocks = def_jax.random_block(4)  # 4 · 32 / 2 bits: 1/64 of the bytes
    muon = optax.contrib.muon(0.01)  # vectors take AdamW
    dist = def_jax.spmd(def_jax.error_feedback(blocks, 'nodes', inner=muon, bits=2), mesh, SPECS, 'nodes')

    @jax.jit
    def train_step(params, opt_state, batch):
        losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses.mean()

    params = jax.device_put(init_params(jax.random.key(0)), dist.shardings)
    opt_state = jax.jit(dist.init)(params)
    for _ in range(num_steps):
        rows = rng.integers(0, 1400, 64)
        batch = jax.device_put((images[rows], labels[rows]), NamedSharding(mesh, P(('nodes', 'devices'))))
        params, opt_state, loss = jax.block_until_ready(train_step(params, opt_state, batch))
    sent = dist.check(train_step.lower(params, opt_state, batch).compile(), devices_per_node=DEVICES)
    print(f'loss {float(loss):.3f}; {sum(c.node_bytes for c in sent)} bytes leave a node in a step')
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', NODES * DEVICES)
    main()
