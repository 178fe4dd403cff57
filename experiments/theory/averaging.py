"""Iterate averaging and momentum contrast's key as DEF with one worker: excess risk of x and y against δ.

    python experiments/theory/averaging.py

One worker, C(p) = δ·p and λ = 1: y is SGD's path, x its exponential average (Eq. 12, SGD-IA), and the key
encoder of momentum contrast (Eq. 30) one step later. The problem is linear regression with label noise: its
risk is known exactly, and the excess risk splits into optimization and generalization error (Eq. 13).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting

import def_jax

SAMPLES, SIZE, SEEDS, STEPS, RATE = 100, 20, 50, 2000, 0.01
DELTAS = (0.0002, 0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def draw(seed):
    """Features, labels and the true weights; label noise has variance 1."""
    keys = jax.random.split(jax.random.key(seed), 4)
    weights = jax.random.normal(keys[0], (SIZE,)) / SIZE**0.5
    features = jax.random.normal(keys[1], (SAMPLES, SIZE))
    return features, features @ weights + jax.random.normal(keys[2], (SAMPLES,)), weights, keys[3]


@functools.partial(jax.jit, static_argnames=('delta',))
def train(seed, *, delta):
    """x_T, y_T, and how far x is from Eq. 30's key, which sees y one step late."""
    features, labels, _, key = draw(seed)
    optimizer = optax.chain(
        optax.sgd(RATE), def_jax.error_feedback(def_jax.baselines.scaled(delta), axis_name=None, detach=1.0)
    )

    def step(state, chosen):
        params, opt_state, key_encoder = state
        query = def_jax.output_params(params, opt_state, None)
        point = def_jax.detached_params(params, opt_state)
        grads = features[chosen] * (features[chosen] @ point - labels[chosen])
        updates, opt_state = optimizer.update(grads, opt_state)
        key_encoder = (1 - delta) * key_encoder + delta * query  # Eq. 30
        gap = jnp.max(jnp.abs(key_encoder - params))  # x_t, not x_{t+1}
        return (optax.apply_updates(params, updates), opt_state, key_encoder), gap

    start = jnp.zeros(SIZE)
    chosen = jax.random.randint(key, (STEPS,), 0, SAMPLES)
    (x, opt_state, _), gaps = jax.lax.scan(step, (start, optimizer.init(start), start), chosen)
    return x, def_jax.output_params(x, opt_state, None), gaps.max()


def errors(seed, params):
    """Optimization error, generalization error, and their sum, the excess risk (Eq. 13)."""
    features, labels, weights, _ = draw(seed)
    best = jnp.linalg.lstsq(features, labels)[0]

    def empirical(w):
        return jnp.mean((features @ w - labels) ** 2) / 2

    population = (jnp.sum((params - weights) ** 2) + 1) / 2
    return jnp.stack(
        [empirical(params) - empirical(best), population - empirical(params), population - empirical(best)]
    )


def main():
    seeds = np.arange(SEEDS)
    figure, axes = reporting.panels(3)
    names = ('optimization error', 'generalization error', 'excess risk')
    measured = {'x': [], 'y': []}
    rows = []
    for delta in DELTAS:
        x, y, gap = jax.vmap(functools.partial(train, delta=delta))(seeds)
        measured['x'].append(np.asarray(jax.vmap(errors)(seeds, x)))
        measured['y'].append(np.asarray(jax.vmap(errors)(seeds, y)))
        of_x, of_y = measured['x'][-1], measured['y'][-1]
        rows.append(
            [delta]
            + [reporting.mean_std(of_x[:, i]) for i in range(3)]
            + [reporting.interval(of_x[:, i] - of_y[:, i]) for i in range(3)]
            + [f'{gap.max():.0e}']
        )
    for i, name in enumerate(names):
        reporting.band(axes[i], DELTAS, np.stack(measured['x'])[..., i], 'x: SGD-IA', color=reporting.X)
        reporting.band(axes[i], DELTAS, np.stack(measured['y'])[..., i], 'y: SGD', color=reporting.Y)
        axes[i].set(xscale='log', xlabel='δ', ylabel=name)
        axes[i].legend()
    header = [
        'δ',
        *(f'{name}, x' for name in names),
        *(f'{name}, x - y' for name in names),
        'x against Eq. 30',
    ]
    setting = {'samples': SAMPLES, 'size': SIZE, 'steps': STEPS, 'learning_rate': RATE}
    reporting.publish('averaging', figure, header, rows, seeds=SEEDS, **setting)


if __name__ == '__main__':
    main()
