"""Figure 3 on a network without BatchNorm: is x ahead of y before the learning rate drops?

    python experiments/theory/without_batchnorm.py

scikit-learn's digits, the first 1,000 images for training and the rest for testing, a perceptron with two
hidden layers and no normalisation, 16 workers with 8 images each, momentum 0.9, λ = 0.3, 1,960 steps, and
drops of the learning rate after a half and three quarters of them: the setting of figure3.py but for the
network, the split and augmentation, of which there is none.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting
from sklearn.datasets import load_digits

import def_jax

WORKERS, BATCH, STEPS, EVERY, SEEDS = 16, 8, 1960, 70, 10
SIZES = (64, 64, 64, 10)
RATIOS, RATES = (64, 256), (0.1, 0.02)
WINDOWS = {'40': (280, 280), '120': (840, 840), '280': (1960, 1960)}  # epochs of 7 steps
WINDOWS |= {'mean of 10 to 70': (70, 490), 'mean of 80 to 140': (560, 980)}

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = jnp.asarray((IMAGES - IMAGES[:1000].mean()) / IMAGES[:1000].std(), jnp.float32)
LABELS = jnp.asarray(LABELS)
TRAIN, TEST = (IMAGES[:1000], LABELS[:1000]), (IMAGES[1000:], LABELS[1000:])


def logits(params, images):
    for layer, (kernel, bias) in enumerate(params):
        images = images @ kernel + bias
        images = jax.nn.relu(images) if layer < len(params) - 1 else images
    return images


def loss(params, images, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def accuracy(params):
    return 100 * jnp.mean(logits(params, TEST[0]).argmax(-1) == TEST[1])


def initial(key):
    keys = jax.random.split(key, len(SIZES) - 1)
    shapes = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return [(jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n)) for k, m, n in shapes]


def trained(optimizer, state, chosen):
    """The workers' stacked parameters and states after steps on examples, int [steps, workers, batch]."""

    @functools.partial(jax.vmap, axis_name='workers')
    def step(state, chosen):
        params, opt_state = state
        point = def_jax.detached_params(params, opt_state)
        grads = jax.grad(loss)(point, TRAIN[0][chosen], TRAIN[1][chosen])
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.scan(lambda state, chosen: (step(state, chosen), None), state, chosen)[0]


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(0, None, None))
def course(seed, rate, ratio):
    """The test accuracy of x and y after every `EVERY` steps, [seeds, records, 2]."""
    drops = {STEPS // 2: 0.1, 3 * STEPS // 4: 0.1}
    schedule = optax.piecewise_constant_schedule(rate, drops)
    inner = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    blocks = def_jax.random_block(ratio)
    optimizer = def_jax.error_feedback(blocks, 'workers', inner=inner, seed=seed)
    keys = jax.random.split(jax.random.key(seed), 3)

    def init(_):
        params = initial(keys[0])
        return params, optimizer.init(params)

    def y_of(state):
        return def_jax.output_params(*state, axis_name='workers')

    y_of = jax.vmap(y_of, axis_name='workers')

    def stretch(state, chosen):
        state = trained(optimizer, state, chosen)
        x, y = (jax.tree.map(lambda leaf: leaf[0], params) for params in (state[0], y_of(state)))
        return state, jnp.stack([accuracy(x), accuracy(y)])

    shuffled = jax.vmap(lambda key: jax.random.permutation(key, 1000))(jax.random.split(keys[1], STEPS // 7))
    chosen = shuffled[:, : 7 * WORKERS * BATCH].reshape(STEPS // EVERY, EVERY, WORKERS, BATCH)
    return jax.lax.scan(stretch, jax.vmap(init)(jnp.arange(WORKERS)), chosen)[1]


def main():
    figure, axes = reporting.panels(len(RATIOS), sharey=True)
    steps, rows = list(range(EVERY, STEPS + 1, EVERY)), []
    for panel, ratio in zip(axes, RATIOS, strict=True):
        for rate, style in zip(RATES, ('-', '--'), strict=True):
            runs = np.asarray(course(jnp.arange(SEEDS), rate, ratio))
            x, y = runs[..., 0].T, runs[..., 1].T
            epochs = [step / 7 for step in steps]
            reporting.band(
                panel, epochs, 100 - x, f'x: DEF-A, η = {rate}', color=reporting.X, linestyle=style
            )
            reporting.band(panel, epochs, 100 - y, f'y: DEF, η = {rate}', color=reporting.Y, linestyle=style)
            for name, (first, last) in WINDOWS.items():
                at = slice(steps.index(first), steps.index(last) + 1)
                over = [values[at].mean(0) for values in (x, y)]
                difference = reporting.interval(over[0] - over[1])
                rows.append([str(ratio), str(rate), name, *map(reporting.mean_std, over), difference])
        panel.set(title=f'ratio {ratio}', xlabel='epoch', ylabel='test error, %', yscale='log')
        panel.legend()
    header = ['ratio', 'η', 'epoch', 'x', 'y', 'x - y']
    reporting.publish('without_batchnorm', figure, header, rows, seeds=SEEDS)


if __name__ == '__main__':
    main()
