"""A chain that forgets a step which its error feedback skipped."""

import jax
import jax.numpy as jnp
import optax

from def_jax.error_feedback import choose, feedback_states, is_state

__all__ = ['hold_skipped']


def hold_skipped(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, except that a step which its `error_feedback` skips leaves all of its state as it was.

    Without it a NaN that `skip_nonfinite` keeps from the parameters stays in the momentum. Each of several
    `error_feedback`s in one chain (`optax.multi_transform`) decides for its own tensors; if one of them
    skips, the state of the other links is held.

    Args:
        optimizer: a chain that holds `error_feedback(..., skip_nonfinite=True)`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the same state.

    Raises:
        ValueError: in `update`, if the state holds no residual.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> optimizer = def_jax.hold_skipped(optax.chain(
    ...     optax.sgd(1.0, momentum=0.9),
    ...     def_jax.error_feedback(def_jax.random_block(1), None, skip_nonfinite=True)))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), state)
    >>> updates.tolist(), optax.tree.get(state, 'trace').tolist(), int(optax.tree.get(state, 'skipped'))
    ([0.0, 0.0], [0.0, 0.0], 1)
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def update_fn(updates, state, params=None, **extra_args):
        updates, new_state = optimizer.update(updates, state, params, **extra_args)
        before, after = (feedback_states(s, 'hold_skipped') for s in (state, new_state))
        taken = jnp.all(jnp.array([b.skipped == a.skipped for b, a in zip(before, after, strict=True)]))

        def hold(new, old):  # error_feedback has chosen already, and its count goes on
            return new if is_state(new) else choose(taken, new, old)

        return updates, jax.tree.map(hold, new_state, state, is_leaf=is_state)

    return optax.GradientTransformationExtraArgs(optimizer.init, update_fn)
