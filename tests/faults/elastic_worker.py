"""One process of the soak of `elastic.py`: a perceptron on digits, started by `def_jax.launch`.

    python tests/faults/elastic_worker.py FOLDER SEED STEPS MIN_WORKERS

Every step appends a line to FOLDER/steps-PROCESS.jsonl. Every 50 steps process 0 writes a checkpoint.
"""

import json
import os
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax
from def_jax import elastic

RATIO, RATE, BATCH, TRAINED, HIDDEN = 16, 0.1, 112, 1000, 256
CHECKPOINT_EVERY = 50


# Every death and return is a compilation in each process, and eight of them share the cores.
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def main() -> int:
    folder, seed, steps, least = Path(sys.argv[1]), *map(int, sys.argv[2:])
    elastic.initialize(heartbeat_seconds=10, cpu=True)
    process = jax.process_index()
    log = (folder / f'steps-{process}.jsonl').open('a')
    life = {'life': os.environ['JAX_COORDINATOR_ADDRESS'], 'pid': os.getpid()}

    def note(line: str) -> None:
        log.write(json.dumps(life | {'time': time.time(), 'note': line}) + '\n')
        log.flush()

    optimizer = def_jax.def_sgd(RATE, RATIO, 'workers', seed=seed)
    params, opt_state, step = restored(folder, seed, optimizer)
    team = elastic.Team(
        optimizer,
        params,
        opt_state,
        step=step,
        min_workers=least,
        patience=1 if least > 1 else 600,
        identity=f'{seed}',
        note=note,
    )
    with np.load(folder.parent / 'digits.npz') as data:
        images, labels = data['images'], data['labels']

    def batch(step: int, workers: list[int], num_workers: int):
        chance = np.random.default_rng([seed, step])
        index = chance.integers(TRAINED, size=BATCH // num_workers * num_workers)
        mine = index.reshape(num_workers, -1)[workers].ravel()
        return {'x': images[mine], 'y': labels[mine]}

    y_before = None
    while team.step < steps:
        (losses, y, y_after), step = team.run(train, batch), team.step
        line = {'time': time.time(), 'step': step, 'workers': team.num_workers, 'loss': float(losses.mean())}
        line['bits'] = zlib.crc32(
            np.concatenate([x.ravel() for x in jax.tree.leaves(team.local_params)]).tobytes()
        )
        if y_before is not None:
            line['moved'] = float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs(y, y_before))))
        y_before = y_after
        log.write(json.dumps(life | line) + '\n')
        log.flush()
        if team.step % CHECKPOINT_EVERY == 0:
            save(folder, team.step, team.fetch())
    (folder / f'end-{process}').write_text(json.dumps(test_loss(images, labels, y_after)))
    team.close()
    os._exit(0)  # JAX's own farewell waits for the dead


def pairs(one, other):
    return zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)


def train(dist, params, opt_state, batch):
    y = dist.output_params(params, opt_state)
    losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
    updates, opt_state = dist.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, (losses, y, dist.output_params(params, opt_state))


def loss_fn(params, batch):
    hidden = jax.nn.relu(batch['x'] @ params['in'] + params['bias'])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params['out'], batch['y']).mean()


def test_loss(images, labels, params) -> float:
    return float(loss_fn(jax.tree.map(jnp.asarray, params), {'x': images[TRAINED:], 'y': labels[TRAINED:]}))


def first(seed: int):
    chance = np.random.default_rng(seed)
    return {
        'in': (chance.normal(size=(64, HIDDEN)) / 8).astype(np.float32),
        'bias': np.zeros(HIDDEN, np.float32),
        'out': (chance.normal(size=(HIDDEN, 10)) / HIDDEN**0.5).astype(np.float32),
    }


def save(folder: Path, step: int, state) -> None:
    if jax.process_index() == 0:
        leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}
        np.savez(folder / 'partial.npz', step=step, **leaves)
        os.replace(folder / 'partial.npz', folder / 'checkpoint.npz')


def restored(folder: Path, seed: int, optimizer):
    params, path = first(seed), folder / 'checkpoint.npz'
    if not path.exists():
        return params, None, 0
    structure = jax.tree.structure((params, jax.eval_shape(optimizer.init, params)))
    with np.load(path) as saved:
        leaves = [saved[str(number)] for number in range(structure.num_leaves)]
        return *jax.tree.unflatten(structure, leaves), int(saved['step'])


if __name__ == '__main__':
    sys.exit(main())
