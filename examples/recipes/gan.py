"""Two optimizers in one step: a generator and a discriminator, each with a rate and a message of its own.

    python examples/recipes/gan.py

One tree holds both networks, and `optax.multi_transform` gives each its optimizer: so there is one state,
one call of `update`, and one optimizer to give to `check`. SAC's actor, critic and temperature go the same
way.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax

NETWORKS = ('generator', 'discriminator')


def make_optimizer(num_steps):
    def adam(rate, seed):  # with one seed, blocks of both would be drawn alike
        inner = optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=0.5)
        return def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=inner, bits=2, seed=seed)

    optimizers = {'generator': adam(5e-4, seed=0), 'discriminator': adam(5e-3, seed=1)}
    return optax.multi_transform(optimizers, dict(zip(NETWORKS, NETWORKS, strict=True)))


def init_params(key):
    def network(key, size):
        first, second = jax.random.split(key)
        return {'in': jax.random.normal(first, (size + 1, 64)), 'out': jax.random.normal(second, (64, 1)) / 8}

    first, second = jax.random.split(key)
    return {'generator': network(first, 4), 'discriminator': network(second, 1)}


def apply(network, x):
    ones = jnp.ones((len(x), 1))
    return jax.nn.tanh(jnp.concatenate([x, ones], axis=1) @ network['in']) @ network['out']


def gradients(params, batch):
    """Of both losses: each network's with respect to itself, the other held."""
    real, noise = batch

    def discriminator_loss(discriminator):
        fake = jax.nn.softplus(apply(discriminator, apply(params['generator'], noise)))
        return (fake + jax.nn.softplus(-apply(discriminator, real))).mean()

    def generator_loss(generator):
        return jax.nn.softplus(-apply(params['discriminator'], apply(generator, noise))).mean()

    losses = generator_loss, discriminator_loss
    return {name: jax.grad(loss)(params[name]) for name, loss in zip(NETWORKS, losses, strict=True)}


def main(num_steps=1500):
    dist = def_jax.spmd(make_optimizer(num_steps), jax.make_mesh((jax.device_count(),), ('workers',)))

    @jax.jit
    def train_step(params, opt_state, batch):
        grads = dist.at_points(gradients)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = jax.device_put(init_params(jax.random.key(0)), dist.shardings)
    opt_state, rng = dist.init(params), np.random.default_rng(0)
    for _ in range(num_steps):
        batch = rng.normal(2.0, 0.5, (64, 1)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)
        params, opt_state = jax.block_until_ready(train_step(params, opt_state, batch))
    dist.check(train_step.lower(params, opt_state, batch).compile())
    made = apply(params['generator'], rng.normal(size=(4096, 4)).astype(np.float32))
    print(f'generated {float(made.mean()):.2f} ± {float(made.std()):.2f}, real 2.00 ± 0.50')
    return abs(made.mean() - 2)


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
