"""Twin runs that differ in one training example: is x more stable than y, and does δ decide?

    python experiments/theory/stability.py

A tanh network learns noisy labels of N examples. Its twin has another first example and draws the same
indices and blocks. η = c/(t+1) is the rate of Theorems 4.6 and 4.10; a constant one is closer to practice.
One worker with C(p) = δ·p and λ = 1 is SGD-IA; four with random sparsification and λ = 0.3 are DEF(-A).
On the saddle f = -½Lθ², y's twins part as T^(Lc), the rate of growth in the proof of Theorem 4.6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting

import def_jax

SAMPLES, SIZE, HIDDEN, SEEDS, STEPS = 64, 7, 32, 20, 1500  # 256 parameters, of which 1/δ is a divisor
DELTAS = (1 / 16, 1 / 64, 1 / 256)
RATES = {'c/(t+1), c = 2': lambda t: 2.0 / (t + 1), 'constant 0.05': lambda t: 0.05}
SETTINGS = {
    'SGD-IA': (1, 1.0, def_jax.baselines.scaled),
    'DEF(-A)': (4, 0.3, lambda delta: def_jax.baselines.random_k(1 / delta)),
}


def logits(params, features):
    hidden, output = params[: SIZE * HIDDEN].reshape(SIZE, HIDDEN), params[SIZE * HIDDEN :]
    return jnp.tanh(features @ hidden) @ output


def loss(params, features, labels):
    return optax.sigmoid_binary_cross_entropy(logits(params, features), labels).mean()


def draw(key, count):
    keys = jax.random.split(key)
    features = jax.random.normal(keys[0], (count, SIZE))
    labels = (features[:, 0] + jax.random.normal(keys[1], (count,)) > 0).astype(jnp.float32)
    return features, labels


def train(seed, data, name, rate, delta):
    """x_T and y_T on `data`; all randomness is in the seed, so twins share it."""
    num_workers, detach, compressor = SETTINGS[name]
    axis_name = 'workers' if num_workers > 1 else None
    optimizer = def_jax.error_feedback(compressor(delta), axis_name, detach=detach)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    params = jax.random.normal(keys[0], (SIZE * HIDDEN + HIDDEN,)) / SIZE**0.5
    chosen = jax.random.randint(keys[1], (STEPS, num_workers), 0, SAMPLES)

    def init(_):
        return params, optimizer.init(params)._replace(key=jax.random.key_data(keys[2]))

    def step(state, example, t):
        params, opt_state = state
        point = def_jax.detached_params(params, opt_state)
        grads = jax.grad(loss)(point, data[0][example], data[1][example])
        updates, opt_state = optimizer.update(-RATES[rate](t) * grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    step = jax.vmap(step, in_axes=(0, 0, None), axis_name='workers')

    def body(state, inputs):
        return step(state, *inputs), None

    start = jax.vmap(init)(jnp.arange(num_workers))
    (x, opt_state), _ = jax.lax.scan(body, start, (chosen, jnp.arange(STEPS)))
    return {'x': x[0], 'y': x[0] + opt_state.residual.mean(0)}


@functools.partial(jax.jit, static_argnames=('name', 'rate', 'delta'))
def differences(seed, *, name, rate, delta):
    """‖x - x̃‖, ‖y - ỹ‖ and E|f(·) - f(·~)| over fresh examples, for twins that share all but one example."""
    keys = jax.random.split(jax.random.key(seed), 3)
    features, labels = draw(keys[0], SAMPLES)
    other, flipped = draw(keys[1], 1)
    data = (
        jnp.stack([features, features.at[0].set(other[0])]),
        jnp.stack([labels, labels.at[0].set(flipped[0])]),
    )
    twins = jax.vmap(lambda *data: train(seed, data, name, rate, delta))(*data)
    fresh = draw(keys[2], 500)
    measured = {}
    for point, (one, two) in twins.items():
        losses = [optax.sigmoid_binary_cross_entropy(logits(p, fresh[0]), fresh[1]) for p in (one, two)]
        measured[point] = jnp.linalg.norm(one - two)
        measured[f'loss {point}'] = jnp.mean(jnp.abs(losses[0] - losses[1]))
    return measured


def saddle(delta, steps=100_000, smoothness=1.0, c=1.0):
    """|Δx_t| and |Δy_t| on f = -½Lθ², one worker, after the twins part by 1 in step 10."""
    x, y, course = 0.0, 1.0, []
    for t in range(10, steps):
        y *= 1 + smoothness * c / (t + 1)
        x += delta * (y - x)
        course.append((t + 1, x, y))
    return np.array(course).T


def main():
    figure, axes = reporting.panels(3)
    rows = []
    for panel, rate in zip(axes, RATES, strict=False):
        for name, color in zip(SETTINGS, (reporting.Y, reporting.X), strict=True):
            ratios = []
            for delta in DELTAS:
                measured = jax.vmap(functools.partial(differences, name=name, rate=rate, delta=delta))
                run = {key: np.asarray(value) for key, value in measured(np.arange(SEEDS)).items()}
                ratios.append(run['x'] / run['y'])
                distances = [reporting.mean_std(run[point]) for point in ('x', 'y')]
                gaps = [reporting.interval(run[f'{of}x'] - run[f'{of}y']) for of in ('', 'loss ')]
                rows.append([rate, name, f'1/{1 / delta:g}', *distances, *gaps])
            reporting.band(panel, 1 / np.array(DELTAS), ratios, name, color=color, marker='.')
        panel.set(title=f'η = {rate}', xlabel='1/δ', ylabel='‖x - x̃‖ / ‖y - ỹ‖', ylim=(0.6, 1.1))
        panel.set_xscale('log', base=2)
        panel.axhline(1, color=reporting.BOUND, linewidth=0.8)
        panel.legend()
    for delta in DELTAS:
        t, x, y = saddle(delta)
        axes[2].plot(t, x, label=f'x, δ = 1/{1 / delta:g}')
        tail = slice(len(t) // 10, None)
        slopes = [np.polyfit(np.log(t[tail]), np.log(v[tail]), 1)[0] for v in (x, y)]
        print(f'saddle, δ = 1/{1 / delta:g}: x grows as T^{slopes[0]:.2f}, y as T^{slopes[1]:.2f}')
    axes[2].plot(t, y, color=reporting.BOUND, linestyle='--', label='y: T^(Lc)')
    axes[2].set(
        title='saddle, η = c/(t+1), Lc = 1', xscale='log', yscale='log', xlabel='T', ylabel='distance'
    )
    axes[2].legend(fontsize='small')
    header = ['η', 'setting', 'δ', '‖x - x̃‖', '‖y - ỹ‖', 'x - y', 'loss: x - y']
    setting = {'samples': SAMPLES, 'size': SIZE, 'hidden': HIDDEN, 'steps': STEPS}
    reporting.publish('stability', figure, header, rows, seeds=SEEDS, **setting)


if __name__ == '__main__':
    main()
