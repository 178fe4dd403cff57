"""The networks: sizes by formula, arithmetic against NumPy, statistics, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.models import MODELS, VGG, get_model

IMAGE_SHAPES = {'vgg16': (32, 32, 3), 'vgg_digits': (8, 8, 1)}
WIDTHS = {
    'vgg16': (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
    'vgg_digits': (8, 8, 16, 16, 32, 32),
}


def init_shapes(model, image_shape):
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), images)


def random_variables(model, image_shape, seed=0):
    """Variables with no default left in them: biases and running means are not 0, scales not 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape), leaf.dtype)

    variables = jax.tree.map(draw, init_shapes(model, image_shape))
    stats = {name: leaf | {'var': jnp.abs(leaf['var'])} for name, leaf in variables['batch_stats'].items()}
    return variables | {'batch_stats': stats}


def numpy_conv(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def numpy_vgg(variables, x, layers):
    """Runs 'conv' and 'pool' layers, then the mean and the dense layer, in evaluation mode."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, stats = variables['params'], variables['batch_stats']
    index = 0
    for layer in layers:
        if layer == 'pool':
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
            continue
        norm, stat = params[f'BatchNorm_{index}'], stats[f'BatchNorm_{index}']
        x = numpy_conv(x, params[f'Conv_{index}']['kernel'])
        x = (x - stat['mean']) / np.sqrt(stat['var'] + 1e-5) * norm['scale'] + norm['bias']
        x = np.maximum(x, 0)
        index += 1
    return x.mean(axis=(1, 2)) @ params['Dense_0']['kernel'] + params['Dense_0']['bias']


@pytest.mark.parametrize('num_classes', [10, 7])
@pytest.mark.parametrize('name', IMAGE_SHAPES)
def test_parameter_count(name, num_classes):
    channels = (IMAGE_SHAPES[name][-1], *WIDTHS[name])
    kernels = sum(9 * fan_in * fan_out for fan_in, fan_out in zip(channels, WIDTHS[name], strict=False))
    norms = 2 * sum(WIDTHS[name])
    dense = (WIDTHS[name][-1] + 1) * num_classes

    variables = init_shapes(get_model(name, num_classes), IMAGE_SHAPES[name])

    params = jax.tree.leaves(variables['params'])
    assert sum(leaf.size for leaf in params) == kernels + norms + dense
    assert len(params) == 3 * len(WIDTHS[name]) + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['batch_stats'])) == norms


def test_parameter_count_in_numbers():
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(init_shapes(get_model(name, 10), shape)['params']))
        for name, shape in IMAGE_SHAPES.items()
    }
    assert counts == {'vgg16': 14_724_042, 'vgg_digits': 18_482}


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('name', IMAGE_SHAPES)
def test_shapes_and_types(name, dtype):
    model = get_model(name, 10).clone(dtype=dtype)
    variables = init_shapes(model, IMAGE_SHAPES[name])
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


def test_stages_of_the_named_networks():
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    model = get_model('vgg_digits', 10)
    variables = random_variables(model, (8, 8, 1))
    layers = ['conv', 'conv', 'pool', 'conv', 'conv', 'pool', 'conv', 'conv']
    expected = numpy_vgg(variables, images.astype(np.float64), layers)
    np.testing.assert_allclose(model.apply(variables, images, train=False), expected, rtol=1e-4)

    stages = get_model('vgg16', 10).stages
    assert tuple(width for stage in stages for width in stage) == WIDTHS['vgg16']
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
    variables = VGG(stages=((64, 64),), num_classes=2).init(
        jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False
    )
    kernel = np.asarray(variables['params']['Conv_1']['kernel'])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    np.testing.assert_allclose(kernel.mean(), 0, atol=0.001)


def test_every_model_is_tested():
    assert set(MODELS) == set(IMAGE_SHAPES)


@pytest.mark.parametrize(
    ('name', 'num_classes', 'message'),
    [
        ('vgg-16', 10, r"name='vgg-16' is not a model; .* vgg16, vgg_digits\. Did you mean 'vgg16'\?"),
        ('transformer', 10, r"name='transformer' is not a model; .* vgg16, vgg_digits\.$"),
        (None, 10, r'name=None is not a model'),
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
        ('vgg_digits', (2, 6, 6, 1), jnp.float32, r'images\.shape=\(2, 6, 6, 1\) .* multiples of 4'),
        ('vgg_digits', (2, 0, 8, 1), jnp.float32, r'multiples of 4'),
        ('vgg_digits', (8, 8, 1), jnp.float32, r'images\.shape=\(8, 8, 1\) must have four axes'),
        ('vgg_digits', (2, 8, 8, 1), jnp.uint8, r'images\.dtype=.*uint8.* standardise the images first'),
    ],
)
def test_image_errors(name, shape, dtype, message):
    model = get_model(name, 10)
    variables = init_shapes(model, IMAGE_SHAPES[name])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda v, x: model.apply(v, x, train=False), variables, jax.ShapeDtypeStruct(shape, dtype)
        )
