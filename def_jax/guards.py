"""Guards for every mapping: data-parallel training never compares its copies of the parameters.

A seed that differs between workers, a forgotten reduction or a bit flip in one device's memory lets them
drift apart unnoticed.
"""

import functools
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from def_jax.error_feedback import feedback_states
from def_jax.ground.arguments import leaf_names
from def_jax.ground.collectives import all_gather, num_workers, pmax
from def_jax.ground.random import is_typed
from def_jax.ground.types import AxisName, PyTree
from def_jax.options import skipping
from def_jax.state.ownership import each, per_worker_leaves
from def_jax.state.regrouping import check_whose

_GOLDEN = np.uint32(0x9E3779B1)  # odd
_LARGE = 4096  # elements of a leaf; of larger ones, about so many are compared


def all_finite(tree: PyTree, axis_name: AxisName) -> jax.Array:
    """Whether every number of every worker's tree is finite, bool [], the same on all workers.

    A verdict from a worker's own gradient, as `jnp.isfinite(loss)`, differs between workers; if it decides
    which parameters are kept, their copies drift apart. It costs an all-reduce of one number. To skip steps
    with NaN, pass `skip_nonfinite=True` to `error_feedback`, which needs none.

    Args:
        tree: arrays, such as worker k's gradient.
        axis_name: see `error_feedback`.

    Raises:
        ValueError: if `axis_name` is not bound.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> verdict = jax.vmap(lambda g: def_jax.all_finite(g, 'workers'), axis_name='workers')
    >>> verdict(jnp.array([1.0, jnp.nan])).tolist()
    [False, False]
    """
    return skipping.finite_on_all(tree, axis_name)


def debug(params: PyTree, opt_state: PyTree, axis_name: AxisName) -> None:
    """Raises if copies of x differ, a worker has another's state or none, or all have had one gradient.

    Call it in the mapped step, after the update, while a trainer is being wired; it costs a pass over the
    model and an all-reduce of 8,192 numbers a tensor at most. Copies of x differ if something that workers do
    not exchange decides about x, such as another seed. A state belongs to another worker if one copy was
    restored for all, or in another order; there is none after a wrapper that resets it. From the second step
    on, the workers' moments (or residuals, if `inner` has no moments) agree if gradients are averaged before
    the update, by a `pmean` that was left in, or, with 32 bits, if all workers are given the same data. In
    few bits residuals show an average in the first steps only: call this from the first step on. With
    `average_every` and no moments, residuals do agree after a step that averages them: call this at others.
    It communicates, so `check` a step without it.

    Args:
        params, opt_state: x and worker k's optimizer state, after the update.
        axis_name: see `error_feedback`. Together with the axes of `inside`, as ('nodes', 'gpus'), a worker's
            devices are compared, too.

    Raises:
        ValueError: as `assert_replicated`, from a host callback, also if x or a residual is not finite; at
            once if `opt_state` holds no residual or `axis_name` is not bound.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(4), 'workers')
    >>> def step(gradient):
    ...     _, state = optimizer.update(gradient, optimizer.init(jnp.zeros(8)))
    ...     updates, state = optimizer.update(gradient, state)
    ...     def_jax.debug(updates, state, 'workers')
    >>> jax.vmap(step, axis_name='workers')(jnp.arange(16.0).reshape(2, 8))  # two workers that differ
    """
    states = feedback_states(opt_state, 'debug')
    shared = each(lambda mine, x: None if mine else x, per_worker_leaves(opt_state), opt_state)
    if axis_name is not None:
        assert_replicated({'params': params, 'opt_state': shared}, axis_name)
    residuals, inner = [state.residual for state in states], [state.inner for state in states]
    moments = [x for x in jax.tree.leaves(inner) if x.size > 1 and jnp.issubdtype(x.dtype, jnp.floating)]
    # Of Lion and others whose updates are signs, many entries of the residuals agree by chance.
    agree = _agree(moments or residuals, axis_name)
    due = states[0].step >= 2
    finite = skipping.all_finite((params, residuals))
    numbers = [all_gather(state.worker, axis_name) for state in states]
    # An update numbers the workers, or at least counts a step.
    new = jnp.array([(state.step == 0) & jnp.all(state.worker == -1) for state in states]).any()

    def raise_if(agree: np.ndarray, finite: np.ndarray, numbers: list[np.ndarray], new: np.ndarray) -> None:
        if not finite:  # NaN agrees with NaN
            raise ValueError(
                'x or a residual is not finite: training has diverged. Lower the learning rate; that of '
                'def_sgd is the rate of optax.sgd(rate, momentum=0.9), unless you pass momentum= as well.'
            )
        for of_link in numbers:
            check_whose(np.asarray(of_link), 'debug')
        if new:
            raise ValueError(
                'debug: opt_state is as init returns it: something resets the state, as '
                'optax.lookahead(reset_state=True) does, and residuals are lost. Keep it, by '
                'reset_state=False. Before the first update, there is nothing to debug.'
            )
        if agree:
            workers = np.asarray(numbers[0])[..., 1].max()  # of several devices each, perhaps
            raise ValueError(
                f'all {workers} workers have the same residual or moments, of different gradients: these are '
                'averaged before the update, all workers are given the same data, or the state of one was '
                'restored for all. Take out jax.lax.pmean of the gradients, and axis_name= or '
                'pmap_axis_name= of the helpers that compute them; save with stack_state.'
            )

    several = (num_workers(axis_name) > 1) & (states[0].worker[1] != 1)  # of one, all devices have the same
    jax.debug.callback(raise_if, agree & due & several, finite, numbers, new)


