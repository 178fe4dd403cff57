"""Narrow messages: what rounding takes from a message stays in the residual."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import exchanged

import def_jax

NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e5m2]
SIZE, RATIO, NUM_WORKERS = 64, 4, 4


def link(wire_dtype, axis_name='workers'):
    return def_jax.error_feedback(def_jax.random_block(RATIO), axis_name, wire_dtype=wire_dtype)


@pytest.mark.parametrize('dtype', NARROW)
def test_sent_and_kept_restore_what_was_pending_bit_for_bit(dtype):
    pending = np.random.default_rng(0).normal(size=(50, SIZE)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def once(pending):
        sent, state = link(dtype, None).update(pending, link(dtype, None).init(pending))
        return sent, state.residual

    sent, kept = map(np.asarray, once(pending))
    np.testing.assert_array_equal(sent + kept, pending)
    np.testing.assert_array_equal(sent.astype(dtype).astype(np.float32), sent)  # it fitted the wire
    assert np.any((sent != 0) & (kept != 0))  # it was rounded


@pytest.mark.parametrize('dtype', [jnp.float32, *NARROW])
def test_y_moves_by_the_mean_update(dtype):
    """Eq. 8, up to what the all-reduce rounds: K - 1 sums and a quotient, each by half a unit at most."""
    u = np.random.default_rng(0).normal(size=(NUM_WORKERS, 20, SIZE)).astype(np.float32)
    arrived, state = exchanged(link(dtype), u)
    residual = state.residual
    before = np.concatenate([np.zeros_like(residual[:, :1]), residual[:, :-1]], axis=1)
    sent = before + u - residual
    y = np.cumsum(arrived.mean(axis=0, dtype=np.float64), axis=0) + residual.mean(axis=0, dtype=np.float64)
    expected = np.cumsum(u.mean(axis=0, dtype=np.float64), axis=0)
    half_unit = 2.0 ** -(jnp.finfo(dtype).nmant + 1)
    bound = NUM_WORKERS * half_unit * np.cumsum(np.abs(sent).mean(axis=0, dtype=np.float64), axis=0)
    assert np.all(np.abs(y - expected) <= bound + 1e-5)


@pytest.mark.parametrize(('dtype', 'short'), [(jnp.bfloat16, 'bf16'), (jnp.float16, 'f16')])
def test_the_message_travels_in_that_type(dtype, short):
    """In the program as it is handed to the compiler; XLA's CPU backend reduces bfloat16 as float32."""
    step = jax.pmap(lambda u, s: link(dtype).update(u, s), axis_name='workers')
    state = jax.vmap(link(dtype).init)(jnp.zeros((NUM_WORKERS, SIZE)))
    program = step.lower(jnp.zeros((NUM_WORKERS, SIZE)), state).as_text()
    (reduced,) = re.findall(r'"stablehlo.all_reduce"[\s\S]*?-> tensor<(\w+)>', program)
    assert reduced == f'{SIZE // RATIO}x{short}'
