"""What the compiled step communicates and copies, read from its optimized HLO."""

import math
import re

import hlo
import jax
import jax.numpy as jnp
import optax
import pytest

import def_jax

optimized = pytest.mark.usefixtures('full_optimization')


MESSAGE = def_jax.message_size(def_jax.random_block(64), hlo.make_params())


@pytest.mark.parametrize(('num_workers', 'ratio'), [(2, 3), (8, 64)])
def test_one_all_reduce_of_the_message(num_workers, ratio):
    """The gradient goes through the detached point, which adds no collective."""
    compressor = def_jax.random_block(ratio)
    size = def_jax.message_size(compressor, hlo.make_params())
    assert size == pytest.approx(hlo.MODEL_SIZE / ratio, rel=0.02)
    program = hlo.compile_step(def_jax.error_feedback(compressor, 'workers'), num_workers)
    assert hlo.all_reduces(program) == [size]


@pytest.mark.parametrize(
    ('options', 'always', 'sometimes'),
    [
        ({'skip_nonfinite': True}, [MESSAGE], []),  # NaN travels in the message
        ({'detach': 'auto'}, [MESSAGE + 1], []),  # an energy at its end
        ({'every': 4}, [], [MESSAGE]),
        ({'average_every': 10}, [MESSAGE], [hlo.MODEL_SIZE]),  # SAEF's residual
    ],
    ids=str,
)
def test_what_a_step_all_reduces_and_what_in_a_branch_alone(options, always, sometimes):
    program = hlo.compile_step(hlo.feedback(**options), momentum=None)
    assert sorted(hlo.all_reduces(program)) == always + sometimes
    assert hlo.all_reduces(hlo.at_every_step(program)) == always


def test_the_output_is_one_dense_all_reduce():
    def read(params, state, _):
        return def_jax.output_params(params, state, 'workers')

    program = hlo.compile_pmapped(hlo.feedback(), read, 4, jnp.ones(1))
    assert hlo.all_reduces(program.as_text()) == [hlo.MODEL_SIZE]


def compile_stage(compressor, params, num_workers=None, momentum=0.9, **options):
    """SGD and error feedback, gradients given: on one worker, or under pmap."""
    inner, axis_name = optax.sgd(0.1, momentum=momentum), 'workers' if num_workers else None
    optimizer = def_jax.error_feedback(compressor, axis_name, inner=inner, **options)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    if num_workers:
        return hlo.compile_pmapped(optimizer, step, num_workers, params, donate=(0, 1))
    return jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params).compile()


# Momentum, and options of the last link: each has its own reasons for a copy.
VARIANTS = {
    'plain': (0.9, {}),
    'auto': (None, {'detach': 'auto'}),
    '2 bits': (0.9, {'bits': 2}),
    'skipping': (None, {'skip_nonfinite': True}),  # to hold a momentum takes a second one in memory
    'outer': (None, {'outer': optax.sgd(0.3, momentum=0.8, nesterov=True)}),
    'every': (0.9, {'every': 4}),
    'overlap': (0.9, {'overlap': True}),
}


@optimized
@pytest.mark.parametrize(
    ('variant', 'num_workers'), [*((variant, 2) for variant in VARIANTS), ('skipping', None), ('every', None)]
)
def test_update_happens_in_place(variant, num_workers):
    """The gradients are arguments: what is counted belongs to the optimizer, not to the backward pass."""
    momentum, options = VARIANTS[variant]
    compiled = compile_stage(
        def_jax.random_block(64), hlo.make_params(), num_workers, momentum=momentum, **options
    )
    # A choice by a scalar copies both large leaves, with the axis of workers that pmap adds.
    copies = 2 if variant == 'skipping' and num_workers else 0
    assert hlo.copies_of(compiled, hlo.LARGE) == copies
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 4 * hlo.MODEL_SIZE * (0.25 + (copies > 0))
    donated = 2 if momentum is None else 3  # parameters, residual, momentum
    assert memory.alias_size_in_bytes >= donated * 4 * hlo.MODEL_SIZE


