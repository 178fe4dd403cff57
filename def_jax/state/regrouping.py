"""An optimizer's state as it is saved, and as another number of workers goes on with it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.ground.arguments import check_integer, named_leaves
from def_jax.ground.random import is_typed
from def_jax.ground.types import PyTree
from def_jax.state.ownership import each, is_link, link_states, no_residual, per_worker_leaves

_REMEDY = (
    'Save def_jax.stack_state(opt_state) of what the step returns, without flax.jax_utils.unreplicate or '
    '[0]; or train on from x with a new state, optimizer.init(params). If there is one worker in all, pass '
    'jax.tree.map(lambda x: x[None], opt_state)'
)
_FEW = 1024  # elements of a replicated leaf, of which all workers' copies are compared


def regroup(tree: PyTree, own: PyTree, before: tuple[int, ...], after: tuple[int, ...]) -> PyTree:
    """Gives every worker the mean of the old workers' values, of integers the greatest.

    As many workers keep their own. Of typed keys, worker i gets that of the old worker i modulo K. Workers
    are numbered anew at the next update. So x stays, and y up to the rounding of a float32 mean. `before` and
    `after` are the leading axes of what `own`, booleans like the tree or a prefix, calls per-worker: [K], or
    e.g. [devices, virtual workers].

    >>> regroup({'step': np.uint32(3), 'm': np.array([[1.0], [3.0]])}, {'step': False, 'm': True}, (2,), (3,))
    {'m': array([[2.],
           [2.],
           [2.]]), 'step': np.uint32(3)}
    """
    same = math.prod(before) == math.prod(after)

    def leaf(mine, x):
        if not mine:
            return x
        shape = (*after, *x.shape[len(before) :])
        if same:
            return x.reshape(shape)
        if is_typed(x):
            old = x.reshape(math.prod(before), *x.shape[len(before) :])
            return old[np.arange(math.prod(after)) % len(old)].reshape(shape)
        library, wide = (jnp, np.float32) if isinstance(x, jax.Array) else (np, np.float64)
        axes = tuple(range(len(before)))
        of_all = x.max(axes) if jnp.issubdtype(x.dtype, jnp.integer) else x.mean(axes, dtype=wide)
        return library.broadcast_to(of_all.astype(x.dtype), shape)

    regrouped = each(leaf, own, tree)
    return regrouped if same else released(regrouped)


def released(tree: PyTree) -> PyTree:
    """A state without the numbers of its workers, which any workers may take over."""

    def release(node: Any) -> Any:
        if not is_link(node) or not hasattr(node, 'worker'):
            return node
        library = jnp if isinstance(node.worker, jax.Array) else np
        return node._replace(worker=library.full_like(node.worker, -1))

    return jax.tree.map(release, tree, is_leaf=is_link)


def check_whose(numbers: np.ndarray, caller: str, *, all_workers: bool = True) -> None:
    """Raises ValueError unless stacked states are those of workers 0, 1, ..., K - 1, as they themselves say.

    `numbers`, int [..., 2], are `worker` of `ErrorFeedbackState`, the same on a worker's devices, which
    are neighbours. Of some workers, of one process, the first may be any.
    """
    numbers = numbers.reshape(-1, 2)
    if (numbers == -1).all():
        return
    own, counts = numbers.T
    size = np.count_nonzero(own == own[0])
    expected = (0 if all_workers else own[0]) + np.arange(own.size) // size
    count = own.size // size if all_workers else counts[0]
    if (own != expected).any() or (counts != count).any() or count < 1:
        shown = ', '.join(map(str, own[:8])) + (', ...' if own.size > 8 else '')
        of = ', with which others have gone on' if counts.min() < 0 else f' of {counts[0]}'
        raise ValueError(
            f'{caller}: these are states of the workers {shown}{of}, but must be those of 0, 1, ... in this '
            'order, all of them: other residuals are lost. Restore what def_jax.stack_state has saved, for '
            'another number of workers by def_jax.unstack_state(saved, num_workers), or of def_jax.spmd, as '
            'abstract_state(params, num_workers=...) has it, for regroup; orbax with strict=False cuts it. '
            'Or train on from x with a new state, optimizer.init(params).'
        )


def check_workers(opt_state: PyTree, caller: str) -> None:
    """`check_whose` of a stacked state, unless it is traced, or other processes hold parts of it."""
    for state in link_states(opt_state):
        numbers = getattr(state, 'worker', None)
        unknown = isinstance(numbers, jax.core.Tracer) or not getattr(numbers, 'is_fully_addressable', True)
        if numbers is not None and np.ndim(numbers) > 1 and not unknown:
            check_whose(np.asarray(numbers), caller)


def num_stacked(tree: PyTree, own: PyTree, otherwise: int) -> int:
    """The number of workers over which a tree is stacked, by its first per-worker array, if it has one."""
    arrays = zip(jax.tree.leaves(tree), jax.tree.leaves(own), strict=False)
    return next((np.shape(x)[0] for x, mine in arrays if mine and np.ndim(x)), otherwise)


def stack_state(opt_state: PyTree) -> PyTree:
    """The state to save, from what a step of `jax.pmap`, `jax.shard_map` or `jax.jit` returns.

    Taking one worker's copy, as `flax.jax_utils.unreplicate` or `[0]` do, loses the residuals of all others.

    Args:
        opt_state: with a leading axis [K] on every leaf, as from `jax.pmap`; on what is per-worker, as from
            `jax.shard_map` with `state_specs`; or on none, as from `out_axes=None`, whose shards, which may
            differ, are read one by one. Of several processes, each saves the workers of its own devices.

    Returns:
        The state in NumPy arrays, but for typed keys, which NumPy can't hold. Per-worker leaves are stacked
        over workers, [K, ...]; the others are as `init` makes them.

    Raises:
        ValueError: if the state holds nothing that is per-worker; if it is one worker's copy: its arrays
            have no common leading axis, or all workers of several have one `inner` and one residual that is
            not zero, as `average_every` without momentum has; if it is a state of other workers, or of only
            some; or if workers disagree on a count or a key.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(2), 'workers')
    >>> state = jax.pmap(optimizer.init)(jnp.zeros((1, 4)))
    >>> saved = def_jax.stack_state(state)
    >>> saved.residual.shape, saved.step.shape
    ((1, 4), ())
    """
    return _stacked(opt_state, 'stack_state')


def _stacked(opt_state: PyTree, caller: str) -> PyTree:
    own = per_worker_leaves(opt_state)
    everywhere = any(np.ndim(getattr(state, 'step', 0)) for state in link_states(opt_state))

    def leaf(path: Any, mine: bool, x: Any) -> np.ndarray | jax.Array:
        # Copies on several devices may differ, though the array's type says that they don't.
        whole = isinstance(x, jax.Array) and x.is_fully_replicated and len(x.sharding.device_set) > 1
        if has_copies := whole and not any(getattr(x.sharding, 'spec', ())):  # nor stacked over one worker
            shards = sorted(x.addressable_shards, key=lambda shard: shard.device.id)
            copies = [_fetched(shard.data) for shard in shards]
            x = (jnp if is_typed(x) else np).stack(copies)
        stacked = _fetched(x)
        if mine or not (everywhere or has_copies):
            return stacked
        same = stacked == stacked[:1]
        if not is_typed(stacked):
            nan = stacked != stacked  # of a run that has diverged
            same |= nan & nan[:1]
        if stacked[0].size <= _FEW and not same.all():
            raise ValueError(
                f'{caller}: workers have different opt_state{jax.tree_util.keystr(path)}, which should be '
                'the same on all: some kept a step that others did not, and their copies of x differ, too. '
                'Decide by def_jax.all_finite, or pass skip_nonfinite=True to def_jax.error_feedback.'
            )
        return stacked[0]

    return _checked(jax.tree.map_with_path(leaf, own, opt_state), own, caller)


def _may_be_alike(numbers: np.ndarray) -> bool:
    """Whether states are of one worker's devices, or of workers that have just taken over others' states."""
    own, counts = numbers.T
    of_one = (own == own[0]).all() and counts.max() * len(own) <= jax.device_count()  # here, of a process
    return bool((numbers == -1).all() or (counts == 1).all() or of_one)


def unstack_state(saved: PyTree, num_workers: int | None = None) -> PyTree:
    """Undoes `stack_state` for `jax.pmap`: every leaf with a leading axis [K].

    For `jax.shard_map`, pass the saved state as it is to `jax.device_put` with `state_specs`.

    Args:
        saved: from `stack_state`, or what `jax.pmap` returned.
        num_workers: K; by default, that of the saved state. With another, each worker gets the mean of what
            the old ones had, so x stays where it is, and y up to rounding. Integers are taken for counts, of
            which it gets the greatest: of moments in eight bits inside, train on with a new state instead.

    Raises:
        ValueError: as `stack_state`: it was one worker's copy that was saved; or if `num_workers` is no
            positive integer.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(2), 'workers')
    >>> saved = def_jax.stack_state(jax.pmap(optimizer.init)(jnp.zeros((1, 4))))
    >>> def_jax.unstack_state(saved, num_workers=3).residual.shape
    (3, 4)
    """
    if num_workers is not None:
        check_integer('num_workers', num_workers, 1, 'K, of those who go on')
    # It may have been saved as jax.pmap has it, or restored to every device.
    saved = _stacked(jax.tree.map(_fetched, saved), 'unstack_state')
    own = per_worker_leaves(saved)
    before = num_stacked(saved, own, 1)
    workers = num_workers or before
    saved = regroup(saved, own, (before,), (workers,))

    def leaf(mine: bool, x: Any) -> np.ndarray | jax.Array:
        return x if mine else (jnp if is_typed(x) else np).broadcast_to(x, (workers, *x.shape))

    return each(leaf, own, saved)


def _fetched(x: Any) -> np.ndarray | jax.Array:
    """In NumPy; of typed keys, on the default device."""
    if not is_typed(x):
        return np.asarray(x)
    words = jax.device_get(jax.random.key_data(x))
    return jax.random.wrap_key_data(jnp.asarray(words), impl=jax.random.key_impl(x))


def _checked(saved: PyTree, own: PyTree, caller: str) -> PyTree:
    """The stacked state, or a ValueError if it is no worker's, or one worker's, as far as arrays tell."""
    leaves = zip(named_leaves(saved), jax.tree.leaves(own), strict=True)
    leading = {np.shape(x)[:1]: f'opt_state{path} {np.shape(x)}' for (path, x), mine in leaves if mine}
    if not leading:
        raise no_residual(saved, caller)
    if len(leading) > 1 or () in leading:
        raise ValueError(
            f"{caller}: this is one worker's state, and the residuals of the others are lost: what is "
            'per-worker has no common leading axis over workers, but the shapes '
            f'{", ".join(leading.values())}. {_REMEDY}.'
        )
    workers = num_stacked(saved, own, 1)
    for state in link_states(saved):
        inner = jax.tree.leaves(getattr(state, 'inner', ()))
        kept = {*state.per_worker} - {'inner', 'worker', 'left_out'}  # residuals, whatever a link calls them
        residuals = jax.tree.leaves([getattr(state, name) for name in sorted(kept)])
        held = residuals + inner
        numbers = getattr(state, 'worker', None)
        alike = numbers is not None and _may_be_alike(np.asarray(numbers).reshape(-1, 2))
        several = workers > 1 and not alike and any(x.any() for x in residuals)
        if several and all((x == x[:1]).all() for x in held):
            raise ValueError(
                f'{caller}: all {workers} workers have the same residual, so this is the copy of one of them '
                f'(or all are given the same data). {_REMEDY}.'
            )
        if numbers is not None:
            check_whose(numbers, caller, all_workers=jax.process_count() == 1)
    return saved
