"""What rounding takes of a message: of Gaussian numbers, and of the messages of a training run.

    python experiments/theory/rounding.py

The perceptron of without_batchnorm.py, 8 workers with 8 images each, trained by DEF-Q at 1/64 of the bytes.
Every 100th step's message is measured. The first rounding spares a worker's own chunk: D is its share of what
travels, and δ is that of a worker's message with it. The second rounds the mean of every chunk, of which the
worker that owns it keeps the loss K times: given is its share of the mean's squares.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import reporting
from without_batchnorm import TRAIN, initial, loss, trained

import def_jax
from def_jax import wires
from def_jax.ground.collectives import pmean
from def_jax.presets import block_ratio
from def_jax.wires import rounding

WORKERS, BATCH, STEPS, EVERY, SEEDS = 8, 8, 800, 100, 5
RATE, MOMENTUM, COMPRESSION, BITS = 0.1, 0.9, 64, (1, 2, 4, 8)


def square(tree):
    return optax.tree.norm(tree, squared=True)


def shares(pending, key, step, bits):
    """Of one worker's message in this step: D of the first rounding, D of the second, and R times δ."""
    ratio = block_ratio(COMPRESSION, bits)
    compressor = def_jax.random_block(ratio, order='shuffled', allocation='balanced')
    route = wires.Route.of(compressor.sizes(pending), 'workers', bits)
    selection = compressor(key, step, pending, route.layout)
    block = selection.take(pending)
    rest = route.exchange(block).rest
    chunk = jnp.arange(len(block)) // (len(block) // WORKERS)
    own = chunk == jax.lax.axis_index('workers')  # exact at first; its rest is what the second rounding takes
    lost, again = jnp.where(own, 0, rest), jnp.where(own, rest, 0)
    first = square(lost) / square(jnp.where(own, 0, block))
    sent, kept = pmean((block - lost, square(again)), 'workers')
    left = square(selection.replace(pending, lost)) / square(pending)
    return jnp.stack([first, kept / (WORKERS * square(sent)), ratio * (1 - left)])


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.vmap, in_axes=(0, None))
def course(seed, bits):
    """The shares of Gaussian numbers, and of the messages at every record, [seeds, 1 + records, 3]."""
    optimizer = def_jax.def_sgd(RATE, COMPRESSION, 'workers', momentum=MOMENTUM, bits=bits, seed=seed)
    keys = jax.random.split(jax.random.key(seed), 3)
    of_workers = functools.partial(jax.vmap, axis_name='workers')

    def of_step(params, opt_state, chosen):
        grads = jax.grad(loss)(def_jax.detached_params(params, opt_state), TRAIN[0][chosen], TRAIN[1][chosen])
        pending = jax.tree.map(lambda r, g: r - RATE / (1 - MOMENTUM) * g, opt_state.residual, grads)
        return shares(pending, opt_state.key, opt_state.step, bits)

    def stretch(state, chosen):
        state = trained(optimizer, state, chosen[:-1])
        found = of_workers(of_step)(*state, chosen[-1])
        return trained(optimizer, state, chosen[-1:]), found.mean(0)

    def first(_):
        params = initial(keys[0])
        return params, optimizer.init(params)

    def gaussian(key):
        params = initial(keys[0])
        state = optimizer.init(params)
        return shares(optax.tree.random_like(key, params), state.key, state.step, bits)

    noise = of_workers(gaussian)(jax.random.split(keys[2], WORKERS)).mean(0)
    chosen = jax.random.randint(keys[1], (STEPS // EVERY, EVERY, WORKERS, BATCH), 0, len(TRAIN[0]))
    _, found = jax.lax.scan(stretch, jax.vmap(first)(jnp.arange(WORKERS)), chosen)
    return jnp.concatenate([noise[None], found])


def main():
    figure, (panel,) = reporting.panels(1)
    rows = []
    for bits in BITS:
        found = np.asarray(course(jnp.arange(SEEDS), bits))
        theory = rounding.loss(bits)
        for name, part in (('Gaussian', found[:, 0]), ('messages', found[:, 1:].mean(1))):
            columns = map(reporting.mean_std, part.T)
            contraction = 1 - theory * (WORKERS - 1) / WORKERS
            rows.append([str(bits), name, f'{theory:.3g}', *columns, f'{contraction:.3g}'])
        steps = np.arange(EVERY, STEPS + 1, EVERY)
        name = f'{bits} bit{"s" if bits > 1 else ""}'
        reporting.band(panel, steps, np.log10(found[:, 1:, 0].T / theory), name)
    panel.set(xlabel='step', ylabel='log₁₀ (D of messages / D_b)')
    panel.legend(ncols=len(BITS), loc='lower center', bbox_to_anchor=(0.5, 1))
    header = ['bits', 'of', 'D_b', 'D', 'D of the second rounding', 'R·δ', 'R·δ(b)']
    setting = {'workers': WORKERS, 'compression': COMPRESSION, 'learning_rate': RATE, 'steps': STEPS}
    reporting.publish('rounding', figure, header, rows, seeds=SEEDS, **setting)


if __name__ == '__main__':
    main()
