"""Language modelling: predict each byte of a text from those before it."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from def_jax.ground.types import PyTree
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text.corpus import START, VOCAB_SIZE
from def_jax.trainer.data.text.windows import Windows
from def_jax.trainer.models.transformer import Transformer
from def_jax.trainer.tasks.base import Batch, GenerativeTask

__all__ = ['LanguageModelling', 'language_modelling', 'sample']

_SAMPLE_LENGTH, _SAMPLE_TEMPERATURE = 600, 0.8


@dataclasses.dataclass(frozen=True)
class LanguageModelling(GenerativeTask):
    """Cross-entropy of a transformer on the bytes of a text, in nats per byte."""

    model: Transformer
    context: int  # the length of the windows that it is trained on, L

    def __post_init__(self):
        size, most = self.model.vocab_size, self.model.context
        if size < VOCAB_SIZE:
            raise ValueError(f'vocab_size={size} of the model must be at least {VOCAB_SIZE}, all bytes.')
        if self.context > most:
            raise ValueError(f"context={self.context} of the data set must be at most {most}, the model's.")

    def init(self, key: jax.Array) -> PyTree:
        variables = self.model.init(key, jnp.zeros((1, self.context), jnp.int32))
        return {'params': variables['params'], 'batch_stats': {}}

    def loss(
        self, params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        del key  # nothing is random
        losses, real = self._losses({'params': params}, batch)
        return losses.sum() / real.sum(), ({}, batch_stats)

    def test_sums(self, variables: PyTree, batch: Batch) -> dict[str, jax.Array]:
        """Sums over the bytes, so 'count' is their number."""
        losses, real = self._losses({'params': variables['params']}, batch)
        mask = batch['mask'].astype(jnp.float32)[:, None]
        return {'loss': (losses * mask).sum(), 'count': (real * mask).sum()}

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Nats per byte, the same in bits, and the perplexity per byte, exp(loss)."""
        loss = sums['loss'] / sums['count']
        return {'loss': loss, 'bits_per_byte': loss / math.log(2), 'perplexity': np.exp(loss)}

    def sample(self, params: PyTree, key: jax.Array) -> str:
        """The beginning of a document, drawn at temperature 0.8; U+FFFD stands for what cannot be printed."""
        written = sample(self.model, params, key, _SAMPLE_LENGTH, _SAMPLE_TEMPERATURE)
        text = written.decode('utf-8', errors='replace')
        return ''.join(c if c.isprintable() or c in '\n\t' else '\N{REPLACEMENT CHARACTER}' for c in text)

    def _losses(self, variables: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Nats of each target, 0 on padding, and where there is one, float32 [b, L]."""
        logits: Any = self.model.apply(variables, batch['tokens'], batch['segments'])
        real = (batch['segments'] > 0).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        return losses * real, real


def language_modelling(model: Transformer, dataset: Dataset) -> LanguageModelling:
    """The task of a configuration; ValueError unless the data set is text and the model fits it."""
    if not isinstance(dataset.train, Windows):
        raise ValueError('its data set must be text. Choose another --config.task or --config.dataset.')
    if not isinstance(model, Transformer):
        raise ValueError('its model must be a Transformer. Choose another --config.task or --config.model.')
    return LanguageModelling(model, dataset.train.context)


def sample(
    model: Transformer, params: PyTree, key: jax.Array, length: int, temperature: float = 1.0
) -> bytes:
    """Writes `length` bytes, which need not be valid UTF-8; at temperature 0, the most probable ones."""
    return np.asarray(_sample(model, params, key, length, temperature)).astype(np.uint8).tobytes()


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _sample(model, params, key, length, temperature):
    """Int32 [length]."""
    size = model.context

    def step(window, inputs):
        position, key = inputs
        # Until the window is full, its end is padding, which earlier tokens do not see.
        logits: Any = model.apply({'params': params}, window[None])
        logits = logits[0, jnp.minimum(position, size - 1), :VOCAB_SIZE].at[START].set(-jnp.inf)
        token = jax.random.categorical(key, logits / temperature) if temperature else logits.argmax()
        full = position >= size - 1
        window = jnp.where(full, jnp.roll(window, -1), window)
        return window.at[jnp.minimum(position + 1, size - 1)].set(token), token

    window = jnp.full(size, START, jnp.int32)
    keys = jax.random.split(key, length)
    return jax.lax.scan(step, window, (jnp.arange(length), keys))[1]
