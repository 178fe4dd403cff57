"""One process of `elastic.py` or of `tests/test_elastic.py`: a perceptron on FOLDER/../digits.npz.

    python benchmarks/reliability/elastic_worker.py FOLDER [KEY=VALUE ...]

`def_jax.launch` sets its place among the others. It writes a line a step to FOLDER/PROCESS.jsonl, and process
0 a checkpoint every `checkpoint` steps, until `steps` are made or FOLDER/stop is there. With `kind=restart`,
`def_jax.spmd` maps over all processes, and all end when one dies.

With `die=WHERE:N` the process kills itself at the N-th step, look or trace of the program, or while the first
process writes the N-th checkpoint; with `freeze=WHERE:N` it stops there until SIGCONT. With `fail=N`, what it
first computed at step N is lost, as by a collective that fails for it alone. With `flip=N`, its parameters
change in step N, as by who changes what it receives; with 0, in what it is given as it joins. With `late=N`
it comes to the end of step N's meeting only when FOLDER/go is there. With too few workers, its patience is
over when FOLDER/tired-PROCESS is there. With `relay=HOW` it puts a relay between the processes, see
`relay.py`. The other keys are in `PLAN`.
"""

import functools
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
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import def_jax
from benchmarks import compiling
from benchmarks.reliability import relay
from def_jax import elastic
from def_jax.elastic import service, transfer
from def_jax.elastic.service import LAUNCHED

RATIO, RATE, BATCH, TRAINED, HIDDEN = 16, 0.1, 112, 1000, 256
PLAN = {
    **{'kind': 'elastic', 'seed': 0, 'steps': 10**9, 'shards': 1, 'least': 1, 'patience': 600.0},
    **{'checkpoint': 50, 'look': 0},  # every so many steps; 0 for never
    **{'heartbeat': 10, 'pause': 0.0},  # seconds: of silence before a death, after each step
    **{'die': '', 'freeze': '', 'fail': 0, 'late': 0, 'relay': ''},
    'answer': 30,  # seconds within which those who meet answer each other
    # What a process has that the others have not: a dtype; parameters that change.
    **{'dtype': 'float32', 'flip': -1},
}
FOLDER, ADDRESS = Path(sys.argv[1]), os.environ[LAUNCHED[0]]
COUNT, INDEX = (int(os.environ[name]) for name in LAUNCHED[1:])
counts = {'step': 0, 'look': 0, 'trace': 0, 'write': 0, 'fail': 0}

# Every death and return is a compilation in each process, and they share the cores.
_GIVEN = [flag for flag in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in flag]
_UNOPTIMIZED = '--xla_backend_optimization_level=0', '--xla_llvm_disable_expensive_passes=true'
os.environ['XLA_FLAGS'] = ' '.join([*_GIVEN, *compiling.FLAGS, *_UNOPTIMIZED])

plan = PLAN | {
    key: type(PLAN[key])(value) for key, value in (argument.split('=') for argument in sys.argv[2:])
}


