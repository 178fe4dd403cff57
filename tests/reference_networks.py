"""The networks in float64 NumPy, written from the papers and the authors' code, to test the Flax modules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, image_shape):
    """Variables without default values: biases and running means are not 0, scales not 1."""
    rng, images = np.random.default_rng(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)

    def draw(leaf):
        return jnp.asarray(rng.uniform(0.2, 1.0, leaf.shape) * rng.choice([-1, 1], leaf.shape), leaf.dtype)

    variables = jax.tree.map(draw, shapes)
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.abs(leaf) if path[-1].key == 'var' else leaf, variables['batch_stats']
    )
    return variables | {'batch_stats': stats}


def windows(x, size, stride, fill):
    """The entries of the size×size window around every stride-th pixel: [size, size, B, H', W', C]."""
    padding = size // 2
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    height, width = x.shape[1:3]
    return np.array(
        [
            [padded[:, i : i + height : stride, j : j + width : stride] for j in range(size)]
            for i in range(size)
        ]
    )


def numpy_dense(x, params, index=0):
    return x @ params[f'Dense_{index}']['kernel'] + params[f'Dense_{index}']['bias']


class NumpyLayers:
    """The convolutions and normalisations of one module, in evaluation mode, by number."""

    def __init__(self, params, stats):
        self.params, self.stats = params, stats

    def conv(self, x, index, stride=1):
        layer = self.params[f'Conv_{index}']
        seen = windows(x, len(layer['kernel']), stride, fill=0)
        return np.einsum('ijbhwc,ijco->bhwo', seen, layer['kernel']) + layer.get('bias', 0)

    def norm(self, x, index):
        norm, stat = (tree[f'BatchNorm_{index}'] for tree in (self.params, self.stats))
        return (x - stat['mean']) / np.sqrt(stat['var'] + 1e-5) * norm['scale'] + norm['bias']

    def block(self, name):
        return NumpyLayers(self.params[name], self.stats[name])


def in_float64(variables):
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    return NumpyLayers(variables['params'], variables['batch_stats'])


def relu(x):
    return np.maximum(x, 0)


def numpy_vgg(variables, x, layers):
    """Runs 'conv', 'conv/2' and 'pool' layers, then the mean and dense layers, in evaluation mode."""
    network, index = in_float64(variables), 0
    for layer in layers:
        if layer == 'pool':
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
            continue
        stride = 2 if layer == 'conv/2' else 1
        x = relu(network.norm(network.conv(x, index, stride), index))
        index += 1
    x, last = x.mean(axis=(1, 2)), sum(name.startswith('Dense') for name in network.params) - 1
    for index in range(last):
        x = relu(numpy_dense(x, network.params, index))
    return numpy_dense(x, network.params, last)


def numpy_basic_block(block, x, stride):
    y = relu(block.norm(block.conv(x, 0, stride), 0))
    y = block.norm(block.conv(y, 1), 1)
    shortcut = np.zeros_like(y)
    shortcut[..., : x.shape[-1]] = x[:, ::stride, ::stride]
    return relu(shortcut + y)


def numpy_bottleneck(block, x, stride):
    y = relu(block.norm(block.conv(x, 0), 0))
    y = relu(block.norm(block.conv(y, 1, stride), 1))
    y = block.norm(block.conv(y, 2), 2)
    if 'Conv_3' in block.params:
        x = block.norm(block.conv(x, 3, stride), 3)
    return relu(x + y)


def numpy_late_stride_block(block, x, stride):
    y = block.conv(relu(block.norm(x, 0)), 0)
    y = block.conv(relu(block.norm(y, 1)), 1, stride)
    return y + (block.conv(x, 2, stride) if 'Conv_2' in block.params else x)


def numpy_preactivation_bottleneck(block, x, stride):
    y = block.conv(relu(block.norm(x, 0)), 0)
    y = block.conv(relu(block.norm(y, 1)), 1, stride)
    y = block.conv(relu(block.norm(y, 2)), 2)
    return y + (block.conv(x, 3, stride) if 'Conv_3' in block.params else x)
