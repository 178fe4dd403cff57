"""The networks: sizes as published, arithmetic against NumPy, statistics, dropout, steps, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_networks as networks
from flax import linen as nn
from flax import traverse_util

from def_jax.ground.jaxpr import equations
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.models import MODELS, layers
from def_jax.trainer.models.resnet import (
    BasicBlock,
    Bottleneck,
    LateStrideBlock,
    PreactivationBottleneck,
    ResNet,
)
from def_jax.trainer.models.vgg import VGG
from def_jax.trainer.tasks.classification import ImageClassification

CIFAR, DIGITS = (32, 32, 3), (8, 8, 1)
# Images, parameters by number of classes, their leaves, and BatchNorm's statistics.
SIZES = {
    # Those of the authors' code; their resnet50 is torchvision's.
    'vgg16': (CIFAR, {10: 15_253_578, 100: 15_299_748}, 58, 8_448),
    'resnet110': (CIFAR, {10: 1_146_842, 100: 1_169_972}, 332, 16_160),
    'wrn_28_10': (CIFAR, {10: 36_489_290, 100: 36_546_980}, 108, 17_952),
    'resnet50': ((224, 224, 3), {1000: 25_557_032}, 161, 53_120),
    'vgg_digits': (DIGITS, {10: 18_482}, 20, 224),
    'vgg_small': (CIFAR, {10: 72_954}, 20, 448),
    'vgg_strided': (CIFAR, {10: 70_618}, 17, 416),
    'resnet8': (CIFAR, {10: 75_290}, 23, 480),
}


@pytest.mark.parametrize('name', MODELS)
def test_sizes_and_types(name):
    image_shape, counts, num_leaves, num_statistics = SIZES[name]
    model = MODELS[name](num_classes=10, dtype=jnp.bfloat16)
    key, images = jax.random.key(0), jax.ShapeDtypeStruct((5, *image_shape), jnp.float32)
    init_and_apply = functools.partial(model.init_with_output, train=False)
    program, (logits, variables) = jax.make_jaxpr(init_and_apply, return_shape=True)(key, images)

    assert (logits.shape, logits.dtype) == ((5, 10), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    products = [
        e for e in equations(program.jaxpr) if e.primitive.name in ('conv_general_dilated', 'dot_general')
    ]
    assert {operand.aval.dtype for e in products for operand in e.invars} == {jnp.dtype('bfloat16')}

    params = variables['params']
    size, dense = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, last_layer(params)))
    assert {classes: size + dense // 10 * (classes - 10) for classes in counts} == counts
    assert len(jax.tree.leaves(params)) == num_leaves
    assert sum(leaf.size for leaf in jax.tree.leaves(variables['batch_stats'])) == num_statistics


def last_layer(params):
    """The dense layer that makes the logits: its size is proportional to the number of classes."""
    return params[max(name for name in params if name.startswith('Dense'))]


def evaluated(model, image_shape):
    """Random variables and images, and what the model makes of them."""
    variables = networks.random_variables(model, image_shape)
    images = np.random.default_rng(1).normal(size=(3, *image_shape)).astype(np.float32)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    return variables, images, logits


@pytest.mark.parametrize(
    ('stages', 'order', 'options'),
    [
        (((3, 4), (5,)), 'conv conv pool conv', {'convolution_init': layers.torch_default, 'hidden': (5, 4)}),
        (((3,), (4, 2), ()), 'conv pool conv conv pool', {}),
        (((), (3,), (4, 2)), 'conv/2 conv/2 conv', {'strided': True}),
    ],
)
def test_vgg_equals_numpy(stages, order, options):
    model = VGG(stages=stages, num_classes=6, **options)
    variables, images, logits = evaluated(model, (8, 4, 2))
    expected = networks.numpy_vgg(variables, images.astype(np.float64), order.split())
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('block', 'numpy_block', 'strides', 'options'),
    [
        (BasicBlock, networks.numpy_basic_block, (1, 1, 2), {}),
        (Bottleneck, networks.numpy_bottleneck, (1, 1, 2), {'large_images': True}),
        (
            *(LateStrideBlock, networks.numpy_late_stride_block, (1, 1, 2, 2)),
            {'stem_width': 16, 'convolution_init': layers.torch_default},  # its convolutions have biases
        ),
        (PreactivationBottleneck, networks.numpy_preactivation_bottleneck, (1, 1, 2, 2), {'stem_width': 16}),
    ],
)
def test_residual_networks_equal_numpy(block, numpy_block, strides, options):
    stage_sizes = (2, *(1 for stride in strides if stride == 2))
    model = ResNet(block, stage_sizes, width=4, num_classes=6, **options)
    variables, images, logits = evaluated(model, (16, 8, 2))
    network = networks.in_float64(variables)
    x = network.conv(images.astype(np.float64), 0, stride=1 + model.large_images)
    if not block.preactivated:
        x = networks.relu(network.norm(x, 0))
    if model.large_images:
        x = networks.windows(x, 3, stride=2, fill=-np.inf).max(axis=(0, 1))
    for index, stride in enumerate(strides):
        x = numpy_block(network.block(f'{block.__name__}_{index}'), x, stride)
    if block.preactivated:
        x = networks.relu(network.norm(x, 0))
    expected = networks.numpy_dense(x.mean(axis=(1, 2)), network.params)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


# --- Training ---

SMALL = {'stage_sizes': (1,), 'width': 4}
TRAINED = {  # one network for each way to normalise, to halve images and to end
    'vgg16': {'stages': ((), (4,)), 'hidden': (64, 64), 'strided': True},
    'resnet50': SMALL,
    'wrn_28_10': SMALL,
}


@pytest.mark.parametrize('name', TRAINED)
def test_a_network_learns_and_drops_half_of_what_enters_hidden_layers(name):
    model = MODELS[name](num_classes=3, **TRAINED[name])
    images = np.random.default_rng(1).normal(size=(6, 8, 8, 2)).astype(np.float32)
    variables = networks.random_variables(model, (8, 8, 2))

    def loss_fn(params):
        logits, mutated = model.apply(
            variables | {'params': params},
            images,
            train=True,
            mutable=['batch_stats', 'intermediates'],
            rngs={'dropout': jax.random.key(0)},
            capture_intermediates=lambda module, _: isinstance(module, (nn.Dense, nn.Dropout)),
        )
        return -jax.nn.log_softmax(logits)[np.arange(6), np.arange(6) % 3].mean(), mutated

    grads, mutated = jax.device_get(jax.jit(jax.grad(loss_fn, has_aux=True))(variables['params']))
    for path, leaf in jax.tree.leaves_with_path(grads):
        cancelled = 'Conv' in jax.tree_util.keystr(path) and path[-1].key == 'bias'  # by normalisation
        assert np.isfinite(leaf).all() and (cancelled or np.any(leaf)), path
    stats = zip(*(jax.tree.leaves(each['batch_stats']) for each in (variables, mutated)), strict=True)
    assert not any(np.array_equal(before, after) for before, after in stats)
    if name == 'vgg16':
        values = mutated['intermediates']
        entering, left = (values[module]['__call__'][0] for module in ('Dense_0', 'Dropout_1'))
        kept = left != 0
        np.testing.assert_allclose(left, np.where(kept, 2 * networks.relu(entering), 0), rtol=1e-6)
        assert 0.3 < kept[entering > 0].mean() < 0.7 and 'Dropout_0' in values


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
    init = functools.partial(MODELS[name](num_classes=10).init, train=False)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


HE_IN = nn.initializers.variance_scaling(2, 'fan_in', 'truncated_normal')
HE_OUT = nn.initializers.variance_scaling(2, 'fan_out', 'normal')
TORCH = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# Of convolutions, of the dense layers, and whether the convolutions have biases.
STARTS = {
    'vgg16': (HE_OUT, TORCH, True),
    'resnet110': (HE_OUT, TORCH, False),
    'wrn_28_10': (TORCH, TORCH, True),
    'resnet50': (HE_OUT, TORCH, False),
    'vgg_digits': (HE_IN, nn.initializers.normal(0.01), False),
    'resnet8': (HE_IN, nn.initializers.normal(0.01), False),
}


@pytest.mark.parametrize('name', STARTS)
def test_initialisation(name):
    of_convolutions, of_dense, has_bias = STARTS[name]
    small = {'stages': ((32, 64),)} if 'vgg' in name else {'stage_sizes': (1,), 'width': 32}
    model = MODELS[name](num_classes=200).clone(**small)  # a smaller network, initialised as the named one
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0, impl='unsafe_rbg'), jnp.zeros((1, 8, 8, 32)))

    flat = traverse_util.flatten_dict(jax.device_get(variables['params']), sep='/')
    for path, values in flat.items():
        if 'BatchNorm' in path:  # no scale starts at 0
            assert (values == path.endswith('scale')).all()
        elif path.endswith('kernel'):
            start = of_dense if 'Dense' in path else of_convolutions
            drawn = np.stack([start(jax.random.key(number), values.shape) for number in range(10)])
            shares = (0.01, 0.25, 0.75, 0.99)  # which tell the three shapes apart
            found, expected = (np.quantile(each, shares) / drawn.std() for each in (values, drawn))
            np.testing.assert_allclose(found, expected, atol=16 / np.sqrt(values.size))
            bias = flat.get(path.replace('kernel', 'bias'))
            assert (bias is not None) == (has_bias or 'Dense' in path)
            if bias is not None:
                std = drawn.std() * (start is TORCH)
                np.testing.assert_allclose(bias.std(), std, rtol=4 / np.sqrt(bias.size))


@pytest.mark.parametrize(('backend', 'expected'), [('cpu', False), ('gpu', True)])
def test_only_on_cpus_are_small_convolutions_matrix_products(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    init = functools.partial(VGG(stages=((4,),), num_classes=2).init, train=False)
    program = jax.make_jaxpr(init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    assert ('conv_general_dilated' in str(program)) == expected


# --- Dropout in the task; augmentation is in test_steps.py, what is counted in test_evaluation.py ---

SPEC = dataclasses.replace(DATASETS['digits'], crop_padding=0, flip=False)


def test_dropout_draws_by_the_key_of_the_step_and_of_the_worker():
    images = np.random.default_rng(0).integers(0, 256, (4, *SPEC.image_shape), np.uint8)
    batch = {'image': images, 'label': jnp.arange(4)}
    task = ImageClassification(VGG(stages=((4,),), num_classes=10, hidden=(8,)), SPEC)
    variables = jax.jit(task.init)(jax.random.key(0))
    keys = [jax.random.key(0), *jax.random.split(jax.random.key(0), 3)]
    losses = jax.vmap(lambda key: task.loss(variables['params'], variables['batch_stats'], batch, key)[0])
    found = jax.jit(losses)(jnp.stack([*keys, keys[0]])).tolist()
    assert found[0] == found[-1] and len(set(found)) == 4