def main() -> int:
    team = joined()
    with np.load(FOLDER.parent / 'digits.npz') as data:
        images, labels = data['images'], data['labels']

    def batch(step: int, workers: list[int], num_workers: int):
        passes('step')
        chance = np.random.default_rng([plan['seed'], step])
        index = chance.integers(TRAINED, size=BATCH // num_workers * num_workers)
        mine = index.reshape(num_workers, -1)[workers].ravel()
        ends = step + 1 >= plan['steps'] or (FOLDER / 'stop').exists()
        return {'x': images[mine], 'y': labels[mine], 'ends': np.full((len(workers), 1), ends)}

    between = relay.Relay(plan['relay']) if plan['relay'] else None
    y_before, ends = None, False
    try:
        while not ends:
            losses, ends, y, y_after = team.run(train, batch)
            line = {'step': team.step, 'workers': team.num_workers, 'loss': float(losses.mean())}
            line['bits'] = zlib.crc32(b''.join(x.tobytes() for x in jax.tree.leaves(team.local_params)))
            if y_before is not None:
                moved = jax.tree.leaves(jax.tree.map(np.subtract, y, y_before))
                line['moved'] = float(np.sqrt(sum((x**2).sum() for x in moved)))
            y_before = y_after
            write(**line, **({'changed': between.changed} if between else {}))
            if plan['look'] and team.step % plan['look'] == 0:
                write(looked=float(team.look(norm, look_batch)), at=team.step)
            due = plan['checkpoint'] and team.step % plan['checkpoint'] == 0
            if due and not ends:  # who restarts has a step to make
                save(team.step, team.fetch())
            time.sleep(plan['pause'])
    except (elastic.GivenUpError, elastic.RefusedError, elastic.TooFewError) as error:
        write(error=type(error).__name__, text=str(error))
        os._exit(7)
    write(end=team.changes, test_loss=test_loss(images, labels, y_after))
    team.close()
    os._exit(0)  # JAX's own farewell waits for the dead


def joined():
    """The team, from the last checkpoint if there is one."""
    blocks = def_jax.random_block(RATIO, order='shuffled', allocation='balanced')
    optimizer = def_jax.error_feedback(blocks, 'workers', inner=optax.sgd(RATE), seed=plan['seed'])
    if plan['kind'] == 'restart':
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(ADDRESS, COUNT, INDEX, heartbeat_timeout_seconds=plan['heartbeat'])
        return Fixed(optimizer, *restored(optimizer))
    service._ANSWER_SECONDS = plan['answer']
    elastic.initialize(heartbeat_seconds=plan['heartbeat'], local_devices=plan['shards'], cpu=True)
    write(connected=True)
    params, opt_state, step = restored(optimizer)
    params['out'] = params['out'].astype(jnp.dtype(plan['dtype']))
    team = Team(
        optimizer,
        params,
        opt_state,
        step=step,
        shards=plan['shards'],
        param_specs=P(elastic.SHARD_AXIS) if plan['shards'] > 1 else P(),
        identity=str(plan['seed']),
        min_workers=plan['least'],
        patience=plan['patience'],
        note=lambda line: write(note=line),
    )
    if plan['flip'] == 0:
        team._places = Damaged(*team._places)
    return team


class Damaged(transfer.Places):
    """Where a newcomer's parameters arrive damaged."""

    def giving(self, group):
        give = super().giving(group)

        def damaged(*arguments):
            params, opt_state = give(*arguments)
            return params | {'out': params['out'].at[3, 5].add(1e-3)}, opt_state

        return damaged


class Team(elastic.Team):
    """A team in which a step may fail for this process, or change what it alone has."""

    def _computed(self, joined, function, data, trains):
        done = super()._computed(joined, function, data, trains)
        step = joined.step + 1 if trains and done is not None else None  # the same when it is repeated
        if step == plan['flip']:
            (params, opt_state), results = done
            x = params['out']
            parts = [jax.device_put(shard.data + 1e-3, shard.device) for shard in x.addressable_shards]
            x = jax.make_array_from_single_device_arrays(x.shape, x.sharding, parts)
            done = (params | {'out': x}, opt_state), results
        if step == plan['fail'] and not counts['fail']:
            counts['fail'] += 1
            raise jax.errors.JaxRuntimeError('planned')
        if step == plan['late']:
            write(late=True)
            while not (FOLDER / 'go').exists():
                time.sleep(0.05)
        return done

    def _gives_up(self, group, waited):
        return super()._gives_up(group, waited or (FOLDER / f'tired-{INDEX}').exists())


class Fixed:
    """A worker on each process, all of which are needed; its methods are those of `elastic.Team`."""

    def __init__(self, optimizer, params, opt_state, step):
        self.step, self.num_workers, self.changes = step, jax.process_count(), []
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


def passes(where: str) -> None:
    """Dies, or stops, where the plan says so."""
    counts[where] += 1
    for key, number in (('die', signal.SIGKILL), ('freeze', signal.SIGSTOP)):
        if plan[key] == f'{where}:{counts[where]}':
            os.kill(os.getpid(), number)


def write(**line) -> None:
    with (FOLDER / f'{INDEX}.jsonl').open('a') as file:
        file.write(json.dumps({'life': ADDRESS, 'pid': os.getpid(), 'time': time.time()} | line) + '\n')


def train(dist, params, opt_state, batch):
    passes('trace')
    y = dist.output_params(params, opt_state)
    losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
    updates, opt_state = dist.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return params, opt_state, (losses, batch['ends'].any(), y, dist.output_params(params, opt_state))


def norm(dist, params, opt_state, batch):
    return optax.tree.norm(params)


def look_batch(step, workers, num_workers):
    passes('look')
    return ()


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


def save(step: int, state) -> None:
    passes('write')
    if INDEX == 0:
        leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(state))}
        np.savez(FOLDER / 'partial.npz', step=step, **leaves)
        os.replace(FOLDER / 'partial.npz', FOLDER / 'checkpoint.npz')


def restored(optimizer):
    params, path = first(plan['seed']), FOLDER / 'checkpoint.npz'
    if not path.exists():
        return params, None, 0
    structure = jax.tree.structure((params, jax.eval_shape(optimizer.init, params)))
    with np.load(path) as saved:
        leaves = [saved[str(number)] for number in range(structure.num_leaves)]
        return *jax.tree.unflatten(structure, leaves), int(saved['step'])


if __name__ == '__main__':
    sys.exit(main())
