"""What the optimizer stage costs in memory, read from compiled programs; the benchmarks measure its time."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
import pytest

import def_jax
from benchmarks import hlo, timing
from benchmarks.optimizers import update

pytestmark = pytest.mark.usefixtures('full_optimization')

# As many tensors as a network has; of a few, see test_hlo.py.
SHAPES = [(128, 128)] * 8
MODEL_BYTES = 4 * sum(math.prod(shape) for shape in SHAPES)
LARGE = math.prod(SHAPES[0])  # elements
SMALL_CHANGE = MODEL_BYTES // 8  # blocks of 1/64, several times, and scalars


def make_params():
    return [jnp.full(shape, 0.01, jnp.float32) for shape in SHAPES]


def loss_fn(params, batch):
    return jnp.mean(functools.reduce(lambda x, w: jnp.tanh(x @ w), params, batch) ** 2)


def momentum_sgd():
    return optax.sgd(0.1, momentum=0.9)


def def_chain(axis_name=None, **options):
    return optax.chain(momentum_sgd(), def_jax.error_feedback(def_jax.random_block(64), axis_name, **options))


def make_step(optimizer, *, detaches):
    """A whole step: the gradient at the detached point, or at x."""

    def step(params, opt_state, batch):
        point = def_jax.detached_params(params, opt_state) if detaches else params
        return update(optimizer, params, opt_state, jax.grad(loss_fn)(point, batch))

    return step


@functools.cache
def compiled_step(*, detaches):
    """Of DEF at the detached point, or of momentum SGD at x."""
    optimizer, params = def_chain() if detaches else momentum_sgd(), make_params()
    return timing.compiled(
        make_step(optimizer, detaches=detaches),
        params,
        optimizer.init(params),
        jnp.ones((1, SHAPES[0][0])),
        donate=[0, 1],
    )


def compile_stage(optimizer):
    params = make_params()
    return timing.compiled(
        functools.partial(update, optimizer), params, optimizer.init(params), params, donate=[0, 1]
    )


def copies(program, smallest):
    """How many tensors of at least so many elements it copies."""
    return sum(hlo.copies(program.as_text(), smallest=4 * smallest).values())


def memory(program):
    """Bytes of all that a program is given, returns and needs; what is updated in place counts once."""
    analysis = program.memory_analysis()
    given, returned = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    return given + returned - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes


@pytest.mark.parametrize('options', [{}, {'skip_nonfinite': True, 'detach': 'auto'}], ids=str)
def test_stage_writes_nothing_of_the_size_of_the_model(options):
    program = compile_stage(def_chain(**options))
    assert copies(program, LARGE) == 0
    assert program.memory_analysis().temp_size_in_bytes < SMALL_CHANGE
    assert memory(program) - memory(compile_stage(momentum_sgd())) < MODEL_BYTES + SMALL_CHANGE  # a residual


def test_balanced_blocks_are_updated_in_place():
    params = {f'w{i}': jnp.full((256, 144), 0.01) for i in range(8)}
    params |= {f'v{i}': jnp.full((48, 96), 0.01) for i in range(8)} | {'b': jnp.zeros(96)}
    compressor = def_jax.random_block(64, allocation='balanced')
    optimizer = optax.chain(momentum_sgd(), def_jax.error_feedback(compressor, None))
    stage = functools.partial(update, optimizer)
    program = timing.compiled(stage, params, optimizer.init(params), params, donate=[0, 1])
    assert copies(program, 48 * 96) == 0
    model_bytes = 4 * sum(leaf.size for leaf in params.values())
    assert program.memory_analysis().temp_size_in_bytes < model_bytes // 8


def test_step_with_the_detached_point_copies_no_tensor():
    assert copies(compiled_step(detaches=True), LARGE) == 0


def test_step_needs_one_residual_and_one_point_more_than_momentum_sgd():
    more = memory(compiled_step(detaches=True)) - memory(compiled_step(detaches=False))
    assert MODEL_BYTES <= more <= 2 * MODEL_BYTES + SMALL_CHANGE


def test_state_is_updated_in_place():
    """Parameters, momentum and residual share their memory with what is returned, and are gone after it."""
    program, params = compiled_step(detaches=True), make_params()
    assert program.memory_analysis().alias_size_in_bytes >= 3 * MODEL_BYTES
    state = params, def_chain().init(params)
    places = sorted(x.unsafe_buffer_pointer() for x in jax.tree.leaves(state) if x.size == LARGE)
    new_state = program(*state, jnp.ones((1, SHAPES[0][0])))
    assert all(x.is_deleted() for x in jax.tree.leaves(state) if x.size == LARGE)
    assert sorted(x.unsafe_buffer_pointer() for x in jax.tree.leaves(new_state) if x.size == LARGE) == places


def test_point_is_written_over_the_last_one():
    """The benchmark of the stage with its point includes no allocation of a model's size."""
    stage = timing.stage_with_point(def_chain(), make_params(), make_params())
    detach, update = (program.memory_analysis() for program in stage.programs)
    assert detach.alias_size_in_bytes >= MODEL_BYTES and update.alias_size_in_bytes >= 3 * MODEL_BYTES
    assert detach.temp_size_in_bytes + update.temp_size_in_bytes < SMALL_CHANGE
    stage.run()
    assert stage.median > 0
