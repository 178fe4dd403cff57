"""A transformer in bfloat16 with Explicit axes: FSDP and tensor parallel inside a worker, DEF between them.

    python examples/explicit_transformer.py

Two workers of four devices, simulated on the CPU. A comment on each line that DEF changes says what it was.
"""

import functools
import os
from pathlib import Path

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax

LAYERS, WIDTH, HEADS, CONTEXT, VOCABULARY, BATCH = 2, 64, 4, 32, 256, 32
DATA = 'fsdp'  # was: ('workers', 'fsdp'), the axes over the examples that a model sees


# --- The model says how everything lies, as Explicit axes ask ---


def matrix_specs():
    layer = {
        'qkv': P(None, 'fsdp', 'tensor', None),
        'out': P('tensor', None, 'fsdp'),
        'up': P('fsdp', 'tensor'),
        'down': P('tensor', 'fsdp'),
    }
    return {'tokens': P(None, 'fsdp'), 'positions': P(), 'layers': [layer] * LAYERS}


def init_params(key):
    shapes = {
        'tokens': (VOCABULARY, WIDTH),
        'positions': (CONTEXT, WIDTH),
        'layers': [
            {
                'qkv': (3, WIDTH, HEADS, WIDTH // HEADS),
                'out': (HEADS, WIDTH // HEADS, WIDTH),
                'up': (WIDTH, 4 * WIDTH),
                'down': (4 * WIDTH, WIDTH),
            }
        ]
        * LAYERS,
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, s) * WIDTH**-0.5 / 2 for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def normalized(x):
    return x * jax.lax.rsqrt(jnp.mean(x.astype(jnp.float32) ** 2, axis=-1, keepdims=True) + 1e-6).astype(
        x.dtype
    )


def gathered(weight, spec):
    """A weight in bfloat16, whole over the devices of FSDP."""
    return jax.sharding.reshard(weight.astype(jnp.bfloat16), spec)


def predict(params, tokens):
    embedding = gathered(params['tokens'], P())
    x = embedding.at[tokens].get(out_sharding=P(DATA))
    x += gathered(params['positions'], P())[None, : tokens.shape[1]]
    for layer in params['layers']:
        qkv = gathered(layer['qkv'], P(None, None, 'tensor', None))
        heads = jnp.einsum('btw,cwhd->cbthd', normalized(x), qkv, out_sharding=P(None, DATA, None, 'tensor'))
        scores = jnp.einsum('bqhd,bkhd->bhqk', heads[0], heads[1]) * heads.shape[-1] ** -0.5
        future = jnp.triu(jnp.ones(scores.shape[-2:], bool), 1)
        weights = jax.nn.softmax(jnp.where(future, -1e9, scores.astype(jnp.float32))).astype(x.dtype)
        attended = jnp.einsum('bhqk,bkhd->bqhd', weights, heads[2])
        out = gathered(layer['out'], P('tensor', None, None))
        x += jnp.einsum('bqhd,hdw->bqw', attended, out, out_sharding=P(DATA))
        hidden = jnp.einsum(
            'btw,wf->btf',
            normalized(x),
            gathered(layer['up'], P(None, 'tensor')),
            out_sharding=P(DATA, None, 'tensor'),
        )
        down = gathered(layer['down'], P('tensor', None))
        x += jnp.einsum('btf,fw->btw', jax.nn.gelu(hidden), down, out_sharding=P(DATA))
    return jnp.einsum('btw,vw->btv', normalized(x), embedding, out_sharding=P(DATA)).astype(jnp.float32)


def loss_fn(params, sequences):
    logits = predict(params, sequences[:, :-1])
    targets = jax.nn.one_hot(sequences[:, 1:], VOCABULARY, dtype=logits.dtype)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1))


# --- The step ---


def make_train_step(tx):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, opt_state, batch):
        gradient = tx.value_and_grad(loss_fn)  # was: jax.value_and_grad(loss_fn)
        losses, grads = gradient(params, opt_state, batch)  # was: gradient(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses.mean()  # was: losses

    return train_step


def batches(seed, num_steps):
    """Sequences of bytes from Python's standard library."""
    files = sorted(Path(os.__file__).parent.glob('*.py'))
    text = np.frombuffer(b''.join(path.read_bytes() for path in files), np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        starts = rng.integers(0, len(text) - CONTEXT - 1, BATCH)
        yield text[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)


def main(num_steps=200):
    mesh = jax.make_mesh((2, 2, 2), ('workers', 'fsdp', 'tensor'))  # Explicit, JAX's default
    with jax.set_mesh(mesh):
        return train(mesh, num_steps)


def train(mesh, num_steps):
    adamw = def_jax.def_adamw(5e-3, 64, 'workers')  # was: optax.adamw(5e-3)
    tx = optax.chain(optax.clip_by_global_norm(1.0), adamw)
    tx = def_jax.spmd(tx, mesh, matrix_specs())  # was: nothing
    params = jax.device_put(init_params(jax.random.key(0)), tx.shardings)
    opt_state = tx.init(params)
    train_step = make_train_step(tx)
    for batch in batches(0, num_steps):
        batch = jax.device_put(batch, NamedSharding(mesh, P(('workers', 'fsdp'))))
        params, opt_state, loss = train_step(params, opt_state, batch)
        loss = float(loss)
    sent = tx.check(train_step.lower(params, opt_state, batch).compile())
    print(
        f'loss {loss:.3f} nats a byte; between workers: {sum(c.bytes for c in sent)} bytes a step and device'
    )
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 8)
    main()
