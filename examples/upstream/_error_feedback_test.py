"""Tests for the error feedback wrapper in `_error_feedback.py`.

In `_common_test.py`, the wrapper is added to `_MAIN_OPTIMIZERS_UNDER_TEST`, and
`ratio` and `seed` to the hyperparameters that cannot be injected:

    {
        'opt_name': 'sgd',
        'opt_kwargs': {'learning_rate': 1e-2},
        'wrapper_name': 'error_feedback',
        'wrapper_kwargs': {'ratio': 2},
    },
"""

import functools

import _error_feedback  # in optax: from optax.contrib import _error_feedback
from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax


def _setup_parabola(dtype):
  """Quadratic function as an optimization target."""
  initial_params = jnp.array([-1.0, 10.0, 1.0], dtype=dtype)
  final_params = jnp.array([1.0, -1.0, 1.0], dtype=dtype)

  def obj_fn(params):
    return jnp.sum((params - final_params) ** 2)

  return initial_params, final_params, obj_fn


def _setup_mixed_tensor_target(dtype):
  """Optimization target combining 1D and 2D tensor parameters."""
  initial_params = (jnp.zeros((3,), dtype), jnp.zeros((2, 2), dtype))
  final_params = (
      jnp.array([1.0, -1.0, 2.0], dtype),
      jnp.array([[1.0, 0.0], [-1.0, 1.0]], dtype),
  )

  def obj_fn(params):
    return sum(jnp.sum((x - y) ** 2) for x, y in zip(params, final_params))

  return initial_params, final_params, obj_fn


_TARGETS = (_setup_parabola, _setup_mixed_tensor_target)


class ErrorFeedbackTest(parameterized.TestCase):

  @parameterized.product(target=_TARGETS, detached=(False, True))
  def test_converges(self, target, detached):
    opt = _error_feedback.error_feedback(optax.sgd(1e-2), ratio=2)
    params, final_params, obj_fn = target(jnp.float32)
    state = opt.init(params)
    # A no-op change, to verify that tree map works.
    state = optax.tree.map_params(opt, lambda v: v, state)

    def step(carry, _):
      params, state = carry
      point = params
      if detached:
        point = _error_feedback.error_feedback_detached_params(state, params)
      updates, state = opt.update(jax.grad(obj_fn)(point), state, params)
      return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), length=2000)
    output = _error_feedback.error_feedback_output_params(state, params)
    for found in (params, output):
      jax.tree.map(
          functools.partial(np.testing.assert_allclose, atol=3e-2),
          found,
          final_params,
      )

  def test_accepts_extra_args_and_does_not_recompile(self):
    opt = _error_feedback.error_feedback(optax.sgd(1e-2), ratio=2)
    step = jax.jit(functools.partial(opt.update, unexpected_extra_args=1))
    params = jnp.ones(4)
    _, state = step(params, opt.init(params), params)
    step(params, state, params)
    self.assertEqual(step._cache_size(), 1)

  def test_can_be_wrapped_in_inject_hyperparams(self):
    factory = functools.partial(
        _error_feedback.error_feedback, optax.sgd(1e-2)
    )
    opt = factory(ratio=2, detach=0.5)
    opt_inject = optax.inject_hyperparams(
        factory, static_args=('ratio', 'seed')
    )(ratio=2, detach=0.5)
    params = [jnp.negative(jnp.ones((2, 3))), jnp.ones((2, 5, 2))]
    grads = [jnp.ones((2, 3)), jnp.negative(jnp.ones((2, 5, 2)))]
    updates, state = jax.jit(opt.update)(grads, opt.init(params), params)
    updates_inject, state_inject = jax.jit(opt_inject.update)(
        grads, opt_inject.init(params), params
    )
    jax.tree.map(np.testing.assert_allclose, updates_inject, updates)
    jax.tree.map(
        np.testing.assert_allclose, state_inject.inner_state, state
    )

  @parameterized.parameters('bfloat16', 'float32')
  def test_preserve_dtype(self, dtype):
    opt = _error_feedback.error_feedback(optax.sgd(1e-2), ratio=2)
    params = jnp.ones((2, 3), dtype)
    state = opt.init(params)
    updates, state = opt.update(params, state, params)
    self.assertEqual(updates.dtype, params.dtype)
    self.assertEqual(state.residual.dtype, jnp.float32)
    point = _error_feedback.error_feedback_detached_params(state, params)
    self.assertEqual(point.dtype, params.dtype)

  @parameterized.parameters(
      ((64, 32), 16), ((10,), 4), ((7,), 2), ((), 64), ((0, 3), 2), ((3, 5), 1)
  )
  def test_tiles_cover_a_tensor_once(self, shape, ratio):
    tile = _error_feedback._tile(shape, ratio)
    grid = [n // edge if edge else 1 for n, edge in zip(shape, tile)]
    sent = np.zeros(shape)
    for place in np.ndindex(*grid):
      index = tuple(slice(i * e, (i + 1) * e) for i, e in zip(place, tile))
      sent[index] += 1
    np.testing.assert_array_equal(sent, np.ones(shape))

  @parameterized.parameters(1, 4)
  def test_output_moves_by_the_mean_update(self, num_workers):
    opt = _error_feedback.error_feedback(
        optax.sgd(0.1), ratio=8, axis_name='workers'
    )
    params = {'w': jnp.ones((num_workers, 4, 8)), 'b': jnp.ones((num_workers,))}
    output = functools.partial(
        _error_feedback.error_feedback_output_params, axis_name='workers'
    )

    @jax.jit
    @functools.partial(jax.vmap, axis_name='workers')
    def step(params, state, grads):
      before = output(state, params)
      updates, state = opt.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      return params, state, before, output(state, params)

    state = jax.vmap(opt.init)(params)
    for i in range(5):
      grads = {
          name: jax.random.normal(jax.random.key(i), x.shape)
          for name, x in params.items()
      }
      params, state, before, after = step(params, state, grads)
      for name, x in params.items():
        # The parameters stay the same on all workers.
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
        np.testing.assert_allclose(
            after[name] - before[name],
            np.broadcast_to(-0.1 * grads[name].mean(0), x.shape),
            atol=1e-6,
        )

  def test_ratio_must_be_at_least_1(self):
    with self.assertRaisesRegex(ValueError, 'ratio'):
      _error_feedback.error_feedback(optax.sgd(1e-2), ratio=0.5)


if __name__ == '__main__':
  absltest.main()
