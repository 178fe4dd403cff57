"""Detached error feedback: data-parallel training that sends little."""

import math
from typing import NamedTuple, Optional, Union

import jax
import jax.numpy as jnp
from optax._src import base
from optax._src import numerics
import optax.tree


class ErrorFeedbackState(NamedTuple):
  """State for :func:`optax.contrib.error_feedback`.

  Attributes:
    count: number of updates so far, the same on all workers.
    key: selects the blocks, the same on all workers.
    detach: how far along the residual gradients are evaluated.
    residual: what this worker has not sent yet, in float32.
    base_optimizer_state: this worker's.
  """

  count: jax.typing.ArrayLike
  key: base.PRNGKey
  detach: jax.typing.ArrayLike
  residual: base.Updates
  base_optimizer_state: base.OptState


def error_feedback_detached_params(
    state: ErrorFeedbackState, params: base.Params
) -> base.Params:
  """Where to evaluate the gradient of :func:`optax.contrib.error_feedback`."""
  return jax.tree.map(
      lambda x, r: (x + state.detach * r).astype(x.dtype),
      params,
      jax.lax.stop_gradient(state.residual),
  )


def error_feedback_output_params(
    state: ErrorFeedbackState,
    params: base.Params,
    axis_name: Optional[Union[str, tuple[str, ...]]] = None,
) -> base.Params:
  """Params for evaluation of :func:`optax.contrib.error_feedback`.

  Averages the residuals over ``axis_name``, which communicates as much as
  uncompressed training does in a step.

  Args:
    state: a worker's state.
    params: the parameters, the same on all workers.
    axis_name: the axis over workers, if there are several.

  Returns:
    The parameters that would be reached if everything had been sent.
  """
  residual = state.residual
  if axis_name is not None:
    residual = jax.lax.pmean(residual, axis_name)
  return jax.tree.map(lambda x, r: (x + r).astype(x.dtype), params, residual)


