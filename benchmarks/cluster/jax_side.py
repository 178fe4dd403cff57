"""What the JAX workers of all jobs share: start and end of a process, its arrays, compiled variants."""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.cluster import timing
from def_jax.traffic.hlo import Collective, collectives

__all__ = [
    'AXIS',
    'Variant',
    'finish',
    'meet',
    'mlp',
    'mlp_params',
    'on_workers',
    'place',
    'start',
    'wire_bytes',
]

AXIS = 'workers'
PyTree = Any


def start(job: dict[str, Any]) -> None:
    """Connects this process to the other workers by gloo.

    `devices` of the job is how many CPU devices it has, by default one, and `threads` how many threads XLA
    has in it, by default one for each of its cores.
    """
    jax.config.update('jax_num_cpu_devices', job.get('devices', 1))
    if job.get('threads'):
        os.environ['NPROC'] = str(job['threads'])
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(job['address'], job['num_workers'], job['worker'])


def finish(job: dict[str, Any], params: PyTree, report: dict[str, Any]) -> None:
    """Writes this process's report, and how many parameters the model has; then disconnects."""
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    timing.write_report(job, report | {'params': count, 'version': jax.__version__})
    jax.distributed.shutdown()


def on_workers(function: Callable, *, donate: bool = True) -> Any:
    """A jitted function of all workers, each with its own arrays; it donates its first argument.

    To the program these are copies of one replicated array, which it never compares. Stacked over workers
    instead, they would be copied into and out of the step.
    """
    mesh = Mesh(jax.devices(), (AXIS,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


def place(tree: PyTree) -> PyTree:
    """This process's arrays, the same on all of its devices, as `on_workers` expects them."""
    sharding = NamedSharding(Mesh(jax.devices(), (AXIS,)), P())

    def put(x):
        x = jnp.array(x)  # variants donate their states, so they must not share arrays
        copies = [jax.device_put(x, device) for device in jax.local_devices()]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(put, tree)


def meet() -> Callable[[], None]:
    """A barrier: a function that returns when all workers have called it."""
    sharding, total = NamedSharding(Mesh(jax.devices(), ('all',)), P('all')), jax.jit(jnp.sum)
    ones = jax.make_array_from_callback((jax.device_count(),), sharding, lambda index: np.ones(1, np.float32))

    def barrier():
        jax.block_until_ready(total(ones))

    barrier()  # the first collective connects all devices, for which gloo gives them 30 seconds
    return barrier


class Variant:
    """A compiled step (state, batch) -> state, the state that it carries, and what its program sends."""

    def __init__(self, step: Any, state: PyTree, batch: PyTree):
        self._state, self._batch = state, batch
        self.program = step.lower(state, batch).compile()

    def __call__(self) -> None:
        self._state = self.program(self._state, self._batch)
        jax.block_until_ready(self._state)

    def sent(self) -> list[Collective]:
        return collectives(self.program.as_text())


def wire_bytes(sent: Sequence[Collective], workers: int) -> float:
    """Bytes that each worker sends for these collectives, by rings."""
    others = workers - 1
    shares = {'all-reduce': 2 * others / workers, 'all-gather': others, 'collective-permute': 1}
    return sum(c.passed(workers).bytes * shares.get(c.operation, others / workers) for c in sent)


def mlp_params(key: jax.Array, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Weights of variance 2 / inputs, and biases of zero."""
    pairs = list(itertools.pairwise(sizes))
    return [
        {'w': jax.random.normal(k, pair) * (2 / pair[0]) ** 0.5, 'b': jnp.zeros(pair[1])}
        for k, pair in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
    ]


def mlp(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Layers with ReLU between them; x is [B, inputs]."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer['w'] + layer['b'])
    return x @ params[-1]['w'] + params[-1]['b']
