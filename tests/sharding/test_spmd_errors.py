"""What `spmd` refuses: every case is one error that names the argument and the remedy."""

import jax
import jax.numpy as jnp
import optax
import pytest
from compressing import feedback
from jax.sharding import PartitionSpec as P
from sharded_workers import AUTO, EXPLICIT, mesh_of

import def_jax

OPTIMIZER, BARE = feedback(2, inner=optax.adam(0.1)), feedback(2)
PARAMS = {'w': jnp.ones((8, 6)), 'b': jnp.ones(6)}


def two_by_four(**arguments):
    return def_jax.spmd(**{'optimizer': OPTIMIZER, 'mesh': mesh_of(2, 4), 'param_specs': P()} | arguments)


def updated(dist, params=PARAMS, **extra_args):
    grads = jax.tree.map(lambda x: jnp.ones((2, *x.shape)), params)
    return jax.eval_shape(dist.update, grads, jax.eval_shape(dist.init, params), params, **extra_args)


def square_loss(params, batch):
    return jnp.mean((batch @ params['w'] + params['b']) ** 2)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'mesh': 8}, 'mesh=8 must be a jax.sharding.Mesh'),
        ({'axis_name': 'nodes'}, r"axis_name='nodes' must be an axis of the mesh.*'workers', 'shard'"),
        ({'axis_name': None}, 'axis_name=None must be an axis of the mesh'),
        ({'axis_name': ('workers', 'workers')}, 'must be a name'),
        ({'param_specs': None}, r'param_specs is missing: a worker has 4 devices.*or P\(\), if each'),
        ({'param_specs': {'w': P('tensor')}}, r"names \['tensor'\], but the mesh has \('workers', 'shard'\)"),
        ({'param_specs': P('workers')}, r"names \['workers'\], the axis over workers"),
        ({'param_specs': {'w': 'shard'}}, "holds 'shard', but its leaves must be PartitionSpecs"),
        ({'param_specs': {'w': P(P.UNCONSTRAINED)}}, 'has P.UNCONSTRAINED.*Name an axis or None'),
        (
            {'mesh': jax.make_mesh((2, 4), ('workers', 'shard'), axis_types=(AUTO, EXPLICIT))},
            'all Auto or all Explicit axes',
        ),
    ],
)
def test_arguments_are_checked_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_by_four(**arguments)


@pytest.mark.parametrize(
    ('specs', 'message'),
    [
        ({'w': P('shard')}, r"^params\['b'\] has no PartitionSpec in param_specs.*nnx.as_pure"),
        ({'w': P(), 'b': None, 'c': P('shard')}, r"^param_specs\['c'\] is no parameter"),
        ({'w': P(None, 'shard'), 'b': P()}, r"params\['w'\] has shape \(8, 6\), .* 2 dimensions by \[1, 4\]"),
        ({'w': P(), 'b': P(None, 'shard')}, r"params\['b'\] has shape \(6,\), .* 2 dimensions by \[1, 4\]"),
    ],
)
def test_specs_must_fit_the_parameters(specs, message):
    with pytest.raises(ValueError, match=message):
        two_by_four(param_specs=specs).init(PARAMS)


def test_parameters_are_arrays():
    with pytest.raises(ValueError, match=r"params\['relu'\] is a \w+, but must be an array"):
        two_by_four(param_specs=P()).init(PARAMS | {'relu': jax.nn.relu})


