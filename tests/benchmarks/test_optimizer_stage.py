"""The stage as the benchmark times it holds no allocation of a model's size; the optimizer: test_hlo.py."""

import jax.numpy as jnp
import optax
import pytest

import def_jax
from benchmarks import timing

MODEL_BYTES = 4 * 8 * 128 * 128


@pytest.mark.usefixtures('full_optimization')
def test_point_is_written_over_the_last_one():
    params = [jnp.full((128, 128), 0.01)] * 8
    link = def_jax.error_feedback(def_jax.random_block(64), None)
    stage = timing.stage_with_point(optax.chain(optax.sgd(0.1, momentum=0.9), link), params, params)
    detach, update = (program.memory_analysis() for program in stage.programs)
    assert detach.alias_size_in_bytes >= MODEL_BYTES and update.alias_size_in_bytes >= 3 * MODEL_BYTES
    assert detach.temp_size_in_bytes + update.temp_size_in_bytes < MODEL_BYTES // 8
    stage.run()
    assert stage.median > 0
