"""What a method's update costs beside momentum SGD's, in CPU time: for the league's page.

    python -m benchmarks.league.times --output=results/league

CPU time of all threads, so that other programs on the machine matter little: the least of some calls of one
update of 8 workers mapped by vmap, gradients given, of four matrices of 512 · 512 and their biases. What a
gathered message costs to unpack, from all 8 workers, is in it; the network is not.
"""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks.league.contenders import CONTENDERS, WORKERS, Contender

SHAPES = {f'{name}{i}': shape for i in range(4) for name, shape in (('w', (512, 512)), ('b', (512,)))}
CALLS = 10


def cpu_seconds(contender: Contender) -> float:
    """The least CPU time of one update, parameters included, in its steady state."""
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    optimizer = contender.optimizer(0.1)

    def step(state, params, grads):
        updates, state = optimizer.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    rng = np.random.default_rng(0)
    grads = {name: jnp.asarray(rng.normal(size=(WORKERS, *s)), jnp.float32) for name, s in SHAPES.items()}
    stacked = jax.vmap(lambda _: (optimizer.init(params), params))(jnp.arange(WORKERS))
    mapped = jax.jit(jax.vmap(step, axis_name='workers'), donate_argnums=(0, 1))
    state, params = jax.block_until_ready(mapped(*stacked, grads))
    found = []
    for _ in range(CALLS):
        start = time.process_time()
        state, params = jax.block_until_ready(mapped(state, params, grads))
        found.append(time.process_time() - start)
    return min(found)


def main(_) -> None:
    times = {}
    for contender in CONTENDERS:
        if contender.method == 'onebit_adam':
            contender = contender._replace(options={'freeze_after': 1})
        if contender.options.get('every', 1) > 1 and contender.method != 'cser':
            contender = contender._replace(options={})  # a step that sends
        name = f'{contender.title} at {contender.ratio:g}'
        times[name] = cpu_seconds(contender)
        jax.clear_caches()
        print(name, times[name], file=sys.stderr, flush=True)
    sgd = times['SGD at 1']
    found = {
        'milliseconds of SGD': round(1000 * sgd, 2),
        'over SGD': {name: round(seconds / sgd, 2) for name, seconds in times.items()},
    }
    path = Path(flags.FLAGS.output) / 'times.json'
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/league', 'Folder of times.json.')
    app.run(main)
