"""One process of the soak of `elastic.py`: a perceptron on digits, started by `def_jax.launch`.

    python tests/faults/elastic_worker.py FOLDER SEED STEPS elastic|restart

Every step appends a line to FOLDER/steps-PROCESS.jsonl. Every 50 steps process 0 writes a checkpoint. With
`restart`, `def_jax.spmd` maps over all processes, and all end when one dies.
"""

import functools
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
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from def_jax import elastic

RATIO, RATE, BATCH, TRAINED, HIDDEN = 16, 0.1, 112, 1000, 256
CHECKPOINT_EVERY, HEARTBEAT_SECONDS = 50, 10


# Every death and return is a compilation in each process, and eight of them share the cores.
os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def main() -> int:
    folder, seed, steps, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    place = [os.environ[f'JAX_{name}'] for name in ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID')]
    if kind == 'elastic':
        elastic.initialize(heartbeat_seconds=HEARTBEAT_SECONDS, cpu=True)
    else:
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(
            place[0], int(place[1]), int(place[2]), heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    process = jax.process_index()
    log = (folder / f'steps-{process}.jsonl').open('a')
    life = {'life': place[0], 'pid': os.getpid()}

    def note(line: str) -> None:
        log.write(json.dumps(life | {'time': time.time(), 'note': line}) + '\n')
        log.flush()

    optimizer = def_jax.def_sgd(RATE, RATIO, 'workers', seed=seed)
    params, opt_state, step = restored(folder, seed, optimizer)
    if kind == 'elastic':
        team = elastic.Team(optimizer, params, opt_state, step=step, identity=f'{seed}', note=note)
    else:
        team = Fixed(optimizer, params, opt_state, step)
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
        if team.step % CHECKPOINT_EVERY == 0 and team.step < steps:  # who restarts has a step to make
            save(folder, team.step, team.fetch())
    (folder / f'end-{process}').write_text(json.dumps(test_loss(images, labels, y_after)))
    team.close()
    os._exit(0)  # JAX's own farewell waits for the dead


class Fixed:
    """A worker on each process, all of which are needed; its methods are those of `elastic.Team`."""

    def __init__(self, optimizer, params, opt_state, step):
        self.step, self.num_workers = step, jax.process_count()
        self._mesh = jax.make_mesh((self.num_workers,), ('workers',))
        self._dist = def_jax.spmd(optimizer, self._mesh, P(), 'workers')
        params = jax.device_put(params, NamedSharding(self._mesh, P()))
        if opt_state is None:
            opt_state = self._dist.init(params)
        self._state = params, jax.device_put(opt_state, self._dist.state_shardings(params))
        self._whole = jax.jit(lambda x: x, out_shardings=NamedSharding(self._mesh, P()))
        self._train = jax.jit(functools.partial(train, self._dist))

    @property
    def local_params(self):
        return jax.tree.map(own_part, self._state[0])

    def run(self, _, batch):
        split = NamedSharding(self._mesh, P('workers'))
        own = batch(self.step, [jax.process_index()], self.num_workers)
        data = jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), own)
        *self._state, results = self._train(*self._state, data)
        self.step += 1
        return jax.tree.map(own_part, self._whole(results))

    def fetch(self):
        return jax.tree.map(own_part, self._whole(tuple(self._state)))

    def close(self):
        """Process 0 must outlive the others, as it holds the coordination service."""
        multihost_utils.sync_global_devices('end')


def own_part(x):
    return np.asarray(x.addressable_shards[0].data)


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