def assert_replicated(tree: PyTree, axis_name: AxisName) -> None:
    """Raises unless the arrays of `tree` are identical on all workers, bit for bit.

    In a mapped function, an all-reduce of two integers per leaf compares checksums, and a host callback
    raises. A compiled program re-raises the error as a `jax.errors.JaxRuntimeError` whose text ends with the
    original message, when a result is awaited or `jax.effects_barrier()` is called, and again at every later
    barrier: treat it as fatal. The check reads the whole tree, so call it every so many steps, in a separate
    small program.

    Args:
        tree: values that should be the same on all workers, such as parameters, keys and step counts; not the
            residual.
        axis_name: the mapped axis over workers, a tuple of axes, or None outside a mapped function, where the
            copies of each array are fetched from the devices and compared, also those of other processes:
            all must call it.

    Raises:
        ValueError: naming the leaves that differ; if `axis_name` is not bound; or if it is None, and no
            device holds what another does.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> check = jax.vmap(lambda params: def_jax.assert_replicated(params, 'workers'), axis_name='workers')
    >>> check({'w': jnp.ones((2, 3))})  # two workers that agree
    """
    names = leaf_names(tree)
    if not names:
        return
    if axis_name is None:
        _raise_if(names, _copies_differ(jax.tree.leaves(tree)))
        return
    differ = ~_same(checksums(tree), axis_name)
    jax.debug.callback(functools.partial(_raise_if, names), differ)


def _agree(tree: PyTree, axis_name: AxisName) -> jax.Array:
    """Whether an eighth at least of what is not zero in every large leaf has the same bits on all workers.

    Not all of it: in few bits, a worker keeps what the second rounding takes from its part of a block. And in
    every large leaf: weight decay alone moves the rows of an embedding that no worker's data name.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    if not leaves:
        return jnp.bool_(False)
    large = [leaf for leaf in leaves if leaf.size >= _LARGE] or leaves
    samples = [jnp.ravel(leaf)[:: -(-leaf.size // _LARGE)].astype(jnp.float32) for leaf in large]
    samples = [jnp.where(_repeats(sample), 0, sample) for sample in samples]
    bits = jnp.concatenate([_words(sample) for sample in samples])
    same = jnp.split(_same(bits, axis_name), np.cumsum(list(map(len, samples)))[:-1])
    counts = [(jnp.sum(each & (x != 0)), jnp.sum(x != 0)) for each, x in zip(same, samples, strict=True)]
    agree = jnp.array([8 * equal >= jnp.maximum(anything, 1) for equal, anything in counts])
    return jnp.all(agree | jnp.array([anything == 0 for _, anything in counts])) & jnp.any(agree)


def _repeats(x: jax.Array) -> jax.Array:
    """Whether these numbers have so few values, as signs do, that workers' may agree by chance."""
    ordered, nonzero = jnp.sort(x), jnp.sum(x != 0)
    alike = jnp.searchsorted(ordered, x, side='right') - jnp.searchsorted(ordered, x) - 1
    return 8 * jnp.sum(jnp.where(x != 0, alike, 0)) > nonzero * (nonzero - 1)  # an eighth of pairs


