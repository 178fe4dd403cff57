"""What the networks share: convolutions against Flax's own, and where the last layer starts."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from def_jax.trainer.models import layers


@pytest.mark.parametrize(
    ('image', 'kernel', 'stride'),
    [
        ((1, 1), 3, 1),
        ((4, 3), 3, 2),
        ((3, 4), 1, 1),
        ((8, 7), 7, 2),
    ],
)
def test_convolutions_of_small_and_large_images_are_flaxs(image, kernel, stride):
    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            return layers.convolution(x, 5, kernel, stride)

    class Flax(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(5, (kernel, kernel), stride, padding=kernel // 2, use_bias=False)(x)

    x = jax.random.normal(jax.random.key(0), (2, *image, 3))

    @jax.jit
    def both(key, x):
        variables = Ours().init(key, x)
        values = (lambda v, x, model=model: jnp.sum(jnp.sin(model.apply(v, x))) for model in (Ours(), Flax()))
        return [jax.value_and_grad(value, argnums=(0, 1))(variables, x) for value in values]

    chex.assert_trees_all_close(*both(jax.random.key(1), x), rtol=1e-4, atol=1e-4)


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x):
        return layers.convolution(x, 5)


@pytest.mark.parametrize(('backend', 'expected'), [('cpu', False), ('gpu', True), ('tpu', True)])
def test_only_on_cpus_are_small_convolutions_matrix_products(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    layer, images = Convolution(), jnp.zeros((2, 4, 4, 3))
    variables = layer.init(jax.random.key(0), images)
    program = str(jax.make_jaxpr(lambda x: layer.apply(variables, x))(images))
    assert ('conv_general_dilated' in program) == expected
