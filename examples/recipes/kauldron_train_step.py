"""kauldron: a `TrainStep` whose gradients are each worker's own, in its Trainer, with checkpoints.

    pip install kauldron
    python examples/recipes/kauldron_train_step.py

A comment on each line that DEF changes says what it was.
"""

import os
import tempfile

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores

import jax
import numpy as np
import optax
from flax import linen as nn
from kauldron import kd
from sklearn.datasets import load_digits

import def_jax


class Model(nn.Module):
    images: kd.kontext.Key = 'batch.image'

    @nn.compact
    def __call__(self, images):
        hidden = nn.relu(nn.Dense(128)(images))
        return nn.Dense(10)(kd.nn.Dropout(0.1)(hidden))


class TrainStep(kd.train.TrainStep):
    """kauldron's step, but for the gradient."""

    def _step(self, state, batch):
        def grad_fn(params, batch, collections, rngs):
            context = kd.train.Context(step=state.step, batch=batch, params=params, collections=collections)

            def loss_fn(params):
                loss, found = kd.train.forward_with_loss(
                    context.replace(params=params),
                    model=self.model,
                    losses=self.aux.losses,
                    rngs=rngs,
                    is_training=True,
                )
                return loss, (found.preds, found.loss_states, found.collections)

            return jax.grad(loss_fn, has_aux=True)(params)

        # was: context_grads, context = grad_fn(context, ...), with the gradient of the whole batch
        at_points = self.optimizer.at_points(grad_fn, split=(1,), keys=(3,))
        grads, (preds, loss_states, collections) = at_points(
            state.params, state.opt_state, batch, state.collections, self.rng_streams.train_rngs(state.step)
        )
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        next_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            collections=self.optimizer.mean(collections),
        )
        context = kd.train.Context.from_state_and_batch(state=state, batch=batch).replace(
            preds=jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), preds),
            loss_states=jax.tree.map(lambda x: x.sum(0), loss_states),  # sums and counts
            updates=updates,
        )
        return next_state, self.aux.update_context(context)


def trainer_of(workdir, num_steps):
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels[:, None].astype(np.int32)

    def dataset(rows, **kwargs):
        loaded = {'image': images[rows], 'label': labels[rows]}
        return kd.data.InMemoryPipeline(loader=lambda: loaded, batch_size=64, seed=0, **kwargs)

    logits = {'logits': 'preds', 'labels': 'batch.label'}
    losses = {'xent': kd.losses.SoftmaxCrossEntropyWithIntLabels(**logits)}
    metrics = {'accuracy': kd.metrics.Accuracy(**logits)}
    sgd = def_jax.def_sgd(optax.cosine_decay_schedule(0.1, 300), 64, 'devices')
    return kd.train.Trainer(
        train_ds=dataset(slice(1400), shuffle=True),
        model=Model(),
        optimizer=def_jax.spmd(sgd, kd.sharding.DEVICES_MESH, axis_name='devices'),  # was: optax.sgd(...)
        trainstep=TrainStep(),  # was: the default
        train_losses=losses,
        train_metrics=metrics,
        evals={
            'test': kd.evals.Evaluator(
                run=kd.evals.EveryNSteps(100),
                ds=dataset(slice(1400, None), num_epochs=1),
                losses=losses,
                metrics=metrics,
            )
        },
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=100),
        num_train_steps=num_steps,
        workdir=workdir,
    )


def main(num_steps=300):
    with tempfile.TemporaryDirectory() as workdir:
        trainer_of(workdir, num_steps // 2).train()
        trainer = trainer_of(workdir, num_steps)  # goes on from the last checkpoint
        state, _ = trainer.train()
    batch = kd.sharding.device_put(next(iter(trainer.train_ds)), trainer.sharding.batch)
    compiled = TrainStep.step.lower(trainer.trainstep, state, batch, return_metrics=True).compile()
    trainer.optimizer.check(compiled)
    tested = trainer.evals['test'].evaluate(state, step=num_steps).compute()
    print(tested.loss_values, tested.metric_values)
    return tested.metric_values['metrics/accuracy']


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