@optimized
@pytest.mark.parametrize('variant', ['plain', 'auto', 'every', 'overlap'])
def test_a_step_with_the_detached_point_copies_nothing(variant):
    """The residual is read twice, by the point and by the update, and overwritten in place all the same.

    Not under pmap: the workers' axis that it adds to each argument makes XLA copy the momentum of SGD, too.
    """
    momentum, options = VARIANTS[variant]
    optimizer, step = hlo.with_gradient(hlo.feedback(**options), momentum=momentum)
    arguments = jax.eval_shape(lambda: (hlo.make_params(), optimizer.init(hlo.make_params()), hlo.BATCH))
    compiled = hlo.compile_sharded(step, *arguments, donate=(0, 1))
    assert hlo.copies_of(compiled, hlo.LARGE) == 0
    gradients = hlo.MODEL_SIZE
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (gradients + 0.25 * hlo.MODEL_SIZE)


@optimized
@pytest.mark.parametrize('options', [{}, {'detach': 'auto'}, {'skip_nonfinite': True}])
def test_the_gradient_waits_for_no_memory_of_a_message_in_flight(options):
    """XLA for CPUs gives memory that is free in its schedule to what comes next, which then waits for it."""
    optimizer = optax.chain(optax.sgd(0.1), hlo.feedback(overlap=True, **options))

    def loss_fn(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    def step(params, state, batch):
        grads = jax.grad(loss_fn)(def_jax.detached_params(params, state), batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    layers = [jnp.ones((64, 64))] * 8  # so many that the message is sent before the gradient ends
    compiled = hlo.compile_sharded(step, layers, optimizer.init(layers), jnp.ones((4, 64)))
    steps = list(hlo.schedule(compiled))
    (sent,) = [i for i, (name, *_) in enumerate(steps) if name.startswith('psum')]
    (message,) = [operand for operand in steps[sent][1] if not operand.startswith('region')]
    last = max(i for i, (_, _, origin) in enumerate(steps) if 'jvp' in origin)
    for array, begin in ((message, last), (steps[sent][0], 0)):
        uses = [i for i, (_, operands, _) in enumerate(steps) if array in operands and i > begin]
        assert uses and min(uses) > last


@optimized
@pytest.mark.parametrize(
    ('compressor', 'messages'),  # how often its message fits into the program's temporary memory
    [
        *((def_jax.random_block(ratio), 2) for ratio in (37, 1000)),
        (def_jax.random_block(64, allocation='balanced'), 2),
        (def_jax.baselines.random_k(64), 4),
    ],
    ids=['37', '1000', 'balanced', 'elements'],
)
def test_any_selection_is_updated_in_place(compressor, messages):
    """Also where no box of 1 / ratio divides the tensor, so that its last tile is shorter."""
    shapes = {'dense': (250, 130), 'kernel': (3, 3, 50, 70), 'embedding': (1003, 77), 'bias': (70,)}
    params = {leaf: jnp.ones(shape) for leaf, shape in shapes.items()}
    compiled = compile_stage(compressor, params)
    model_size = sum(math.prod(shape) for shape in shapes.values())
    assert hlo.copies_of(compiled, 3 * 3 * 50 * 70) == 0
    memory = compiled.memory_analysis()
    message = def_jax.message_size(compressor, params)
    assert memory.temp_size_in_bytes < 4 * (0.05 * model_size + messages * message)
    assert memory.alias_size_in_bytes >= 3 * 4 * model_size


@optimized
def test_a_model_of_one_tensor_is_updated_in_place():
    """As with optax.flatten; its message is not made by a concatenation."""
    for ratio, shape, skipping in ((37, (250, 130), False), (64, (256, 128), True)):
        compiled = compile_stage(def_jax.random_block(ratio), jnp.ones(shape), skip_nonfinite=skipping)
        assert hlo.copies_of(compiled, math.prod(shape)) == 0


def kernels(hlo):
    """How many distinct fusions a program has."""
    hlo = re.sub(r', (?:metadata|backend_config|frontend_attributes)=.*', '', hlo)
    bodies = set()
    for body in re.split(r'\n(?=%|ENTRY)', hlo):
        if body.startswith(('%fused', '%wrapped')):
            names: dict[str, str] = {}
            numbered = re.sub(
                r'%[\w.\-]+|\bparam[\w.]+',
                lambda m, names=names: names.setdefault(m[0], f'v{len(names)}'),
                body,
            )
            bodies.add(numbered)
    return len(bodies)


@optimized
def test_leaves_of_one_shape_share_their_kernels():
    """XLA compiles equal kernels once, and nearly all of its time goes into kernels."""
    leaves = [jnp.ones((64, 48)), jnp.ones(48)]
    few, many = (
        kernels(compile_stage(def_jax.random_block(100), leaves * pairs).as_text()) for pairs in (6, 8)
    )
    assert many <= few
