"""The measured programs: the optimizer stage alone, with the detached point, and within a whole step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import def_jax
from benchmarks import timing

__all__ = ['LEAST_PASSES', 'WITHOUT_MOMENTUM', 'network_step', 'stage', 'stage_with_point', 'update']

# The minimum over memory: a step reads g, m and r and writes m and r; momentum SGD has x instead of r. The
# message is too small to count.
LEAST_PASSES = 5
WITHOUT_MOMENTUM = 3  # g and r, and r; x only where it is sent

PyTree = Any


def update(optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree, grads: PyTree):
    """The optimizer stage."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def stage(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree) -> timing.Stage:
    """The optimizer stage for given gradients."""
    state = jax.tree.map(jnp.copy, params), optimizer.init(params)
    return timing.compile_stage(functools.partial(update, optimizer), state, grads)


def stage_with_point(optimizer: optax.GradientTransformation, params: PyTree, grads: PyTree) -> timing.Stage:
    """The stage, after a program that overwrites the detached point of the previous step."""
    point, params, opt_state = *(jax.tree.map(jnp.copy, params) for _ in range(2)), optimizer.init(params)

    def detached(point, params, opt_state):
        del point
        return def_jax.detached_params(params, opt_state)

    detach = timing.compiled(detached, point, params, opt_state, donate=[0])
    plain = timing.compiled(functools.partial(update, optimizer), params, opt_state, grads, donate=[0, 1])

    def step(state):
        point, params, opt_state = state
        return detach(point, params, opt_state), *plain(params, opt_state, grads)

    return timing.Stage(step, (point, params, opt_state), programs=[detach, plain])


def network_step(
    model, optimizer: optax.GradientTransformation, images: tuple[int, ...], *, detaches: bool
) -> tuple[Callable, tuple]:
    """A whole step with a network's gradient on images of shape `images`, and the shapes of its arguments."""

    def step(params, opt_state, batch_stats, images):
        def loss_fn(point):
            variables = {'params': point, 'batch_stats': batch_stats}
            logits, _ = model.apply(
                variables, images, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)}
            )
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])

        point = def_jax.detached_params(params, opt_state) if detaches else params
        return update(optimizer, params, opt_state, jax.grad(loss_fn)(point))

    def arguments():
        variables = model.init(jax.random.key(0), jnp.zeros(images), train=False)
        params = variables['params']
        return params, optimizer.init(params), variables['batch_stats'], jnp.zeros(images)

    return step, jax.eval_shape(arguments)
