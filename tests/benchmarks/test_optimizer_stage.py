"""The stage as the benchmark times it on one worker: its message is packed as for eight."""

import jax
import jax.numpy as jnp
import pytest

import def_jax
from benchmarks.copying import as_one_of


def test_a_message_of_few_bits_is_packed_for_all_workers_and_loses_nothing():
    """All workers have the same numbers; what a chunk loses when rounded again, its worker keeps K times."""
    params, grads = jnp.zeros((64, 64)), jnp.tile(jnp.array([1.0, -1.0]), (64, 32))
    optimizer = def_jax.def_sgd(0.1, 32, None, bits=1, detach=0.0)
    with as_one_of(8):
        updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        program = str(jax.make_jaxpr(optimizer.update)(grads, state, params))
    kept = (2 / jnp.pi) ** 0.5  # the best for Gaussian numbers; of seven messages, and of the mean of all
    assert jnp.abs(updates) == pytest.approx(kept * (1 + 7 * kept) / 8, rel=0.01)
    assert jnp.mean((updates + state.residual) * -grads) == pytest.approx(1, abs=1e-5)
    assert program.count('optimization_barrier') >= 2 and 'u8[8,' in program
