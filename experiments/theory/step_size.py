"""Theorem 4.3's condition on the learning rate, broken and mended.

    python experiments/theory/step_size.py

F(x) = Σ cos x_i has L = 1. All workers start at the maximum x = 0 with λ = 1, so each follows its own model,
and the noise in their gradients sends them to either side. Between two visits to its block, a coordinate's
deviation grows by 1 + η a step. If 1/δ steps are enough to separate the workers, they end in different minima
and their mean y lies in between, where the gradient is large.
"""

import functools

import bounds
import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting

import def_jax

NUM_WORKERS, DETACH, SEEDS = 4, 1.0, 3
NOISE = {64: 1e-10, 256: 1e-10, 1024: 1e-12}  # variance of a coordinate of the gradient, by ratio


@functools.partial(jax.jit, static_argnames=('ratio', 'num_steps'))
def squared_gradients(seed, learning_rate, *, ratio, num_steps):
    """‖∇F(y_t)‖² at every step t."""
    optimizer = def_jax.error_feedback(def_jax.random_block(ratio), 'workers', detach=DETACH)
    keys = jax.random.split(jax.random.key(seed), NUM_WORKERS + 1)
    params = jnp.zeros(ratio)

    def init(_):
        return params, optimizer.init(params)._replace(key=jax.random.key_data(keys[-1]))

    def step(state, t, key):
        params, opt_state = state
        y = def_jax.output_params(params, opt_state, 'workers')
        point = def_jax.detached_params(params, opt_state)
        noise = jax.random.rademacher(jax.random.fold_in(key, t), point.shape, jnp.float32)
        grads = -jnp.sin(point) + NOISE[ratio] ** 0.5 * noise
        updates, opt_state = optimizer.update(-learning_rate * grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), jnp.sum(jnp.sin(y) ** 2)

    step = jax.vmap(step, in_axes=(0, None, 0), axis_name='workers')

    def body(state, t):
        state, squared = step(state, t, keys[:-1])
        return state, squared[0]

    return jax.lax.scan(body, jax.vmap(init)(jnp.arange(NUM_WORKERS)), jnp.arange(num_steps))[1]


def worst(ratio, learning_rate, num_steps):
    """The largest mean squared gradient, over horizons T, over the right-hand side of Eq. 17, by seed."""
    size, steps = ratio, np.arange(1, num_steps + 1)
    allowed = bounds.right_hand_side(
        initial_gap=2 * size,  # F(0) - min F
        learning_rate=learning_rate,
        num_steps=steps,
        smoothness=1,
        variance=size * NOISE[ratio],
        second_moment=size,  # λ = 1: it does not count
        num_workers=NUM_WORKERS,
        detach=DETACH,
        delta=1 / ratio,
    )
    runs = jax.vmap(lambda seed: squared_gradients(seed, learning_rate, ratio=ratio, num_steps=num_steps))(
        jnp.arange(SEEDS)
    )
    return [np.max(np.cumsum(np.asarray(run, np.float64)) / steps / allowed) for run in runs]


def main():
    figure, (axes,) = reporting.panels(1)
    rows = []
    for ratio in NOISE:
        largest = bounds.largest_learning_rate(
            smoothness=1, num_workers=NUM_WORKERS, detach=DETACH, delta=1 / ratio
        )
        # At 1024 the steps of the largest rate would take too long.
        rates = [1 / 64, 1 / 32] if ratio == 1024 else [largest]
        rates += [1 / 16, 1 / 8, 1 / 4]
        measured = []
        for rate in rates:
            num_steps = round((40 if rate == largest else 1000 if ratio == 1024 else 500) / rate)
            measured.append(worst(ratio, rate, num_steps))
            holds = 'yes' if max(measured[-1]) <= 1 else 'NO'
            rows.append(
                [
                    ratio,
                    f'{rate:.3g}',
                    f'{rate / largest:.3g}',
                    num_steps,
                    reporting.mean_std(measured[-1]),
                    holds,
                ]
            )
        reporting.band(axes, np.array(rates) / largest, measured, f'ratio {ratio}', marker='.')
        axes.plot(0.25 / largest, np.mean(measured[-1]), 'kx', label='η = 1/(4L)' if ratio == 1024 else None)
    axes.axhline(1, color=reporting.BOUND, linewidth=0.8)
    axes.axvline(1, color=reporting.BOUND, linewidth=0.8, linestyle=':')
    axes.set(xscale='log', yscale='log', xlabel='η / corrected limit', ylabel='mean ‖∇F(y)‖² / bound')
    axes.legend()
    header = ['ratio', 'η', 'η / corrected limit', 'steps', 'measured / Eq. 17, worst T', 'bound holds']
    reporting.publish('step_size', figure, header, rows, workers=NUM_WORKERS, detach=DETACH, seeds=SEEDS)


if __name__ == '__main__':
    main()
