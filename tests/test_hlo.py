"""What the compiled step communicates and copies, read from its optimized HLO."""

import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

import def_jax

# Powers of two, so that ratio 64 divides every large leaf; the bias and the scale send one element each.
SHAPES = {'dense': (256, 128), 'kernel': (4, 4, 32, 64), 'bias': (64,), 'scale': ()}
MODEL_SIZE = sum(math.prod(shape) for shape in SHAPES.values())
DATA = re.compile(r'(f32|bf16|f64)\[([\d,]*)\]')


def make_params():
    return {name: jnp.ones(shape) for name, shape in SHAPES.items()}


def sizes_of(result_type):
    """Elements of every floating-point array in the type of an HLO instruction."""
    return [math.prod(int(n) for n in dims.split(',') if n) for _, dims in DATA.findall(result_type)]


def results(hlo, operation):
    """For each instruction of that operation: the sizes of its floating-point results."""
    found = re.findall(rf'= (.*?) {operation}(?:-start)?\(', hlo)
    return [sizes_of(result_type) for result_type in found]


def loss_fn(params, batch):
    hidden = jnp.tanh(batch @ params['dense'])
    return params['scale'] * sum(
        jnp.mean(hidden[:, :1] * jnp.sin(params[name])) for name in ('kernel', 'bias')
    )


def with_gradient(last_link, inside_the_loss=True):
    """The README's step: a worker's loss is differentiated, through `detached_params` or at its value."""
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), last_link)

    def step(params, state, batch):
        if inside_the_loss:
            grads = jax.grad(lambda p: loss_fn(def_jax.detached_params(p, state), batch))(params)
        else:
            grads = jax.grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return optimizer, step


def compile_pmapped(optimizer, step, num_workers, batch, donate=()):
    params = make_params()
    arguments = jax.eval_shape(lambda: (params, optimizer.init(params), batch))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_workers, *x.shape), x.dtype), arguments)
    return jax.pmap(step, axis_name='workers', donate_argnums=donate).lower(*stacked).compile()


def all_reduces(last_link, num_workers, **kwargs):
    compiled = compile_pmapped(*with_gradient(last_link, **kwargs), num_workers, jnp.ones((4, 256)))
    hlo = compiled.as_text()
    others = 'all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
    assert not re.search(rf' (?:{others})(?:-start)?\(', hlo)
    return results(hlo, 'all-reduce')


@pytest.mark.parametrize('granularity', ['tensor', 'model'])
@pytest.mark.parametrize('num_workers', [2, 8])
@pytest.mark.parametrize('ratio', [3, 64])
def test_one_all_reduce_of_the_message(granularity, num_workers, ratio):
    compressor = def_jax.random_block(ratio, granularity=granularity)
    size = def_jax.message_size(compressor, make_params())
    kept = [max(1, math.prod(shape) // ratio) for shape in SHAPES.values()]
    assert size == (sum(kept) if granularity == 'tensor' else MODEL_SIZE // ratio)
    assert all_reduces(def_jax.error_feedback(compressor, 'workers'), num_workers) == [[size]]


def test_gradient_is_local_to_the_worker():
    """Differentiating through `detached_params` inside the loss adds no collective to the gradient."""
    last_link = def_jax.error_feedback(def_jax.random_block(64), 'workers')
    _, step = with_gradient(last_link)
    outside = with_gradient(last_link, inside_the_loss=False)
    hlo = compile_pmapped(*outside, 4, jnp.ones((4, 256))).as_text()
    size = def_jax.message_size(def_jax.random_block(64), make_params())
    assert results(hlo, 'all-reduce') == all_reduces(last_link, 4) == [[size]]


def test_averaging_the_residual_adds_one_dense_all_reduce_under_a_condition():
    """SAEF's step holds the message and, in one branch of a conditional, the whole residual."""
    compressor = def_jax.random_block(64)
    found = all_reduces(def_jax.error_feedback(compressor, 'workers', average_every=10), 4)
    message = [def_jax.message_size(compressor, make_params())]
    assert len(found) == 2 and message in found
    assert sum(map(sum, found)) == sum(message) + MODEL_SIZE
    last_link = def_jax.error_feedback(compressor, 'workers', average_every=10)
    hlo = compile_pmapped(*with_gradient(last_link), 4, jnp.ones((4, 256))).as_text()
    entry = hlo[hlo.index('\nENTRY') :]
    assert results(entry, 'all-reduce') == [message]  # the dense one is not in the part that always runs


@pytest.mark.parametrize('compressor', [None, def_jax.identity(), def_jax.random_block(1)])
def test_dense_baseline_sends_the_model(compressor):
    if compressor is None:
        found = all_reduces(def_jax.all_reduce_mean('workers'), 4, inside_the_loss=False)
    else:
        found = all_reduces(def_jax.error_feedback(compressor, 'workers'), 4)
    assert len(found) == 1 and sum(found[0]) == MODEL_SIZE


def test_output_params_is_one_dense_all_reduce():
    optimizer = def_jax.error_feedback(def_jax.random_block(64), 'workers')

    def output(params, state, _):
        return def_jax.output_params(params, state, 'workers')

    found = results(compile_pmapped(optimizer, output, 4, jnp.ones(1)).as_text(), 'all-reduce')
    assert len(found) == 1 and sum(found[0]) == MODEL_SIZE


def test_detached_params_communicates_nothing():
    optimizer = def_jax.error_feedback(def_jax.random_block(64), 'workers')

    def detached(params, state, _):
        return def_jax.detached_params(params, state)

    assert not results(compile_pmapped(optimizer, detached, 4, jnp.ones(1)).as_text(), 'all-reduce')


# The gradients are arguments below, so that what is counted belongs to the optimizer and not to the backward
# pass. XLA before jax 0.12 adds the residual before it takes the block, and then copies it once to its place.
COPIES_PER_LEAF = 0 if jax.__version_info__ >= (0, 12) else 1


@pytest.mark.parametrize('num_workers', [None, 2])
def test_update_happens_in_place(num_workers):
    axis_name = None if num_workers is None else 'workers'
    last_link = def_jax.error_feedback(def_jax.random_block(64), axis_name)
    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), last_link)

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = make_params()
    if num_workers is None:
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), params)
        compiled = lowered.compile()
    else:
        compiled = compile_pmapped(optimizer, step, num_workers, params, donate=(0, 1))
    full_size = [size for sizes in results(compiled.as_text(), 'copy') for size in sizes if size >= 256 * 128]
    assert len(full_size) <= 2 * COPIES_PER_LEAF  # two leaves are large
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 4 * MODEL_SIZE * (0.25 + COPIES_PER_LEAF)
    assert memory.alias_size_in_bytes >= 3 * 4 * MODEL_SIZE  # parameters, momentum and residual are donated
