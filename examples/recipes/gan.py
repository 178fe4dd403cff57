"""Two optimizers in one step: a generator and a discriminator, each with a rate and a message of its own.

    python examples/recipes/gan.py

The generator learns eight Gaussians on a ring in two dimensions, where one that is lost is seen.

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
NOISE, HIDDEN, SPREAD = 8, 128, 0.2
ANGLES = np.arange(8) * np.pi / 4
CENTRES = 2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # [8, 2]


def make_optimizer(num_steps):
    def adam(rate):
        inner = optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=0.5)
        return def_jax.error_feedback(def_jax.random_block(4), 'workers', inner=inner, bits=2)

    optimizers = {'generator': adam(3e-3), 'discriminator': adam(3e-3)}
    return optax.multi_transform(optimizers, dict(zip(NETWORKS, NETWORKS, strict=True)))


def init_params(key):
    def network(key, inputs, outputs):
        first, second = jax.random.split(key)
        into, out = (inputs + 1, HIDDEN), (HIDDEN, outputs)
        return {'in': jax.random.normal(first, into), 'out': jax.random.normal(second, out) / HIDDEN**0.5}

    first, second = jax.random.split(key)
    return {'generator': network(first, NOISE, 2), 'discriminator': network(second, 2, 1)}


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


def draw(rng, size):
    """Points on the ring, [size, 2], and noise for the generator."""
    real = CENTRES[rng.integers(0, 8, size)] + SPREAD * rng.normal(size=(size, 2))
    return real.astype(np.float32), rng.normal(size=(size, NOISE)).astype(np.float32)


def distance(points):
    """How far the worst mode is from its place, in its mean or its spread; 2, the radius, if it is lost."""
    nearest = np.linalg.norm(points[:, None] - CENTRES, axis=-1).argmin(axis=1)
    worst = 0.0
    for mode, centre in enumerate(CENTRES):
        found = points[nearest == mode]
        if len(found) < len(points) / 100:  # an eighth was right
            return 2.0
        mean = found.mean(axis=0)
        spread = np.sqrt(((found - mean) ** 2).mean())
        worst = max(worst, np.linalg.norm(mean - centre), abs(spread - SPREAD))
    return worst


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
        batch = draw(rng, 128)
        params, opt_state = jax.block_until_ready(train_step(params, opt_state, batch))
    dist.check(train_step.lower(params, opt_state, batch).compile())
    real, noise = draw(rng, 4096)
    found = distance(np.asarray(apply(params['generator'], noise)))
    print(f'the worst of eight modes is {found:.2f} from its place, in a real sample {distance(real):.2f}')
    return found


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
