"""One rule for another number of workers, in a checkpoint and for a newcomer of an elastic run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.elastic import transfer
from def_jax.mesh.regrouping import regroup


@pytest.mark.parametrize(
    'values', [[1.5, 2.25, 4.0], [True, False, False], [False, False, True], [False, False, False]]
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_all_get_the_mean_of_floats_and_whether_any_has_a_flag(values, dtype):
    """Of NumPy's arrays, of JAX's, and of those who live, the first two of three workers."""
    rows = jnp.array(values) if isinstance(values[0], bool) else jnp.array(values, dtype)
    expected = rows[:2].astype(jnp.float32).mean().astype(rows.dtype)
    state, own = {'step': jnp.int32(7), 'own': rows[:2]}, {'step': False, 'own': True}
    for arrays in (state, jax.tree.map(np.asarray, state)):
        regrouped = regroup(arrays, own, (2,), (3,))
        assert regrouped['step'] == 7 and regrouped['own'].tolist() == [expected] * 3

    def give(step, mine, valid, leads):
        return transfer.give(valid[None], leads[None], {'step': step, 'own': mine}, own, 'workers')

    steps, valid = jnp.array([7, 7, 0]), jnp.array([True, True, False])
    given = jax.vmap(give, axis_name='workers')(steps, rows, valid, jnp.array([True, False, False]))
    assert given['step'].tolist() == [7, 7, 7] and given['own'].tolist() == [*rows[:2].tolist(), expected]
