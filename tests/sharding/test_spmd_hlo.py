"""What the compiled step of workers of several devices communicates and copies, read from its HLO."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from hlo import copies_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sharded_workers import mesh_of

import def_jax
from def_jax.traffic.hlo import collectives

SPECS = {'in': P('shard'), 'out': P(None, 'shard'), 'bias': P()}
SHAPES = {'in': (256, 128), 'out': (128, 256), 'bias': (128,)}
SHARD, BIAS, RATIO = 256 * 128 // 4, 128, 16  # elements that a device holds of each matrix, and of the bias
WORKERS, MESH = [0, 0, 0, 0, 1, 1, 1, 1], mesh_of(2, 4)


def shapes_of(tree, specs):
    def shape(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(MESH, spec))

    return jax.tree.map(shape, tree, specs)


def make_params():
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch @ params['in'] + params['bias']) @ params['out']) ** 2)


BATCH = shapes_of(jnp.ones((16, 256)), P(('workers', 'shard')))


def compile_loop(inner, with_gradient=True, **options):
    """A whole step, or the update alone with gradients as its arguments."""
    optimizer = def_jax.error_feedback(def_jax.random_block(RATIO), 'workers', inner=inner, **options)
    dist = def_jax.spmd(optimizer, MESH, SPECS)

    def step(params, state, data):
        grads = dist.value_and_grad(loss_fn)(params, state, data)[1] if with_gradient else data
        updates, state = dist.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    stacked = {name: jnp.ones((2, *shape)) for name, shape in SHAPES.items()}
    grads = shapes_of(stacked, {name: P('workers', *spec) for name, spec in SPECS.items()})
    state, data = dist.abstract_state(make_params()), BATCH if with_gradient else grads
    arguments = shapes_of(make_params(), SPECS), state, data
    return jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()


def compile_plain(inner):
    """FSDP over the same mesh with the dense gradient: the loop to which nothing was added."""

    def step(params, state, batch):
        updates, state = inner.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(inner.init, make_params())
    specs = optax.tree_map_params(inner, lambda _, s: s, state, SPECS, transform_non_params=lambda _: P())
    arguments = shapes_of(make_params(), SPECS), shapes_of(state, specs), BATCH
    return jax.jit(step).lower(*arguments).compile()


def split(compiled):
    """The collectives between workers, and those within."""
    found = collectives(compiled.as_text())
    return [c for c in found if c.crosses(WORKERS)], [c for c in found if not c.crosses(WORKERS)]


# Each of a worker's four devices sends a quarter of the bias's block, which they then gather.
MESSAGE = 2 * SHARD // RATIO + BIAS // RATIO // 4
MOMENTUM = optax.sgd(0.1, momentum=0.9)


def assert_the_message_alone_crosses(compiled, extra=0):
    """The block of a device's shards, sent to the device at the same place in the other worker."""
    between, within = split(compiled)
    assert [(c.operation, c.elements) for c in between] == [('all-reduce', MESSAGE + extra)]
    assert sorted(map(sorted, between[0].groups)) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    return within


def test_only_blocks_cross_and_no_more_is_gathered_than_by_plain_fsdp():
    within = assert_the_message_alone_crosses(compile_loop(MOMENTUM))
    plain = collectives(compile_plain(MOMENTUM).as_text())
    gathered, plainly = (
        sorted(c.elements for c in found if c.operation == 'all-gather') for found in (within, plain)
    )
    assert gathered == sorted([*plainly, BIAS // RATIO]) and max(gathered) == math.prod(SHAPES['in'])
    dense = [c for c in plain if c.crosses(WORKERS)]
    assert sum(c.elements for c in dense) >= 2 * SHARD + BIAS  # what the message replaces


@pytest.mark.usefixtures('full_optimization')
@pytest.mark.parametrize(
    ('inner', 'options'),
    [
        (MOMENTUM, {'detach': 'auto'}),
        pytest.param(MOMENTUM, {'decay': 0.99}, marks=pytest.mark.slow),
        pytest.param(
            MOMENTUM, {'outer': optax.sgd(0.7, momentum=0.9, nesterov=True)}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_update_copies_nothing_and_gathers_nothing(inner, options):
    compiled = compile_loop(inner, with_gradient=False, **options)
    energies = 1 if 'detach' in options else 0  # at the end of the message
    within = assert_the_message_alone_crosses(compiled, energies)
    # Both of λ's, summed over a worker, and the bias's block.
    assert sum(c.elements for c in within) == 2 * energies + BIAS // RATIO
    assert copies_of(compiled, SHARD // 2) == 0
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2 * SHARD * 0.25
