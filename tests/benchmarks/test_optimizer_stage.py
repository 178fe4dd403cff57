"""The stage as the benchmark times it: memory, and a message that is packed as for eight workers."""

import jax
import jax.numpy as jnp
import optax
import pytest

import def_jax
from benchmarks import timing
from benchmarks.copying import as_one_of

MODEL_BYTES = 4 * 8 * 128 * 128


@pytest.mark.usefixtures('full_optimization')
def test_point_is_written_over_the_last_one():
    params = [jnp.full((128, 128), 0.01)] * 8
    sgd = optax.sgd(0.1, momentum=0.9)
    optimizer = def_jax.error_feedback(def_jax.random_block(64), None, inner=sgd)
    stage = timing.stage_with_point(optimizer, params, params)
    detach, update = (program.memory_analysis() for program in stage.programs)
    assert detach.alias_size_in_bytes >= MODEL_BYTES and update.alias_size_in_bytes >= 3 * MODEL_BYTES
    assert detach.temp_size_in_bytes + update.temp_size_in_bytes < MODEL_BYTES // 8
    stage.run()
    assert stage.median > 0


def test_a_message_of_few_bits_is_packed_for_all_workers_and_loses_nothing():
    """All workers have the same numbers; what a chunk loses when rounded again, its worker keeps K times."""
    params, grads = jnp.zeros((64, 64)), jnp.tile(jnp.array([1.0, -1.0]), (64, 32))
    optimizer = def_jax.def_sgd(0.1, 32, None, bits=1, detach=0.0)
    with as_one_of(8):
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        program = str(jax.make_jaxpr(optimizer.update)(grads, state, params))
    assert jnp.abs(updates) == pytest.approx(
        2 / jnp.pi, rel=0.01
    )  # √(2/π), the best for Gaussian numbers, twice
    assert jnp.mean((updates + state.residual) * -grads) == pytest.approx(1, abs=1e-5)
    assert program.count('optimization_barrier') >= 2 and 'u8[8,' in program