def test_what_a_step_is_given_must_belong_together():
    dist = two_by_four(param_specs={'w': P('shard'), 'b': P()})
    shapes = jax.eval_shape(dist.init, PARAMS)
    batch = jnp.ones((4, 8))
    step = dist.value_and_grad(square_loss)
    with pytest.raises(ValueError, match=r'batch has shape \(3, 8\).*among 2 workers'):
        jax.eval_shape(step, PARAMS, shapes, jnp.ones((3, 8)))
    with pytest.raises(ValueError, match=r"batch\['x'\] has shape \(\)"):
        jax.eval_shape(step, PARAMS, shapes, {'x': jnp.float32(1)})
    a_number_each = {'x': batch, 'one for each worker': jnp.arange(2)}
    jax.eval_shape(dist.value_and_grad(lambda p, b: square_loss(p, b['x'])), PARAMS, shapes, a_number_each)
    with pytest.raises(ValueError, match=r'batch holds arrays of \[4, 6\] rows.*goes after the batch'):
        jax.eval_shape(step, PARAMS, shapes, {'x': batch, 'class weights': jnp.ones(6)})
    around = optax.MultiSteps(dist, 2)
    with pytest.raises(ValueError, match=r'inside optax.MultiSteps, .*accumulate= of def_jax.spmd'):
        jax.eval_shape(step, PARAMS, jax.eval_shape(around.init, PARAMS), batch)
    other = two_by_four(optimizer=feedback(2, inner=optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r'opt_state.inner\[0\].count is not there, .* of another optimizer'):
        jax.eval_shape(step, PARAMS, jax.eval_shape(other.init, PARAMS), batch)
    four = def_jax.spmd(OPTIMIZER, mesh_of(4, 2), P())
    wanted = r'\] is \(4, .*, but must be \(2, .*Of another mesh, pass it through `regroup`'
    with pytest.raises(ValueError, match=wanted):
        jax.eval_shape(step, PARAMS, jax.eval_shape(four.init, PARAMS), batch)
    with pytest.raises(ValueError, match='of other parameters or dtypes, is not stacked over workers, or'):
        jax.eval_shape(step, PARAMS, OPTIMIZER.init(PARAMS), batch)
    with pytest.raises(ValueError, match=r"grads\['b'\] is \(6,\), but must be \(2, 6\)\. Pass"):
        jax.eval_shape(dist.update, PARAMS, shapes, PARAMS)
    with pytest.raises(ValueError, match='lookahead goes around'):
        dist.init(optax.LookaheadParams.init_synced(PARAMS))
    with pytest.raises(ValueError, match=r"grads\['b'\] is not there, but must be \(2, 6\)"):
        jax.eval_shape(dist.update, {'w': PARAMS['w']}, shapes, PARAMS)


def test_labels_beside_a_batch_of_a_row_a_worker_are_not_broadcast():
    dist, (x, labels) = two_by_four(), (jnp.ones((2, 8)), jnp.ones(2))

    def loss(params, x, labels):
        return jnp.mean((square_loss(params, x) - labels) ** 2)

    arguments = PARAMS, jax.eval_shape(dist.init, PARAMS), x
    with pytest.raises(ValueError, match=r'argument 2 has 2 rows, .* within the batch, as a tuple'):
        jax.eval_shape(dist.value_and_grad(loss), *arguments, labels)
    with pytest.raises(ValueError, match='argument labels has 2 rows'):
        jax.eval_shape(dist.value_and_grad(loss), *arguments, labels=labels)
    jax.eval_shape(dist.at_points(loss, split=(1, 2)), *arguments, labels)
    x = jnp.ones((6, 8))  # three rows a worker, for which the labels of all are broadcast or clamped
    with pytest.warns(UserWarning, match='argument 2 has 6 rows, as the batch has, .* What all workers need'):
        jax.eval_shape(
            dist.value_and_grad(lambda p, x, y: loss(p, x, y[: len(x)])), *arguments[:2], x, jnp.ones(6)
        )
    jax.eval_shape(dist.at_points(loss), *arguments, jax.random.PRNGKey(0))


@pytest.mark.parametrize(
    ('name', 'shape'), [('value', (2,)), ('grad', {'w': (2, 8, 6), 'b': (2, 6)})], ids=['value', 'grad']
)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_extra_arguments_are_the_same_for_all_workers(name, shape, accumulate):
    optimizer = optax.chain(feedback(2, inner=optax.sgd(0.1)), optax.contrib.reduce_on_plateau())
    dist, right = two_by_four(optimizer=optimizer, accumulate=accumulate), {'value': 1.0, 'grad': PARAMS}
    updated(dist, **right)
    stacked = jax.tree.map(jnp.ones, shape, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.raises(ValueError, match=rf'argument {name} has shape .* must be .* mean, {name}=tx'):
        updated(dist, **right | {name: stacked})


# What would differ between workers, or wait; links of other axes, or that see other tensors; and none.
OPTIMIZERS = {
    'masked': (optax.masked(OPTIMIZER, {'w': True, 'b': False}), r"^updates\['b'\] would differ"),
    'mechanize': (optax.contrib.mechanize(OPTIMIZER), 'copies of x would drift apart'),
    'MultiSteps': (optax.MultiSteps(OPTIMIZER, 2), 'accumulate='),
    'conditionally': (
        optax.transforms.conditionally_transform(OPTIMIZER, lambda step: step > 1),
        'optax.conditionally_mask lets x stand there',
    ),
    'no axis': (
        optax.chain(def_jax.all_reduce_mean(None), optax.sgd(0.1)),
        "axis_name=None of a link differs from axis_name='workers'",
    ),
    'another axis': (
        optax.chain(def_jax.ef21(def_jax.random_block(2), 'shard'), optax.sgd(0.1)),
        "axis_name='shard' of a link differs from axis_name='workers'",
    ),
    'flatten': (optax.flatten(OPTIMIZER), 'no leaf of the parameters'),
    'before a link': (optax.chain(optax.sgd(0.1, 0.9), BARE), r'precedes the link in the chain.* as inner='),
    'no link': (optax.adam(0.1), 'holds no link that communicates'),
}


@pytest.mark.parametrize(('optimizer', 'message'), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_cannot_be_distributed_is_refused_at_trace(optimizer, message):
    with pytest.raises(ValueError, match=message):
        updated(two_by_four(optimizer=optimizer))
