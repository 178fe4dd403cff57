"""The loop of Flax's ImageNet example under `jax.pmap`: BatchNorm, weight decay in the loss, a schedule.

    python examples/pmap_imagenet.py

Images are synthetic. What differs from the dense trainer:

    -    tx = optax.sgd(learning_rate_fn, momentum=0.9, nesterov=True)
    +    tx = def_jax.def_sgd(learning_rate_fn, 64, 'batch', skip_nonfinite=True)

    -    (loss, (new_model_state, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    -    grads = jax.lax.pmean(grads, 'batch')
    +    point = def_jax.detached_params(state.params, state.opt_state)
    +    (loss, (new_model_state, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(point)
    +    finite = def_jax.all_finite(grads, 'batch')
    +    batch_stats = optax.tree.where(finite, new_model_state['batch_stats'], state.batch_stats)

Leave out DynamicScale, whose axis_name= averages gradients: `skip_nonfinite` decides for all workers and
skips the optimizer's step; the last two lines keep BatchNorm's statistics then.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from flax.training import train_state

import def_jax


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), strides=2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class TrainState(train_state.TrainState):
    batch_stats: dict


@functools.partial(jax.pmap, axis_name='batch', donate_argnums=(0,))
def train_step(state, batch):
    def loss_fn(params):
        variables = {'params': params, 'batch_stats': state.batch_stats}
        logits, new_model_state = state.apply_fn(variables, batch['image'], True, mutable='batch_stats')
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
        return loss + 5e-5 * optax.tree.norm(params, squared=True), (new_model_state, logits)

    point = def_jax.detached_params(state.params, state.opt_state)
    (loss, (new_model_state, logits)), grads = jax.value_and_grad(loss_fn, has_aux=True)(point)
    # was: grads = jax.lax.pmean(grads, 'batch')
    finite = def_jax.all_finite(grads, 'batch')
    batch_stats = optax.tree.where(finite, new_model_state['batch_stats'], state.batch_stats)
    metrics = {'loss': loss, 'accuracy': (logits.argmax(-1) == batch['label']).mean()}
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), jax.lax.pmean(metrics, 'batch')


cross_replica_mean = jax.pmap(lambda x: jax.lax.pmean(x, 'x'), 'x')


def batches(num_steps):
    rng = np.random.default_rng(0)
    means = rng.normal(size=(10, 16, 16, 3))
    for _ in range(num_steps):
        label = rng.integers(0, 10, (jax.device_count(), 16))
        yield {'image': rng.normal(means[label], 2).astype(np.float32), 'label': label}


def main(num_steps=200):
    variables = Network().init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False)
    learning_rate_fn = optax.warmup_cosine_decay_schedule(0.0, 0.05, 20, num_steps)
    tx = def_jax.def_sgd(learning_rate_fn, 64, 'batch', skip_nonfinite=True)
    state = jax_utils.replicate(TrainState.create(apply_fn=Network().apply, tx=tx, **variables))
    def_jax.check(train_step.lower(state, *batches(1)).compile(), tx, variables['params'], 'batch')
    stream = batches(num_steps + 1)
    for batch in itertools.islice(stream, num_steps):
        state, metrics = jax.block_until_ready(train_step(state, batch))
    state = state.replace(batch_stats=cross_replica_mean(state.batch_stats))
    variables = jax_utils.unreplicate({'params': state.params, 'batch_stats': state.batch_stats})
    test = next(stream)  # which no step has seen
    logits = Network().apply(variables, jax.lax.collapse(test['image'], 0, 2), False)
    accuracy = float((logits.argmax(-1) == test['label'].ravel()).mean())
    print(f'loss {float(metrics["loss"][0]):.3f}, test accuracy {accuracy:.3f}')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
