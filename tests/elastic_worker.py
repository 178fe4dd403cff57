"""One process of `test_elastic.py`: FOLDER ADDRESS COUNT INDEX [PLAN].

Minimises a quadratic, with a line a step in FOLDER/INDEX.jsonl, until FOLDER/stop is there. PLAN is seed=S,
least=WORKERS, shards=DEVICES, or die=WHERE:N: the process kills itself at the N-th step, look or trace of the
program, or while the first process writes the N-th checkpoint. With fail=N, what the process computed at the
N-th step is lost, as by a collective that fails for it alone.
"""

import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

import def_jax
from def_jax import elastic

folder, (address, count, index) = Path(sys.argv[1]), sys.argv[2:5]
plan = dict(part.split('=') for part in sys.argv[5:])
counts = {'step': 0, 'look': 0, 'trace': 0, 'write': 0, 'done': 0}


def passes(where):
    """Dies where the plan says so."""
    counts[where] += 1
    if plan.get('die') == f'{where}:{counts[where]}':
        os.kill(os.getpid(), signal.SIGKILL)


def write(**line):
    with (folder / f'{index}.jsonl').open('a') as file:
        file.write(json.dumps({'pid': os.getpid()} | line) + '\n')


def bits(tree):
    return zlib.crc32(b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(tree)))


def batch(step, workers, num_workers):
    passes('step')
    noise = np.random.default_rng([step, num_workers]).normal(size=(num_workers, 8))
    stop = np.full((len(workers), 1), (folder / 'stop').exists())
    return {'noise': noise[workers].astype(np.float32), 'stop': stop}


def train(dist, params, opt_state, batch):
    passes('trace')

    def loss_fn(params, batch):
        return jnp.sum((params['w'] - jnp.arange(8.0)) ** 2 + params['w'] * batch['noise'][0])

    y = dist.output_params(params, opt_state)
    _, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
    updates, opt_state = dist.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    y_after = dist.output_params(params, opt_state)
    return params, opt_state, (batch['stop'].any(), y['w'], y_after['w'])


def norm(dist, params, opt_state, batch):
    return optax.tree.norm(params)


def look_batch(step, workers, num_workers):
    passes('look')
    return ()


class Team(elastic.Team):
    def _computed(self, *arguments):
        done = super()._computed(*arguments)
        counts['done'] += done is not None
        if done is not None and plan.get('fail') == str(counts['done']):
            raise jax.errors.JaxRuntimeError('planned')
        return done


seconds, shards = int(os.environ.get('HEARTBEAT', 6)), int(plan.get('shards', 1))
elastic.initialize(address, int(count), int(index), local_devices=shards, heartbeat_seconds=seconds, cpu=True)
team = Team(
    def_jax.def_sgd(0.02, 4, 'workers', momentum=0.5, seed=int(plan.get('seed', 0))),
    {'w': np.zeros(8, np.float32)},
    shards=shards,
    param_specs=P(elastic.SHARD_AXIS),
    identity=plan.get('seed', '0'),
    min_workers=int(plan.get('least', 1)),
    patience=2,
    note=lambda line: write(note=line),
)
y_before, stops = None, False
try:
    while not stops:
        stops, y, y_after = team.run(train, batch)
        moved = None if y_before is None else float(np.abs(y - y_before).max())
        y_before = y_after
        write(step=team.step, workers=team.num_workers, bits=bits(team.local_params), moved=moved)
        if team.step % 10 == 0:
            write(looked=float(team.look(norm, look_batch)), at=team.step)
            saved = team.fetch()
            passes('write')
            if index == '0':
                np.savez(folder / 'checkpoint.npz', *jax.tree.leaves(saved), step=team.step)
        time.sleep(0.05)
except (elastic.GivenUpError, elastic.RefusedError, elastic.TooFewError) as error:
    write(error=type(error).__name__, text=str(error))
    os._exit(7)
write(end=team.changes)
team.close()
os._exit(0)
