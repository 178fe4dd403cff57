"""The networks: sizes as published, arithmetic against NumPy, statistics, dropout, steps, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference_networks import (
    in_float64,
    init_shapes,
    numpy_basic_block,
    numpy_bottleneck,
    numpy_conv,
    numpy_dense,
    numpy_late_stride_block,
    numpy_preactivation_block,
    numpy_preactivation_bottleneck,
    numpy_vgg,
    random_variables,
    relu,
    windows,
)

from def_jax.trainer.models import MODELS, layers
from def_jax.trainer.models.preactivation import (
    LateStrideBlock,
    PreactivationBlock,
    PreactivationBottleneck,
    PreactivationResNet,
)
from def_jax.trainer.models.resnet import BasicBlock, Bottleneck, ResNet
from def_jax.trainer.models.vgg import VGG

IMAGE_SHAPES = {
    'vgg16': (32, 32, 3),
    'vgg_digits': (8, 8, 1),
    'resnet110': (32, 32, 3),
    'resnet110_basic': (32, 32, 3),
    'wrn_28_10': (32, 32, 3),
    'resnet50': (224, 224, 3),
    'vgg_small': (32, 32, 3),
    'vgg_strided': (32, 32, 3),
    'resnet8': (32, 32, 3),
    'wrn_10_1': (32, 32, 3),
}


@functools.cache
def named_shapes(name, num_classes=10):
    return init_shapes(MODELS[name](num_classes=num_classes), IMAGE_SHAPES[name])


# --- Sizes ---


# Parameters by number of classes, their leaves, and BatchNorm's statistics.
SIZES = {
    # Those of the authors' code; their resnet50 is torchvision's.
    'vgg16': ({10: 15_253_578, 100: 15_299_748}, 58, 8_448),
    'resnet110': ({10: 1_146_842, 100: 1_169_972}, 332, 16_160),
    'wrn_28_10': ({10: 36_489_290, 100: 36_546_980}, 108, 17_952),
    'resnet50': ({1000: 25_557_032}, 161, 53_120),
    # He et al., table 6: 1.7 M.
    'resnet110_basic': ({10: 1_727_962, 100: 1_733_812}, 329, 8_096),
    'vgg_digits': ({10: 18_482}, 20, 224),
    'vgg_small': ({10: 72_954}, 20, 448),
    'vgg_strided': ({10: 70_618}, 17, 416),
    'resnet8': ({10: 75_290}, 23, 480),
    'wrn_10_1': ({10: 77_850}, 25, 480),
}


@pytest.mark.parametrize('name', SIZES)
def test_sizes_and_types(name):
    model = MODELS[name](num_classes=10, dtype=jnp.bfloat16)
    variables = init_shapes(model, IMAGE_SHAPES[name])
    images = jax.ShapeDtypeStruct((5, *IMAGE_SHAPES[name]), jnp.float32)

    program, logits = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False), return_shape=True)(
        variables, images
    )

    assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    products = [e for e in equations(program) if e.primitive.name in ('conv_general_dilated', 'dot_general')]
    assert {operand.aval.dtype for e in products for operand in e.invars} == {jnp.dtype('bfloat16')}

    counts, num_leaves, num_statistics = SIZES[name]
    params = variables['params']
    size, dense = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, last_layer(params)))
    assert {classes: size + dense // 10 * (classes - 10) for classes in counts} == counts
    assert len(jax.tree.leaves(params)) == num_leaves
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['batch_stats'])) == num_statistics


def last_layer(params):
    """The dense layer that makes the logits: its size is proportional to the number of classes."""
    return params[max(name for name in params if name.startswith('Dense'))]


def equations(program):
    """All equations of a jaxpr and of those within."""
    for equation in program.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, 'eqns')
        ):
            if hasattr(inner, 'eqns'):
                yield from equations(inner)


def evaluated(model, image_shape):
    """Random variables and images, and what the model makes of them."""
    variables = random_variables(model, image_shape)
    images = np.random.default_rng(1).normal(size=(3, *image_shape)).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    return variables, images, logits


@pytest.mark.parametrize(
    ('stages', 'order', 'options'),
    [
        (((3,),), 'conv', {}),
        (((3, 4), (5,)), 'conv conv pool conv', {}),
        (((3,), (4, 2), ()), 'conv pool conv conv pool', {}),
        (((), (3,), (4, 2)), 'conv/2 conv/2 conv', {'strided': True}),
        (((3,),), 'conv', {'convolution_init': layers.torch_default, 'hidden': (5, 4)}),
    ],
)
def test_vgg_equals_numpy(stages, order, options):
    model = VGG(stages=stages, num_classes=6, **options)
    variables, images, logits = evaluated(model, (8, 4, 2))
    expected = numpy_vgg(variables, images.astype(np.float64), order.split())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('block', 'numpy_block', 'stage_sizes', 'large_images'),
    [
        (BasicBlock, numpy_basic_block, (2, 1), False),
        (Bottleneck, numpy_bottleneck, (2, 1), True),
    ],
)
def test_resnet_equals_numpy(block, numpy_block, stage_sizes, large_images):
    model = ResNet(block, stage_sizes, width=4, num_classes=6, large_images=large_images)
    variables, images, logits = evaluated(model, (16, 8, 2))
    network = in_float64(variables)
    x = relu(network.norm(network.conv(images.astype(np.float64), 0, stride=1 + large_images), 0))
    if large_images:
        x = windows(x, 3, stride=2, fill=-np.inf).max(axis=(0, 1))
    for index, stride in enumerate((1, 1, 2)):
        x = numpy_block(network.block(f'{block.__name__}_{index}'), x, stride)
    expected = numpy_dense(x.mean(axis=(1, 2)), network.params)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ('block', 'numpy_block', 'init'),
    [
        (PreactivationBlock, numpy_preactivation_block, layers.he_fan_in),
        (LateStrideBlock, numpy_late_stride_block, layers.torch_default),  # whose convolutions have biases
        (PreactivationBottleneck, numpy_preactivation_bottleneck, layers.he_fan_in),
    ],
)
def test_preactivation_resnet_equals_numpy(block, numpy_block, init):
    model = PreactivationResNet(block, (2, 1, 1), width=4, num_classes=6, convolution_init=init)
    variables, images, logits = evaluated(model, (8, 4, 2))
    network = in_float64(variables)
    x = network.conv(images.astype(np.float64), 0)
    for index, stride in enumerate((1, 1, 2, 2)):
        x = numpy_block(network.block(f'{block.__name__}_{index}'), x, stride)
    expected = numpy_dense(relu(network.norm(x, 0)).mean(axis=(1, 2)), network.params)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_vgg16_has_five_poolings_one_of_them_last():
    assert [len(stage) for stage in MODELS['vgg16'](num_classes=10).stages] == [2, 2, 3, 3, 3, 0]


# --- Dropout ---


def test_dropout_halves_what_enters_each_hidden_layer():
    model = VGG(stages=((64,),), num_classes=3, hidden=(64, 64))
    images = np.random.default_rng(1).normal(size=(16, 4, 4, 2)).astype(np.float32)
    variables = random_variables(model, (4, 4, 2))

    options = {'train': True, 'mutable': True, 'capture_intermediates': True}
    apply = jax.jit(functools.partial(model.apply, variables, images, **options))

    def captured(key):
        _, mutated = apply(rngs={'dropout': key})
        return {
            name: np.asarray(calls['__call__'][0])
            for name, calls in mutated['intermediates'].items()
            if name != '__call__'
        }

    found, other = captured(jax.random.key(0)), captured(jax.random.key(1))

    entering = {'Dropout_0': relu(found['BatchNorm_0']).mean((1, 2)), 'Dropout_1': relu(found['Dense_0'])}
    for name, x in entering.items():
        kept = found[name] != 0
        np.testing.assert_allclose(found[name], np.where(kept, 2 * x, 0), rtol=1e-5)
        assert kept.any() and not kept[x != 0].all()
        assert not np.array_equal(kept, other[name] != 0)
    for index, x in enumerate((found['Dropout_0'], found['Dropout_1'], relu(found['Dense_1']))):
        expected = numpy_dense(x, variables['params'], index)
        np.testing.assert_allclose(found[f'Dense_{index}'], expected, rtol=1e-4, atol=1e-4)


# --- Statistics ---


def test_batch_stats_move_and_are_of_the_batch_in_training_only():
    model = VGG(stages=((4,),), num_classes=3)
    variables = random_variables(model, (4, 4, 2))
    images = np.random.default_rng(1).normal(size=(16, 4, 4, 2)).astype(np.float32)

    _, trained = model.apply(variables, images, train=True, mutable=['batch_stats'])
    _, evaluated = model.apply(variables, images, train=False, mutable=['batch_stats'])

    old = variables['batch_stats']['BatchNorm_0']
    activations = numpy_conv(images, np.asarray(variables['params']['Conv_0']['kernel']))
    for name, batch_value in (('mean', activations.mean((0, 1, 2))), ('var', activations.var((0, 1, 2)))):
        moved = 0.9 * old[name] + 0.1 * batch_value
        np.testing.assert_allclose(trained['batch_stats']['BatchNorm_0'][name], moved, rtol=1e-4)
        np.testing.assert_array_equal(evaluated['batch_stats']['BatchNorm_0'][name], old[name])

    other = variables | {'batch_stats': jax.tree.map(lambda leaf: leaf + 1, variables['batch_stats'])}
    for train in (True, False):  # in training, a batch is normalised by its own
        one, two = (model.apply(v, images, train=train, mutable=True)[0] for v in (variables, other))
        assert np.array_equal(one, two) if train else not np.allclose(one, two)


# --- Training ---

# The named networks with fewer and narrower stages, and images on which the last stage still normalises more
# than two numbers a channel. Those of one kind with another are slow tests.
SMALL = {'stage_sizes': (1, 1, 1), 'width': 16}
TRAINED = {
    'vgg_digits': ((8, 8, 1), {}),
    'vgg_strided': ((16, 16, 3), {}),
    'resnet8': ((8, 8, 1), {}),
    'wrn_10_1': ((8, 8, 1), {}),
    'vgg16': ((8, 8, 3), {'stages': ((8, 8), (16,), ()), 'hidden': (8, 8)}),
    'vgg_small': ((8, 8, 3), {}),
    'resnet110': ((8, 8, 3), SMALL),
    'resnet110_basic': ((8, 8, 3), SMALL),
    'wrn_28_10': ((8, 8, 3), SMALL),
    'resnet50': ((64, 64, 3), SMALL),
}
FAST = ('vgg_digits', 'vgg_strided', 'resnet8', 'wrn_10_1')


def he_initialised(model, image_shape):
    """As the model would be: to compile its own initialisation takes longer than the steps."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == 'kernel':
            return jnp.float32(rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return jnp.full(leaf.shape, path[-1].key in ('scale', 'var'), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, init_shapes(model, image_shape))


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in TRAINED]
)
def test_three_training_steps(name):
    image_shape, smaller = TRAINED[name]
    model, optimizer = MODELS[name](num_classes=10, **smaller), optax.sgd(0.1)
    images, labels = jax.random.normal(jax.random.key(1), (2, *image_shape)), jnp.arange(2)

    @jax.jit
    def step(variables, opt_state):
        def loss_fn(params):
            logits, mutated = model.apply(
                variables | {'params': params},
                images,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(2)},
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), mutated

        (loss, mutated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables['params'])
        updates, opt_state = optimizer.update(grads, opt_state)
        return {'params': optax.apply_updates(variables['params'], updates)} | mutated, opt_state, loss

    initial = variables = he_initialised(model, image_shape)
    opt_state = optimizer.init(variables['params'])
    for _ in range(3):
        variables, opt_state, loss = step(variables, opt_state)
        assert np.isfinite(loss)

    stuck = []
    leaves = zip(jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(initial), strict=True)
    for (path, new), old in leaves:
        assert np.isfinite(new).all()
        layer, leaf = path[-2].key, path[-1].key
        cancelled = 'Conv' in layer and leaf == 'bias'  # by batch normalisation: the gradient is zero
        if np.array_equal(new, old) and not cancelled:
            stuck.append(jax.tree_util.keystr(path))
    assert stuck == []


# --- Errors ---


def test_every_model_is_tested():
    assert set(MODELS) == set(IMAGE_SHAPES) == set(SIZES) == set(TRAINED)


@pytest.mark.parametrize(
    ('name', 'shape', 'dtype', 'message'),
    [
        ('vgg16', (2, 48, 32, 3), jnp.float32, r'multiples of 32, since the network halves them 5 times'),
        ('resnet110', (2, 32, 30, 3), jnp.float32, r'multiples of 4, since .* halves them 2 times'),
        ('resnet50', (224, 224, 3), jnp.float32, r'images\.shape=\(224, 224, 3\) must have four axes'),
        ('wrn_28_10', (2, 32, 32, 3), jnp.uint8, r'images\.dtype=.*uint8.* standardise the images first'),
        ('vgg_digits', (2, 0, 8, 1), jnp.float32, r'multiples of 4'),
    ],
)
def test_image_errors(name, shape, dtype, message):
    model, variables = MODELS[name](num_classes=10), named_shapes(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=False), variables, jax.ShapeDtypeStruct(shape, dtype)
        )
