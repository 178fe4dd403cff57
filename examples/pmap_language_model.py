"""The loop of HuggingFace's Flax language models under `jax.pmap`: a mean loss over all workers' tokens.

    python examples/pmap_language_model.py

What differs from the dense trainer. Workers have different numbers of tokens n: the gradient of the batch is
psum(g) / psum(n), which is the mean over workers of K·g / psum(n).

    -    adamw = optax.adamw(3e-3)
    +    adamw = def_jax.def_adamw(3e-3, 64, 'batch')

    -    (loss, n), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, dropout_rng)
    -    grads = jax.lax.psum(grads, 'batch')
    -    scale = 1 / jax.lax.psum(n, 'batch')
    +    point = def_jax.detached_params(state.params, state.opt_state)
    +    (loss, n), grads = jax.value_and_grad(loss_fn, has_aux=True)(point, batch, dropout_rng)
    +    scale = jax.lax.axis_size('batch') / jax.lax.psum(n, 'batch')
"""

import functools
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from flax.training import common_utils, train_state

import def_jax


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens, deterministic):
        x = nn.Embed(256, 64)(tokens) + nn.Embed(32, 64)(jnp.arange(tokens.shape[1]))
        for _ in range(2):
            x += nn.SelfAttention(num_heads=4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
            hidden = nn.Dense(64)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
            x += nn.Dropout(0.05)(hidden, deterministic=deterministic)
        return nn.Dense(256)(nn.LayerNorm()(x))


class TrainState(train_state.TrainState):
    dropout_rng: jax.Array


def loss_fn(params, batch, dropout_rng):
    tokens, mask = batch  # a token counts where the mask is 1
    logits = Transformer().apply({'params': params}, tokens[:, :-1], False, rngs={'dropout': dropout_rng})
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return (losses * mask).sum(), mask.sum()


@functools.partial(jax.pmap, axis_name='batch', donate_argnums=(0,))
def train_step(state, batch):
    dropout_rng, new_dropout_rng = jax.random.split(state.dropout_rng)
    point = def_jax.detached_params(state.params, state.opt_state)
    (loss, n), grads = jax.value_and_grad(loss_fn, has_aux=True)(point, batch, dropout_rng)
    # was: grads = jax.lax.psum(grads, 'batch')
    scale = jax.lax.axis_size('batch') / jax.lax.psum(n, 'batch')
    grads = jax.tree.map(lambda g: scale * g, grads)
    loss = jax.lax.psum(loss, 'batch') / jax.lax.psum(n, 'batch')
    return state.apply_gradients(grads=grads, dropout_rng=new_dropout_rng), loss


def batches(num_steps):
    files = sorted(Path(os.__file__).parent.glob('*.py'))
    text = np.frombuffer(b''.join(path.read_bytes() for path in files), np.uint8)
    rng, shape = np.random.default_rng(0), (jax.device_count(), 8, 1)
    for _ in range(num_steps):
        rows = rng.integers(0, len(text) - 33, shape) + np.arange(33)
        mask = np.arange(32) < rng.integers(8, 33, shape)  # sequences end at different places
        yield text[rows].astype(np.int32), mask.astype(np.float32)


def main(num_steps=300):
    params = Transformer().init(jax.random.key(0), jnp.zeros((1, 32), int), True)['params']
    adamw = def_jax.def_adamw(3e-3, 64, 'batch')
    state = TrainState.create(apply_fn=None, params=params, tx=adamw, dropout_rng=jax.random.PRNGKey(1))
    state = jax_utils.replicate(state).replace(dropout_rng=common_utils.shard_prng_key(state.dropout_rng))
    def_jax.check(train_step.lower(state, *batches(1)).compile(), adamw, params, 'batch')
    for batch in batches(num_steps):
        state, loss = jax.block_until_ready(train_step(state, batch))
    print(f'loss {float(loss[0]):.3f} nats a byte')
    return float(loss[0])


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
