"""Runs whose workers stop agreeing: they end, name the leaf and the device, and leave no checkpoint of it."""

import jax
import numpy as np
import optax
import pytest
import training_fixtures as fixtures
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.trainer import experiment, loop
from def_jax.trainer.workers import replicas


def with_unequal(leaf_of, worker=2):
    """Poisons a state: one of four workers' copies of a leaf differs in its last bit."""

    def unequal(leaf):
        value = np.ascontiguousarray(leaf)
        flipped = (value.view(np.uint32) ^ 1).view(value.dtype).reshape(value.shape)
        devices = jax.devices()[:4]
        copies = [jax.device_put(flipped if k == worker else value, d) for k, d in enumerate(devices)]
        everywhere = NamedSharding(Mesh(devices, ('workers',)), P())
        return jax.make_array_from_single_device_arrays(value.shape, everywhere, copies)

    def poison(state):
        target = leaf_of(state)
        return jax.tree.map(lambda leaf: unequal(leaf) if leaf is target else leaf, state)

    return poison


# Evaluations, each with a checkpoint, come every 5 steps.
def test_a_planted_difference_stops_the_run_with_its_name(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, check_replicas_every=2)
    poison = with_unequal(lambda state: state.params['Dense_0']['bias'])
    with fixtures.poisoned_state(4, poison), pytest.raises(loop.ReplicasDifferError) as error:
        fixtures.train(config, tmp_path)
    assert (error.value.step, error.value.workers) == (4, [2])
    assert 'do not agree on params.Dense_0.bias: device(s) 2' in str(error.value)


def test_no_checkpoint_is_made_of_workers_that_differ(data_dir, tmp_path):
    """A checkpoint takes one copy and would hide it: the check comes before, whatever its period."""
    config = fixtures.tiny_config(data_dir, check_replicas_every=1000)
    poison = with_unequal(lambda state: optax.tree.get(state.opt_state, 'key'))
    with fixtures.poisoned_state(3, poison), pytest.raises(loop.ReplicasDifferError) as error:
        fixtures.train(config, tmp_path)
    # Different blocks in the steps since have made the parameters differ as well.
    assert error.value.step == 5 and len(error.value.leaves) > 1
    assert not (tmp_path / 'checkpoints').exists()


def test_virtual_workers_are_checked_by_device(data_dir):
    run = experiment.build(fixtures.tiny_config(data_dir, workers_per_device=2))
    check_replicas, state = replicas.make_check(run.workers, run.is_per_worker), run.steps.init()
    check_replicas(state, 0)
    values = [np.asarray(state.key), np.asarray(state.key) + np.uint32(1)]
    copies = [jax.device_put(v, device) for v, device in zip(values, run.workers.devices, strict=True)]
    bad = jax.make_array_from_single_device_arrays((2,), state.key.sharding, copies)
    with pytest.raises(loop.ReplicasDifferError, match='do not agree on key'):
        check_replicas(state.replace(key=bad), 0)