def _same(numbers: jax.Array, axis_name: AxisName) -> jax.Array:
    """Which of these uint32 [n] are the same on all workers, bool [n]."""
    # A single collective finds the largest and, by complement, the smallest.
    largest = pmax(jnp.concatenate([numbers, ~numbers]), axis_name)
    return largest[: len(numbers)] == ~largest[len(numbers) :]


def checksums(tree: PyTree) -> jax.Array:
    """A checksum of the bits of every leaf, uint32 [leaves]; a change within 32 bits of it always changes it.

    It is their sum modulo 2^32, each times an odd number that depends on its position, and mixed: else what
    changes the same bits of all, such as a sign or a factor of 2, would cancel in the sum.
    """

    def checksum(leaf):
        words = _words(leaf)
        odd = (lax.iota(jnp.uint32, words.size).reshape(words.shape) * _GOLDEN) | jnp.uint32(1)
        mixed = words * odd
        mixed = (mixed ^ (mixed >> 16)) * _GOLDEN  # one to one, as is the next line
        return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)

    return jnp.array([checksum(leaf) for leaf in jax.tree.leaves(tree)], jnp.uint32)


def _raise_if(names: list[str], differ: np.ndarray) -> None:
    wrong = [name for name, differs in zip(names, np.asarray(differ), strict=True) if differs]
    if wrong:
        more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise ValueError(
            f'the workers do not agree on {", ".join(wrong[:3])}{more}: their copies should be identical, '
            'bit for bit.'
        )


def _words(leaf: Any) -> jax.Array:
    """The bits of an array as uint32; wider elements give several."""
    x = jnp.asarray(leaf)
    if is_typed(x):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, word).astype(jnp.uint32)


def _copies_differ(leaves: list[Any]) -> np.ndarray:
    """Whether devices that should hold the same part of an array hold different bits, bool [leaves]."""
    parts = [_parts(leaf) for leaf in leaves]
    width = max(map(len, parts))
    own = np.array([part + part[:1] * (width - len(part)) for part in parts], np.uint32)
    found = np.concatenate(multihost_utils.process_allgather(own), axis=1)  # [leaves, parts, 2]
    counts = [len(part) * jax.process_count() for part in parts]  # of devices that hold a part of a leaf
    kinds = [(count, len({*part[:, 0]})) for count, part in zip(counts, found, strict=True) if count > 1]
    if kinds and all(count == different for count, different in kinds):
        raise ValueError(
            'no two devices hold the same part of these arrays, so there is nothing to compare. Those of '
            'jax.pmap are stacked over workers: call it in the mapped function, with axis_name.'
        )
    return np.array([len({*map(tuple, part)}) > len({*part[:, 0]}) for part in found])


def _parts(leaf: Any) -> list[tuple[int, int]]:
    """Checksums of which part of an array each device of this process holds, and of its bits."""
    if not isinstance(leaf, jax.Array):
        return [(0, zlib.crc32(np.asarray(leaf).tobytes()))]
    if is_typed(leaf):
        leaf = jax.random.key_data(leaf)
    return [
        (zlib.crc32(str(shard.index).encode()), zlib.crc32(np.asarray(shard.data).tobytes()))
        for shard in leaf.addressable_shards
    ]
