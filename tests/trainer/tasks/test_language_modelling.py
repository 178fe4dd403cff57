"""Language modelling: what is counted, and what is written."""

import jax
import numpy as np
import pytest

from def_jax.trainer.data.text.corpus import START, Corpus
from def_jax.trainer.data.text.windows import Windows
from def_jax.trainer.models.transformer import Transformer
from def_jax.trainer.tasks.language_modelling import LanguageModelling, sample

CONTEXT = 8
MODEL = Transformer(vocab_size=256, num_layers=1, width=8, num_heads=2, context=CONTEXT)
DOCUMENTS = (b'import jax\n', b'x', b'for i in range(3):\n    print(i)\n')


@pytest.fixture(scope='module')
def windows():
    """Seven windows; the last has padding, and windows 1, 2 hold parts of two and three documents."""
    text = b''.join(DOCUMENTS)
    return Windows(Corpus(np.frombuffer(text, np.uint8), np.cumsum([len(d) for d in DOCUMENTS])), CONTEXT)


@pytest.fixture(scope='module')
def task():
    return LanguageModelling(MODEL, CONTEXT)


@pytest.fixture(scope='module')
def variables(task):
    return jax.jit(task.init)(jax.random.key(0))


apply = jax.jit(MODEL.apply)


def last_logits(params, text):
    """The logits of the byte after a text of at most CONTEXT tokens."""
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(text)] = text
    return np.asarray(apply({'params': params}, padded)[0, len(text) - 1], np.float64)


@pytest.fixture(scope='module')
def nats(variables):
    """The negative log-probability of every byte of the documents, computed from each piece alone."""
    losses, position = [], 0
    for document in DOCUMENTS:
        pieces, start = [], 0
        while start < len(document):
            length = min(len(document) - start, CONTEXT - position % CONTEXT)
            pieces.append((start, document[start : start + length]))
            start, position = start + length, position + length
        for start, piece in pieces:
            inputs = [document[start - 1] if start else START, *piece]
            for i, byte in enumerate(piece):
                row = last_logits(variables['params'], inputs[: i + 1])
                losses.append(np.log(np.exp(row).sum()) - row[byte])
    return np.array(losses)


def test_every_byte_counts_once_in_tests_and_in_training(task, variables, windows, nats):
    test_sums = jax.jit(task.test_sums)
    for batch_size in (3, 7):
        batches = windows.test_batches(batch_size=batch_size, num_workers=1)
        sums = [test_sums(variables, {k: x[0] for k, x in batch.items()}) for batch in batches]
        assert sum(float(s['count']) for s in sums) == len(windows.corpus) == 44
        total = sum(float(s['loss']) for s in sums)
        np.testing.assert_allclose(total, nats.sum(), rtol=1e-5)
    batch = windows.take(np.arange(4, 6))  # 16 bytes, of which 4 are padding
    loss, (figures, batch_stats) = jax.jit(task.loss)(variables['params'], {}, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, nats[32:].mean(), rtol=1e-5)
    assert (figures, batch_stats) == ({}, {})


def test_greedy_samples_are_the_most_probable_bytes(variables):
    params = jax.tree.map(lambda x: 3 * x, variables['params'])  # far from uniform
    written = sample(MODEL, params, jax.random.key(0), 12, temperature=0)
    text = [START]
    for _ in range(12):
        text.append(int(last_logits(params, text[-CONTEXT:])[:START].argmax()))
    assert list(written) == text[1:]
