"""A transformer that is sharded over the devices of a node (FSDP), with DEF between the nodes: plain JAX.

    python examples/fsdp.py

Two nodes of four devices each, simulated on the CPU. A comment on each line that DEF changes says what it was
in the same program with FSDP inside the nodes and plain data parallelism between them.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault('NPROC', '16')  # threads for eight fake devices on few cores

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax

NODES, DEVICES_PER_NODE = 2, 4
LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY = 2, 64, 4, 32, 256  # tokens are bytes
BATCH = 32  # sequences, of both nodes together

# was: optax.adamw(3e-3, weight_decay=0.1)
adamw = def_jax.def_adamw(3e-3, 64, 'nodes', weight_decay=0.1 / 1.5)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)


# --- The model: nothing here knows of devices ---


def init_params(key):
    def matrix(key, rows, columns):
        return jax.random.normal(key, (rows, columns)) * rows**-0.5

    def layer(key):
        keys = jax.random.split(key, 4)
        return {
            'attention_in': matrix(keys[0], WIDTH, 3 * WIDTH),
            'attention_out': matrix(keys[1], WIDTH, WIDTH) / (2 * LAYERS) ** 0.5,
            'mlp_in': matrix(keys[2], WIDTH, 4 * WIDTH),
            'mlp_out': matrix(keys[3], 4 * WIDTH, WIDTH) / (2 * LAYERS) ** 0.5,
            'scales': jnp.ones((2, WIDTH)),
        }

    first, second, *rest = jax.random.split(key, 2 + LAYERS)
    return {
        'tokens': matrix(first, WIDTH, VOCABULARY).T,
        'positions': 0.02 * jax.random.normal(second, (CONTEXT, WIDTH)),
        'layers': [layer(key) for key in rest],
        'scale': jnp.ones(WIDTH),
    }


def normalized(x, scale):
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def predict(params, tokens):
    """Logits of the next token: [sequences, length, vocabulary]."""
    x = params['tokens'][tokens] + params['positions'][: tokens.shape[1]]
    for layer in params['layers']:
        heads = normalized(x, layer['scales'][0]) @ layer['attention_in']
        query, key, value = jnp.split(heads.reshape(*x.shape[:2], HEADS, -1), 3, axis=-1)
        attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x += attended.reshape(x.shape) @ layer['attention_out']
        x += jax.nn.gelu(normalized(x, layer['scales'][1]) @ layer['mlp_in']) @ layer['mlp_out']
    return normalized(x, params['scale']) @ params['tokens'].T


def loss_fn(params, sequences):
    logits = predict(params, sequences[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, sequences[:, 1:]).mean()


# --- Sharding and the step ---


def fsdp_spec(x):
    """The first dimension of every matrix lies on the devices of a node; vectors lie on each of them."""
    return P('devices') if x.ndim > 1 and x.shape[0] % DEVICES_PER_NODE == 0 else P()


def make_train_step(dist):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, batch):
        gradient = dist.value_and_grad(loss_fn)  # was: jax.value_and_grad(loss_fn)
        loss, grads = gradient(params, opt_state, batch)  # was: gradient(params, batch)
        updates, opt_state = dist.update(grads, opt_state, params)  # was: optimizer.update
        return optax.apply_updates(params, updates), opt_state, loss.mean()  # was: loss; one per node

    return train_step


def read_text():
    """The bytes of Python's standard library: training and test."""
    files = sorted(Path(os.__file__).parent.glob('*.py'))
    text = np.frombuffer(b''.join(path.read_bytes() for path in files), np.uint8)
    return text[:-200_000], text[-200_000:]


def batches(text, num_steps):
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        starts = rng.integers(0, len(text) - CONTEXT - 1, BATCH)
        yield text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


def main(num_steps=300):
    mesh = jax.make_mesh((NODES, DEVICES_PER_NODE), ('nodes', 'devices'), axis_types=(AxisType.Auto,) * 2)
    params = init_params(jax.random.key(0))
    specs = jax.tree.map(fsdp_spec, params)
    dist = def_jax.spmd(optimizer, mesh, specs, axis_name='nodes')  # was: nothing

    params = jax.device_put(params, dist.shardings)
    opt_state = jax.jit(dist.init)(params)  # was: optimizer.init
    train_step = make_train_step(dist)
    whole_batch = NamedSharding(mesh, P(('nodes', 'devices')))
    training, held_out = read_text()
    for step, batch in enumerate(batches(training, num_steps)):
        params, opt_state, loss = train_step(params, opt_state, jax.device_put(batch, whole_batch))
        loss = float(loss)
        if step % 50 == 0 or step == num_steps - 1:
            print(f'step {step:4}  loss {loss:.3f} nats a byte', flush=True)

    test = float(jax.jit(loss_fn)(params, np.concatenate(list(batches(held_out, 8)))))
    sent = dist.check(train_step.lower(params, opt_state, jax.device_put(batch, whole_batch)).compile())
    shard = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) // DEVICES_PER_NODE
    print(f'between nodes: {sum(c.bytes for c in sent)} bytes a step and device, whose shard has {shard}')
    print(f'test loss {test:.3f}')
    return test


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', NODES * DEVICES_PER_NODE)
    main()