def error_feedback(
    base_optimizer: base.GradientTransformation,
    ratio: float = 64,
    detach: jax.typing.ArrayLike = 0.3,
    axis_name: Optional[Union[str, tuple[str, ...]]] = None,
    seed: int = 0,
) -> base.GradientTransformationExtraArgs:
  r"""Averages a random block of the updates, and keeps the rest for later.

  Data-parallel training averages whole gradients at every step. On a slow
  network, that average dominates the step. This wrapper averages one block of
  every tensor of the *updates* instead, about one element in ``ratio``. What a
  worker has not sent stays in its residual.

  Let :math:`x_t` be the parameters, the same on all :math:`K` workers,
  :math:`r_{k,t}` the residual of worker :math:`k`, and :math:`C_t` the
  restriction to the blocks of step :math:`t`, also the same on all. With
  :math:`r_{k,0} = 0`, a step is

  .. math::

    \begin{align*}
      g_{k,t} &= \nabla f(x_t + \lambda r_{k,t};\, \xi_{k,t}) \\
      p_{k,t} &= r_{k,t} + u(g_{k,t}) \\
      x_{t+1} &= x_t + \tfrac{1}{K} \textstyle\sum_k C_t(p_{k,t}) \\
      r_{k,t+1} &= p_{k,t} - C_t(p_{k,t})
    \end{align*}

  where :math:`u` is the update of ``base_optimizer``, whose state is local to
  the worker. However little is sent, :math:`y_t = x_t + \tfrac{1}{K} \sum_k
  r_{k,t}` moves by exactly the mean update of the workers, :math:`y_{t+1} = y_t
  + \tfrac{1}{K} \sum_k u(g_{k,t})`. Gradients evaluated at :math:`x_t` are
  stale (:math:`\lambda = 0`, error feedback). The *detached* points
  :math:`x_t + \lambda r_{k,t}` are closer to :math:`y_t`.

  Evaluate gradients at :func:`optax.contrib.error_feedback_detached_params`, do
  not average them, and pass :math:`x_t` to ``update``. Evaluate the model at
  :math:`x_t`, or at :math:`y_t`, which
  :func:`optax.contrib.error_feedback_output_params` returns.

  Args:
    base_optimizer: a worker's optimizer. It sees the detached parameters, so
      that weight decay is evaluated there, too.
    ratio: one element in ``ratio`` is sent, at least one of every tensor. A
      tensor is cut along its axes into equal tiles, one of which is drawn.
      Where no number of tiles near the ratio divides its size, the tiles are
      larger.
    detach: :math:`\lambda` in :math:`[0, 1]`. 1 evaluates gradients at each
      worker's own model.
    axis_name: the mapped axis over workers (of :func:`jax.vmap`,
      :func:`jax.pmap` or :func:`jax.shard_map`), or a tuple of axes; None for a
      single worker.
    seed: selects the blocks. It must be the same on all workers.

  Returns:
    A :class:`optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import functools
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> from optax import contrib
    >>> optimizer = contrib.error_feedback(
    ...     optax.sgd(0.1), ratio=4, axis_name='workers')
    >>> @functools.partial(jax.vmap, axis_name='workers')
    ... def step(params, state, target):
    ...   point = contrib.error_feedback_detached_params(state, params)
    ...   grads = jax.grad(lambda x: jnp.sum((x - target) ** 2))(point)
    ...   updates, state = optimizer.update(grads, state, params)
    ...   return optax.apply_updates(params, updates), state
    >>> targets = jnp.array([[1.0] * 8, [3.0] * 8])  # of two workers
    >>> params = jnp.zeros((2, 8))
    >>> state = jax.vmap(optimizer.init)(params)
    >>> for _ in range(100):
    ...   params, state = step(params, state, targets)
    >>> print('Mean of the workers\' parameters: {:.1f}'.format(params.mean()))
    Mean of the workers' parameters: 2.0

  References:
    Xu and Huang, `Detached Error Feedback for Distributed SGD with Random
    Sparsification <https://proceedings.mlr.press/v162/xu22c.html>`_, 2022

    Vogels et al., `PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization <https://arxiv.org/abs/1905.13727>`_, 2019

  .. note::
    ``residual`` and ``base_optimizer_state`` differ between workers. A
    checkpoint has to keep those of all.
  """
  if not ratio >= 1:
    raise ValueError(f'`ratio` must be at least 1, got {ratio}.')
  base_optimizer = base.with_extra_args_support(base_optimizer)

  def init_fn(params):
    return ErrorFeedbackState(
        count=jnp.zeros([], jnp.int32),
        key=jax.random.key_data(jax.random.key(seed, impl='threefry2x32')),
        detach=jnp.asarray(detach, jnp.float32),
        residual=optax.tree.zeros_like(params, dtype=jnp.float32),
        base_optimizer_state=base_optimizer.init(params),
    )

  def update_fn(updates, state, params=None, **extra_args):
    point = None
    if params is not None:
      point = error_feedback_detached_params(state, params)
    updates, base_optimizer_state = base_optimizer.update(
        updates, state.base_optimizer_state, point, **extra_args
    )
    pending, treedef = jax.tree.flatten(
        jax.tree.map(
            lambda u, r: u.astype(r.dtype) + r, updates, state.residual
        )
    )
    tiles = [_tile(x.shape, ratio) for x in pending]
    starts = _draw_starts(
        state.key, state.count, [x.shape for x in pending], tiles
    )

    blocks = [
        jax.lax.dynamic_slice(x, start, tile)
        for x, start, tile in zip(pending, starts, tiles)
    ]
    means = _means(blocks, axis_name)
    sent = jax.tree.unflatten(treedef, [
        jax.lax.dynamic_update_slice(jnp.zeros_like(x), mean, start)
        for x, mean, start in zip(pending, means, starts)
    ])
    residual = jax.tree.unflatten(treedef, [
        jax.lax.dynamic_update_slice(x, jnp.zeros_like(block), start)
        for x, block, start in zip(pending, blocks, starts)
    ])
    new_updates = jax.tree.map(lambda s, u: s.astype(u.dtype), sent, updates)
    return new_updates, state._replace(
        count=numerics.safe_increment(state.count),
        residual=residual,
        base_optimizer_state=base_optimizer_state,
    )

  return base.GradientTransformationExtraArgs(init_fn, update_fn)


def _means(blocks, axis_name):
  """The means of the blocks over workers; all of them travel in one message."""
  if axis_name is None or not blocks:
    return blocks
  message = jnp.concatenate([block.reshape(-1) for block in blocks])
  message = jax.lax.pmean(message, axis_name)
  sizes = [block.size for block in blocks]
  ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
  return [
      part.reshape(block.shape)
      for part, block in zip(jnp.split(message, ends), blocks)
  ]


def _num_tiles(shape, ratio):
  """The largest number of equal tiles, of about 1 / ratio of a tensor each."""
  size = math.prod(shape)
  num_tiles = max(1, size // max(1, int(size // ratio)))
  while size % num_tiles:
    num_tiles -= 1
  return num_tiles


def _tile(shape, ratio):
  """The shape of a tile, cut along the first axes that can be cut."""
  num_tiles = _num_tiles(shape, ratio)
  tile = []
  for axis in shape:
    cuts = math.gcd(axis, num_tiles) if axis else 1
    num_tiles //= cuts
    tile.append(axis // cuts)
  return tuple(tile)


def _draw_starts(key, count, shapes, tiles):
  """Draws a tile of every tensor, and returns where it starts."""
  key = jax.random.wrap_key_data(key, impl='threefry2x32')
  key = jax.random.fold_in(key, count)
  starts = []
  for leaf, (shape, tile) in enumerate(zip(shapes, tiles)):
    grid = [n // edge if edge else 1 for n, edge in zip(shape, tile)]
    drawn = jax.random.randint(
        jax.random.fold_in(key, leaf), (), 0, math.prod(grid)
    )
    places = jnp.unravel_index(drawn, grid) if grid else ()
    starts.append([place * edge for place, edge in zip(places, tile)])
  return starts
