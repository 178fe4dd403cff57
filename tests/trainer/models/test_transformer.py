"""The transformer: sizes, arithmetic against NumPy, documents that do not see each other, options, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.trainer.models import transformer
from def_jax.trainer.models.transformer import Transformer

VOCAB, LAYERS, WIDTH, HEADS, CONTEXT = 13, 2, 8, 2, 16
TINY = functools.partial(
    Transformer, vocab_size=VOCAB, num_layers=LAYERS, width=WIDTH, num_heads=HEADS, context=CONTEXT
)


def random_params(model):
    """Parameters of a size that matters; the scales of the norms are not 1."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))['params']
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.7, leaf.shape), leaf.dtype), shapes)


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, shape).astype(np.int32)


def numpy_transformer(params, tokens):
    """Logits [L, V] of one document, token by token in float64, written from the papers."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    size = WIDTH // HEADS

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale['scale']

    def rotate(x, position):
        """Components i and i + size / 2 as a complex number, times exp(1j · position · angle)."""
        angles = position * 10_000.0 ** (-2 * np.arange(size // 2) / size)
        z = (x[: size // 2] + 1j * x[size // 2 :]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    x = p['embedding']['embedding'][tokens] * np.sqrt(WIDTH)
    for layer in range(LAYERS):
        block = p[f'block_{layer}']
        y = norm(x, block['attention_norm'])
        query, key, value = (
            (y @ block[name]['kernel']).reshape(len(tokens), HEADS, size)
            for name in ('query', 'key', 'value')
        )
        mixed = np.zeros_like(value)
        for head in range(HEADS):
            for i in range(len(tokens)):
                rotated = [rotate(key[j, head], j) for j in range(i + 1)]
                scores = np.array(rotated) @ rotate(query[i, head], i) / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                mixed[i, head] = weights / weights.sum() @ value[: i + 1, head]
        x = x + mixed.reshape(len(tokens), WIDTH) @ block['attention_output']['kernel']
        y = norm(x, block['mlp_norm'])
        x = x + gelu(y @ block['mlp_input']['kernel']) @ block['mlp_output']['kernel']
    head = p['head']['kernel'] if 'head' in p else p['embedding']['embedding'].T
    return norm(x, p['norm']) @ head


@pytest.mark.parametrize(
    ('name', 'tied', 'count'),
    [
        ('transformer_115k', True, 115_008),
        ('transformer_115k', False, 115_008 + 64 * 256),
        ('transformer_1m', True, 1_017_216),
        ('transformer_11m', True, 10_720_128),
        ('transformer_85m', True, 85_150_464),
    ],
)
def test_number_of_parameters(name, tied, count):
    model = getattr(transformer, name)(vocab_size=256, tied=tied)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == count
    assert not any('bias' in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shapes))


@pytest.mark.parametrize('tied', [True, False])
def test_logits_are_those_of_numpy(tied):
    model, tokens = TINY(tied=tied), random_tokens((3, 7))
    params = random_params(model)
    logits = jax.jit(model.apply)({'params': params}, tokens)
    assert logits.dtype == jnp.float32
    expected = [numpy_transformer(params, row) for row in tokens]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_with_remat_the_backward_pass_computes_each_block_again_and_the_same_gradient():
    params, tokens = random_params(TINY()), random_tokens((1, 4))

    def gradient(remat):
        model = TINY(remat=remat)
        return jax.grad(lambda params: jnp.sum(jnp.sin(model.apply({'params': params}, tokens))))

    with_remat, plain = (str(jax.make_jaxpr(gradient(remat))(params)) for remat in (True, False))
    assert with_remat.count('dot_general[') >= plain.count('dot_general[') + 6 * LAYERS
    found, expected = jax.jit(lambda params: [gradient(remat)(params) for remat in (True, False)])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)


def test_bfloat16_computes_from_float32_parameters_and_ends_in_float32_logits():
    low, tokens = TINY(dtype=jnp.bfloat16), random_tokens((2, 9))
    variables = jax.eval_shape(low.init, jax.random.key(0), tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits, captured = jax.eval_shape(
        functools.partial(low.apply, capture_intermediates=True), variables, tokens
    )
    assert logits.dtype == jnp.float32
    assert captured['intermediates']['block_0']['__call__'][0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ('changes', 'tokens', 'message'),
    [
        ({'width': 10, 'num_heads': 4}, None, r'width=10 must be a multiple of 2 \* num_heads=8: every head'),
        ({'num_layers': 0}, None, r'num_layers=0 must be an integer in \[1, '),
        ({}, jnp.zeros((1, 17), jnp.int32), 'sequences of 17 tokens are longer than the context=16 of the m'),
        ({}, jnp.zeros((1, 4)), 'tokens.dtype=dtype.*float32.* must be .* of integers'),
        ({}, jnp.zeros(4, jnp.int32), r'tokens.shape=\(4,\)'),
    ],
)
def test_sizes_and_tokens_that_do_not_fit_are_refused(changes, tokens, message):
    with pytest.raises(ValueError, match=message):
        model = TINY(**changes)
        jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
