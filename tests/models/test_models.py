"""The networks: sizes by formula and as published, arithmetic against NumPy, statistics, steps, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from reference_networks import (
    in_float64,
    init_shapes,
    numpy_basic_block,
    numpy_bottleneck,
    numpy_conv,
    numpy_dense,
    numpy_preactivation_block,
    numpy_vgg,
    random_variables,
    relu,
    windows,
)

from def_jax.models import MODELS, VGG, BasicBlock, Bottleneck, ResNet, WideResNet, get_model

IMAGE_SHAPES = {
    'vgg16': (32, 32, 3),
    'vgg_digits': (8, 8, 1),
    'resnet110': (32, 32, 3),
    'wrn_28_10': (32, 32, 3),
    'resnet50': (224, 224, 3),
    'vgg_small': (32, 32, 3),
    'resnet8': (32, 32, 3),
    'wrn_10_1': (32, 32, 3),
}
VGG_WIDTHS = {
    'vgg16': (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    'vgg_digits': (8, 8, 16, 16, 32, 32),
    'vgg_small': (16, 16, 32, 32, 64, 64),
}


@functools.cache
def named_shapes(name, num_classes=10):
    return init_shapes(get_model(name, num_classes), IMAGE_SHAPES[name])


# --- Sizes ---


def vgg_sizes(name):
    """Elements of the kernels, normalised channels, leaves before the dense layer, and its inputs."""
    channels, widths = (IMAGE_SHAPES[name][-1], *VGG_WIDTHS[name]), VGG_WIDTHS[name]
    kernels = sum(9 * fan_in * fan_out for fan_in, fan_out in zip(channels, widths, strict=False))
    return kernels, sum(widths), 3 * len(widths), widths[-1]


def resnet_sizes(blocks):
    kernels = 9 * 3 * 16 + 2 * blocks * 9 * 16 * 16
    kernels += 9 * 16 * 32 + (2 * blocks - 1) * 9 * 32 * 32
    kernels += 9 * 32 * 64 + (2 * blocks - 1) * 9 * 64 * 64
    return kernels, 16 + 2 * blocks * (16 + 32 + 64), 3 * (1 + 6 * blocks), 64


def wide_sizes(blocks, widen):
    kernels, channels, projections = 9 * 3 * 16, 0, 0
    for fan_in, width in ((16, 16 * widen), (16 * widen, 32 * widen), (32 * widen, 64 * widen)):
        kernels += 9 * fan_in * width + (2 * blocks - 1) * 9 * width * width
        channels += fan_in + (2 * blocks - 1) * width
        if fan_in != width:
            kernels, projections = kernels + fan_in * width, projections + 1
    normalisations = 6 * blocks + 1
    return kernels, channels + 64 * widen, 1 + 6 * blocks + projections + 2 * normalisations, 64 * widen


def resnet50_sizes():
    kernels, channels, fan_in = 49 * 3 * 64, 64, 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        kernels += fan_in * 4 * width  # the projection
        channels += 4 * width
        for _ in range(blocks):
            kernels += fan_in * width + 9 * width * width + width * 4 * width
            channels += width + width + 4 * width
            fan_in = 4 * width
    # 16 blocks of 3 convolutions, 4 projections and the stem, each with a normalisation.
    return kernels, channels, 3 * (16 * 3 + 4 + 1), 2048


SIZES = {
    'vgg16': functools.partial(vgg_sizes, 'vgg16'),
    'vgg_digits': functools.partial(vgg_sizes, 'vgg_digits'),
    'resnet110': functools.partial(resnet_sizes, 18),
    'wrn_28_10': functools.partial(wide_sizes, 4, 10),
    'resnet50': resnet50_sizes,
    'vgg_small': functools.partial(vgg_sizes, 'vgg_small'),
    'resnet8': functools.partial(resnet_sizes, 1),
    'wrn_10_1': functools.partial(wide_sizes, 1, 1),
}


@pytest.mark.parametrize('name', IMAGE_SHAPES)
def test_parameter_count(name):
    kernels, channels, num_leaves, features = SIZES[name]()
    num_classes = 10

    variables = named_shapes(name)

    params = jax.tree.leaves(variables['params'])
    assert sum(leaf.size for leaf in params) == kernels + 2 * channels + (features + 1) * num_classes
    assert len(params) == num_leaves + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['batch_stats'])) == 2 * channels


@pytest.mark.parametrize(
    ('name', 'num_classes', 'count'),
    [
        ('vgg16', 10, 14_724_042),
        ('vgg_digits', 10, 18_482),
        ('resnet110', 10, 1_727_962),  # He et al., table 6: 1.7 M
        ('resnet110', 100, 1_733_812),
        ('wrn_28_10', 10, 36_479_194),  # Zagoruyko and Komodakis, table 4: 36.5 M
        ('wrn_28_10', 100, 36_536_884),
        ('resnet50', 1000, 25_557_032),  # torchvision's documentation
    ],
)
def test_parameter_count_in_numbers(name, num_classes, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(named_shapes(name, num_classes)['params'])) == count


@pytest.mark.parametrize('name', IMAGE_SHAPES)
def test_shapes_and_types(name):
    model = get_model(name, 10).clone(dtype=jnp.bfloat16)
    variables = named_shapes(name)
    images = jax.ShapeDtypeStruct((5, *IMAGE_SHAPES[name]), jnp.float32)

    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)

    assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
    ('stages', 'layers'),
    [
        (((3,),), 'conv'),
        (((3, 4), (5,)), 'conv conv pool conv'),
        (((3,), (4, 2), ()), 'conv pool conv conv pool'),
    ],
)
def test_logits_equal_numpy(stages, layers):
    model = VGG(stages=stages, num_classes=6)
    variables = random_variables(model, (8, 4, 2))
    images = np.random.default_rng(1).normal(size=(3, 8, 4, 2)).astype(np.float32)

    logits = model.apply(variables, images, train=False)

    expected = numpy_vgg(variables, images.astype(np.float64), layers.split())
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
    variables = random_variables(model, (16, 8, 2))
    images = np.random.default_rng(1).normal(size=(3, 16, 8, 2)).astype(np.float32)

    logits = model.apply(variables, images, train=False)

    network = in_float64(variables)
    x = relu(network.norm(network.conv(images.astype(np.float64), 0, stride=1 + large_images), 0))
    if large_images:
        x = windows(x, 3, stride=2, fill=-np.inf).max(axis=(0, 1))
    for index, stride in enumerate((1, 1, 2)):
        x = numpy_block(network.block(f'{block.__name__}_{index}'), x, stride)
    expected = numpy_dense(x, network.params)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_wide_resnet_equals_numpy():
    model = WideResNet(depth=10, widen=1, num_classes=6)
    variables = random_variables(model, (8, 4, 2))
    images = np.random.default_rng(1).normal(size=(3, 8, 4, 2)).astype(np.float32)

    logits = model.apply(variables, images, train=False)

    network = in_float64(variables)
    x = network.conv(images.astype(np.float64), 0)
    for index, stride in enumerate((1, 2, 2)):
        x = numpy_preactivation_block(network.block(f'PreactivationBlock_{index}'), x, stride)
    expected = numpy_dense(relu(network.norm(x, 0)), network.params)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_stages_of_the_named_networks():
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    model = get_model('vgg_digits', 10)
    variables = random_variables(model, (8, 8, 1))
    layers = ['conv', 'conv', 'pool', 'conv', 'conv', 'pool', 'conv', 'conv']
    expected = numpy_vgg(variables, images.astype(np.float64), layers)
    np.testing.assert_allclose(model.apply(variables, images, train=False), expected, rtol=1e-4)

    stages = get_model('vgg16', 10).stages
    assert tuple(width for stage in stages for width in stage) == VGG_WIDTHS['vgg16']
    assert [len(stage) for stage in stages] == [2, 2, 3, 3, 3, 0]  # five poolings, one of them last


def test_batch_stats_move_in_training_only():
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


def test_training_normalises_by_the_batch():
    model = VGG(stages=((4,),), num_classes=3)
    variables = random_variables(model, (4, 4, 2))
    other = variables | {'batch_stats': jax.tree.map(lambda leaf: leaf + 1, variables['batch_stats'])}
    images = np.random.default_rng(1).normal(size=(16, 4, 4, 2)).astype(np.float32)

    def logits(variables, train):
        return model.apply(variables, images, train=train, mutable=['batch_stats'])[0]

    np.testing.assert_array_equal(logits(variables, train=True), logits(other, train=True))
    assert not np.allclose(logits(variables, train=False), logits(other, train=False))


def test_he_initialisation():
    """The same numbers as those of Flax's own convolutions of the same names, which are He initialised."""

    class Convolutions(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.Conv(64, (3, 3), use_bias=False, kernel_init=nn.initializers.he_normal())(x)
            return x

    images = jnp.zeros((1, 2, 2, 3))
    ours = VGG(stages=((64, 64),), num_classes=2).init(jax.random.key(0), images, train=False)['params']
    for name, layer in Convolutions().init(jax.random.key(0), images)['params'].items():
        np.testing.assert_array_equal(ours[name]['kernel'], layer['kernel'])


@pytest.mark.parametrize('block', [BasicBlock, Bottleneck])
def test_zero_init_makes_blocks_shortcuts(block):
    x = jnp.abs(jax.random.normal(jax.random.key(1), (2, 4, 4, 8)))
    scales = {}
    for zero_init in (False, True):
        model = ResNet(block, (1,), width=2, num_classes=2, zero_init_residual=zero_init)
        params = model.init(jax.random.key(0), x, train=False)['params'][f'{block.__name__}_0']
        norms = [params[f'BatchNorm_{index}']['scale'] for index in range(len(params) // 2)]
        scales[zero_init] = [float(scale.max()) for scale in norms]
    assert set(scales[False]) == {1.0}
    last = 1 if block is BasicBlock else 2  # a projection's normalisation comes after it
    assert [index for index, scale in enumerate(scales[True]) if scale == 0] == [last]
    assert [get_model(name, 10).zero_init_residual for name in ('resnet110', 'resnet50')] == [False, True]


# --- Training ---

# Large enough that the last stage normalises more than two numbers a channel.
TRAINING_SIZES = [
    pytest.param('vgg16', (32, 32, 3), marks=pytest.mark.slow),
    ('vgg_digits', (8, 8, 1)),
    pytest.param('vgg_small', (8, 8, 3), marks=pytest.mark.slow),
    ('resnet8', (8, 8, 1)),
    ('wrn_10_1', (8, 8, 1)),
    pytest.param('resnet110', (8, 8, 3), marks=pytest.mark.slow),
    pytest.param('wrn_28_10', (8, 8, 3), marks=pytest.mark.slow),
    pytest.param('resnet50', (224, 224, 3), marks=pytest.mark.slow),
]


def he_initialised(model, image_shape):
    """As the model would be: to compile its own initialisation takes longer than the steps."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == 'kernel':
            return jnp.float32(rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1])))
        return jnp.full(leaf.shape, path[-1].key in ('scale', 'var'), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, init_shapes(model, image_shape))


@pytest.mark.parametrize(('name', 'image_shape'), TRAINING_SIZES)
def test_three_training_steps(name, image_shape):
    model, optimizer = get_model(name, 10), optax.sgd(0.1)
    images, labels = jax.random.normal(jax.random.key(1), (2, *image_shape)), jnp.arange(2)

    @jax.jit
    def step(variables, opt_state):
        def loss_fn(params):
            logits, mutated = model.apply(
                variables | {'params': params}, images, train=True, mutable=['batch_stats']
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

    unchanged = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(variables), jax.tree.leaves(initial), strict=True
        )
        if np.array_equal(new, old) or not np.isfinite(new).all()
    ]
    assert unchanged == []


# --- Errors ---


def test_every_model_is_tested():
    assert set(MODELS) == set(IMAGE_SHAPES) == set(SIZES)
    trained = {getattr(entry, 'values', entry)[0] for entry in TRAINING_SIZES}
    assert trained == set(MODELS)


@pytest.mark.parametrize(
    ('name', 'num_classes', 'message'),
    [
        (
            'vgg-16',
            10,
            r"model='vgg-16' is unknown; .* vgg16, vgg_digits, .* Did you mean 'vgg16'\?",
        ),
        ('transformer', 10, r"model='transformer' is unknown; .* resnet50, .* wrn_10_1\.$"),
        (None, 10, r'model=None is unknown'),
        ('vgg16', 0, r'num_classes=0 must be at least 1'),
    ],
)
def test_get_model_errors(name, num_classes, message):
    with pytest.raises(ValueError, match=message):
        get_model(name, num_classes)


@pytest.mark.parametrize(
    ('name', 'shape', 'dtype', 'message'),
    [
        ('vgg16', (2, 28, 28, 3), jnp.float32, r'multiples of 32, since the network halves them 5 times'),
        ('vgg16', (2, 32, 48, 3), jnp.float32, r'multiples of 32'),
        ('vgg16', (2, 48, 32, 3), jnp.float32, r'multiples of 32'),
        ('resnet110', (2, 30, 32, 3), jnp.float32, r'multiples of 4, since .* halves them 2 times'),
        ('wrn_28_10', (2, 32, 34, 3), jnp.float32, r'multiples of 4, since .* halves them 2 times'),
        (
            'resnet50',
            (2, 224, 200, 3),
            jnp.float32,
            r'multiples of 32, since the network halves them 5 times',
        ),
        ('resnet50', (224, 224, 3), jnp.float32, r'images\.shape=\(224, 224, 3\) must have four axes'),
        ('wrn_28_10', (2, 32, 32, 3), jnp.uint8, r'images\.dtype=.*uint8.* standardise the images first'),
        ('vgg_digits', (2, 6, 6, 1), jnp.float32, r'images\.shape=\(2, 6, 6, 1\) .* multiples of 4'),
        ('vgg_digits', (2, 0, 8, 1), jnp.float32, r'multiples of 4'),
        ('vgg_digits', (8, 8, 1), jnp.float32, r'images\.shape=\(8, 8, 1\) must have four axes'),
        ('vgg_digits', (2, 8, 8, 1), jnp.uint8, r'images\.dtype=.*uint8.* standardise the images first'),
    ],
)
def test_image_errors(name, shape, dtype, message):
    model, variables = get_model(name, 10), named_shapes(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=False), variables, jax.ShapeDtypeStruct(shape, dtype)
        )


@pytest.mark.parametrize('depth', [4, 27, -2])
def test_depth_errors(depth):
    with pytest.raises(ValueError, match=rf'depth={depth} must be 6n \+ 4 with n >= 1 blocks a stage'):
        init_shapes(WideResNet(depth=depth, widen=1, num_classes=10), (8, 8, 3))
