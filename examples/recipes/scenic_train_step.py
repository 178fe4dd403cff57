"""scenic's classification trainer: TrainState under `jax.pmap`, metrics, logs, a clip and checkpoints.

    python examples/recipes/scenic_train_step.py

A comment on each line that DEF changes says what it was.
"""

import functools
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import jax_utils
from jax.example_libraries.optimizers import clip_grads
from sklearn.datasets import load_digits

import def_jax


@flax.struct.dataclass
class TrainState:
    tx: optax.GradientTransformation = flax.struct.field(pytree_node=False)
    opt_state: Any
    params: Any
    model_state: Any  # BatchNorm's statistics
    rng: jax.Array
    global_step: int = 0


class Model(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.Dense(128, use_bias=False)(images)
        hidden = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(hidden))


def metrics_fn(logits, batch):
    """Sums over all workers and their normalizers, as in scenic."""
    right = (logits.argmax(-1) == batch['label']) * batch['batch_mask']
    return {'accuracy': jax.lax.psum((right.sum(), batch['batch_mask'].sum()), 'batch')}


def train_step(train_state, batch, *, flax_model, max_grad_norm):
    new_rng, rng = jax.random.split(train_state.rng)
    dropout_rng = jax.random.fold_in(rng, jax.lax.axis_index('batch'))

    def training_loss_fn(params):
        rngs = {'dropout': dropout_rng}
        variables = {'params': params, **train_state.model_state}
        logits, new_model_state = flax_model.apply(
            variables, batch['inputs'], train=True, rngs=rngs, mutable=['batch_stats']
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return (losses * batch['batch_mask']).sum() / batch['batch_mask'].sum(), (new_model_state, logits)

    compute_gradient_fn = jax.value_and_grad(training_loss_fn, has_aux=True)
    point = def_jax.detached_params(train_state.params, train_state.opt_state)
    (_, (new_model_state, logits)), grad = compute_gradient_fn(point)  # was: of train_state.params
    # was: grad = jax.lax.pmean(grad, axis_name='batch')
    l2_grads = optax.global_norm(grad)
    grad = clip_grads(grad, max_grad_norm)  # each worker's own, to a larger norm than the mean
    weight = batch['batch_mask'].sum()  # examples of this worker
    updates, new_opt_state = train_state.tx.update(
        grad, train_state.opt_state, train_state.params, weight=weight
    )
    training_logs = {
        'l2_grads': jnp.sqrt(jax.lax.pmean(l2_grads**2, 'batch')),  # was: l2_grads
        'l2_updates': optax.global_norm(updates),  # the mean message, the same on all workers
    }
    train_state = train_state.replace(
        global_step=train_state.global_step + 1,
        opt_state=new_opt_state,
        params=optax.apply_updates(train_state.params, updates),
        model_state=new_model_state,  # each worker's own until it is synchronised, as before
        rng=new_rng,
    )
    return train_state, metrics_fn(logits, batch), training_logs


@functools.partial(jax.pmap, axis_name='batch')
def synchronised(model_state):
    return jax.lax.pmean(model_state, 'batch')


def sync_model_state_across_replicas(train_state):
    """scenic's: the mean of the workers' statistics, before a checkpoint and before an evaluation."""
    return train_state.replace(model_state=synchronised(train_state.model_state))


def save_checkpoint(train_state):
    opt_state = def_jax.stack_state(train_state.opt_state)
    train_state = jax_utils.unreplicate(train_state.replace(opt_state=()))
    return flax.serialization.to_bytes(train_state.replace(opt_state=opt_state))


def restore_checkpoint(saved, train_state):
    """The state on all devices, from that of `save_checkpoint` and a new one on none."""
    train_state = flax.serialization.from_bytes(train_state, saved)
    opt_state = def_jax.unstack_state(train_state.opt_state, num_workers=jax.local_device_count())
    return jax_utils.replicate(train_state.replace(opt_state=())).replace(opt_state=opt_state)


def main(num_steps=300):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    model = Model()
    variables = model.init(jax.random.key(0), images[:1])
    params, model_state = variables['params'], {'batch_stats': variables['batch_stats']}
    lr_fn = optax.cosine_decay_schedule(0.1, num_steps)
    tx = def_jax.def_sgd(lr_fn, 64, 'batch')  # was: optax.sgd(lr_fn, momentum=0.9)
    start = TrainState(
        tx=tx,
        opt_state=jax.jit(tx.init)(params),
        params=params,
        model_state=model_state,
        rng=jax.random.PRNGKey(0),
    )
    train_state = jax_utils.replicate(start)
    stepped = functools.partial(train_step, flax_model=model, max_grad_norm=10.0)
    train_step_pmapped = jax.pmap(stepped, axis_name='batch', donate_argnums=(0,))

    def batch():
        rows = rng.integers(0, 1400, (jax.device_count(), 16))
        mask = np.float32(rng.random(rows.shape) < 0.9)
        return {'inputs': images[rows], 'label': labels[rows], 'batch_mask': mask}

    def_jax.check(train_step_pmapped.lower(train_state, batch()).compile(), tx, params, 'batch')
    for step in range(num_steps):
        if step == num_steps // 2:
            synced = sync_model_state_across_replicas(train_state)
            train_state = restore_checkpoint(save_checkpoint(synced), start)
        train_state, metrics, logs = jax.block_until_ready(train_step_pmapped(train_state, batch()))
    print('norms:', {name: round(float(norm[0]), 3) for name, norm in logs.items()})
    right, number = jax_utils.unreplicate(metrics)['accuracy']
    train_state = sync_model_state_across_replicas(train_state)
    params, model_state = jax_utils.unreplicate((train_state.params, train_state.model_state))
    logits = model.apply({'params': params, **model_state}, images[1400:])
    accuracy = float((logits.argmax(-1) == labels[1400:]).mean())
    print(f'accuracy in training {float(right / number):.3f}, in the test {accuracy:.3f}')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
