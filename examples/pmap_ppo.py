"""PPO in the shape of brax's trainer under `jax.pmap`: the optimizer and the gradient are passed down.

    python examples/pmap_ppo.py

What differs from the dense trainer, whose pmean is hidden in a helper:

    -    optimizer = optax.adam(3e-3)
    +    optimizer = def_jax.def_adamw(3e-3, 16, 'i', weight_decay=0.0)

    -    update = gradient_update_fn(loss_fn, optimizer, pmap_axis_name='i')
    +    update = gradient_update_fn(loss_fn, optimizer, pmap_axis_name=None)

    -        grads = pgrad(params, *args)
    +        grads = pgrad(def_jax.detached_params(params, opt_state), *args)
"""

import functools

import jax
import jax.numpy as jnp
import optax

import def_jax

ENVS, LENGTH, ROWS = 64, 20, 320  # of a worker, and of a minibatch


def network(params, x):  # to the policy's mean and the value
    out = jnp.tanh(x @ params['in'] + params['bias']) @ params['out']
    return out[..., :2], out[..., 2]


def rollout(params, key):  # of points that are to be pushed to the origin
    def step(x, key):
        noise = jax.random.normal(key, x.shape)
        action = network(params, x)[0] + 0.3 * noise
        after = x + 0.3 * jnp.clip(action, -1, 1)
        return after, (x, action, -jnp.sum(noise**2, -1) / 2, -jnp.sum(after**2, -1))

    keys = jax.random.split(key, 1 + LENGTH)
    *data, reward = jax.lax.scan(step, jax.random.normal(keys[0], (ENVS, 2)), keys[1:])[1]
    returns = jax.lax.scan(lambda g, r: (r + 0.9 * g,) * 2, jnp.zeros(ENVS), reward, reverse=True)[1]
    return [jax.lax.collapse(x, 0, 2) for x in (*data, returns)], reward.mean()


def loss_fn(params, x, action, old, returns):
    mean, value = network(params, x)
    advantage = jax.lax.stop_gradient((returns - value) / jnp.std(returns - value))
    ratio = jnp.exp(-jnp.sum((action - mean) ** 2, -1) / (2 * 0.3**2) - old)
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return jnp.mean((value - returns) ** 2) - jnp.mean(gain)


def gradient_update_fn(loss_fn, optimizer, pmap_axis_name):
    def pgrad(*args):
        grads = jax.grad(loss_fn)(*args)
        return jax.lax.pmean(grads, pmap_axis_name) if pmap_axis_name else grads

    def update(params, opt_state, *args):
        grads = pgrad(def_jax.detached_params(params, opt_state), *args)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return update


def main(num_steps=40):
    optimizer = def_jax.def_adamw(3e-3, 16, 'i', weight_decay=0.0)
    update = gradient_update_fn(loss_fn, optimizer, pmap_axis_name=None)

    @functools.partial(jax.pmap, axis_name='i')
    def training_epoch(params, opt_state, key):
        acting, shuffling = jax.random.split(key)
        data, reward = rollout(params, acting)
        rows = jax.random.permutation(shuffling, ENVS * LENGTH).reshape(-1, ROWS)

        def step(state, chosen):
            return update(*state, *(x[chosen] for x in data)), None

        return *jax.lax.scan(step, (params, opt_state), rows)[0], jax.lax.pmean(reward, 'i')

    first, second, training = jax.random.split(jax.random.key(0), 3)
    one = {'in': jax.random.normal(first, (2, 64)), 'bias': jnp.zeros(64)}
    one['out'] = jax.random.normal(second, (64, 3)) / 100  # the first policy hardly acts
    workers = jax.device_count()
    state = jax.pmap(lambda _: (one, optimizer.init(one)))(jnp.arange(workers))
    compiled = training_epoch.lower(*state, jax.random.split(training, workers)).compile()
    def_jax.check(compiled, optimizer, one, 'i', steps=ENVS * LENGTH // ROWS)
    for key in jax.random.split(training, num_steps):
        *state, reward = jax.block_until_ready(training_epoch(*state, jax.random.split(key, workers)))
    print(f'reward {float(reward[0]):.3f}')
    return float(reward[0])


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
