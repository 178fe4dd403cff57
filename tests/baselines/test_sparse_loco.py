"""SparseLoCo against its own oracle, and what its messages hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_baselines as oracles
from perceptron import START, TOLERANCE, flat, gradient, mlp_data, train

from def_jax import baselines
from def_jax.traffic import traffic

NUM_WORKERS, NUM_STEPS, RATE, MOMENTUM, CHUNK = 4, 24, 0.03, 0.9, 2


@pytest.mark.parametrize(('every', 'ratio'), [(1, 4), (4, 1)])
def test_sparse_loco_equals_oracle(every, ratio):
    expected = oracles.sparse_loco(
        START,
        gradient(NUM_WORKERS, NUM_STEPS),
        [RATE] * NUM_STEPS,
        reference.MLP_SHAPES,
        num_workers=NUM_WORKERS,
        ratio=ratio,
        chunk=CHUNK,
        every=every,
        momentum=MOMENTUM,
    )
    link = baselines.sparse_loco(ratio, 'workers', every=every, chunk=CHUNK)
    optimizer = optax.chain(optax.sgd(RATE, momentum=MOMENTUM), link)

    def worker(batches):
        return train(optimizer, batches, lambda params, state: flat(params))

    found = jax.pmap(worker, axis_name='workers')(mlp_data(NUM_WORKERS, num_steps=NUM_STEPS))
    np.testing.assert_allclose(found[0], expected, **TOLERANCE)
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
    assert np.ptp(np.diff(expected, axis=0)[every - 1 :: every], axis=0).max() > 1e-2


@pytest.mark.parametrize('ratio', [64, 128])
def test_a_message_has_the_bytes_of_its_ratio(ratio):
    params = {'w': jnp.zeros((256, 128)), 'b': jnp.zeros(4096)}
    found = traffic(baselines.sparse_loco(ratio, 'workers', every=5), params, 'workers')
    ((_, (message,)),) = (sorted(branch, key=len) for branch in found.branches)
    assert not found.always and message.operation == 'all-gather'
    elements = sum(x.size for x in jax.tree.leaves(params))
    assert 0.95 * elements / ratio < message.bytes / 4 - 2 * 4 <= elements / ratio + 1
