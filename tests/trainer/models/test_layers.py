"""What the networks share: where each starts, as the authors' code or He's does, and how it convolves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from def_jax.trainer.models import MODELS, layers


def he_fan_in(kernel):
    return np.sqrt(2 / np.prod(kernel.shape[:-1])), 'truncated'


def he_fan_out(kernel):
    return np.sqrt(2 / (kernel[..., 0, :].size)), 'normal'


def torch_default(kernel):
    return np.sqrt(1 / (3 * np.prod(kernel.shape[:-1]))), 'uniform'


def small_normal(kernel):
    return 0.01, 'normal'


# Of convolutions, of the dense layers, and whether the convolutions have biases.
STARTS = {
    'vgg16': (he_fan_out, torch_default, True),
    'resnet110': (he_fan_out, torch_default, False),
    'wrn_28_10': (torch_default, torch_default, True),
    'resnet50': (he_fan_out, torch_default, False),
    'vgg_digits': (he_fan_in, small_normal, False),
    'resnet8': (he_fan_in, small_normal, False),
}


@pytest.mark.parametrize('name', STARTS)
def test_initialisation(name):
    of_convolutions, of_dense, has_bias = STARTS[name]
    small = {'stages': ((32, 64),)} if 'vgg' in name else {'stage_sizes': (1,), 'width': 32}
    model = MODELS[name](num_classes=200).clone(**small)  # a smaller network, initialised as the named one
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0, impl='unsafe_rbg'), jnp.zeros((1, 8, 8, 32)))

    for path, layer in named_layers(jax.device_get(variables['params'])).items():
        if 'BatchNorm' in path:  # no scale starts at 0
            assert (layer['scale'] == 1).all() and (layer['bias'] == 0).all()
            continue
        start = of_dense if 'Dense' in path else of_convolutions
        std, shape = start(layer['kernel'])
        check_distribution(layer['kernel'], std, shape)
        assert ('bias' in layer) == (has_bias or 'Dense' in path)
        if 'bias' in layer and start is torch_default:
            check_distribution(layer['bias'], std, shape)
        elif 'bias' in layer:
            assert (layer['bias'] == 0).all()


def named_layers(params, path=''):
    """The layers' parameters by path."""
    if not any(isinstance(value, dict) for value in params.values()):
        return {path: params}
    return {
        name: layer
        for key, value in params.items()
        for name, layer in named_layers(value, f'{path}/{key}').items()
    }


def check_distribution(values, std, shape):
    """Compares with the standard deviation, and the largest of many values with the bound, in deviations."""
    tolerance = 4 / np.sqrt(values.size)
    np.testing.assert_allclose(values.std(), std, rtol=tolerance)
    np.testing.assert_allclose(values.mean(), 0, atol=tolerance * std)
    largest = abs(values).max() / std
    bound = {'uniform': np.sqrt(3), 'truncated': 2 / 0.8796, 'normal': np.inf}[shape]
    assert largest <= bound * 1.0001
    if shape == 'normal' and values.size > 5000:
        assert largest > 2.5  # neither uniform nor truncated


# --- Convolutions; their values, see test_models.py ---


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return layers.convolution(x, 5)


@pytest.mark.parametrize(('backend', 'expected'), [('cpu', False), ('gpu', True)])
def test_only_on_cpus_are_small_convolutions_matrix_products(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    layer, images = Convolution(), jnp.zeros((2, 4, 4, 3))
    variables = layer.init(jax.random.key(0), images)
    program = str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(images))
    assert ('conv_general_dilated' in program) == expected
