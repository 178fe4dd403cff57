"""Workers of several devices: sharded inside by the compiler, error feedback across.

A worker is a slice of the mesh. Its parameters are sharded over its devices in any way (FSDP, tensor
parallel), and the compiler inserts what that takes. Across workers, nothing runs but the links of the
optimizer. Each device holds the residual of its own shards, cuts its block from them, and exchanges it with
the devices at the same place in the other workers: one all-reduce a step, as long as a device's block.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.checks import check_divisible, check_stacked, check_stacked_state
from def_jax.error_feedback import ErrorFeedbackState, detached_params, output_params
from def_jax.mesh.collectives import check_axis_name
from def_jax.mesh.ownership import check_specs, link_states, own_leaves, state_specs, tree_of_specs
from def_jax.mesh.shards import Shards, is_spec, spec_axes
from def_jax.mesh.varying import axis_names

PyTree = Any

__all__ = ['Spmd', 'spmd']


def spmd(
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    param_specs: PyTree = P(),  # noqa: B008
    axis_name: str | tuple[str, ...] = 'workers',
) -> 'Spmd':
    """An optimizer that communicates, on a mesh whose workers are one device each or several.

    The functions of the result take and return global arrays, for use inside one `jax.jit`:

        losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)

    Args:
        optimizer: a chain that contains a link, such as `error_feedback` with the same `axis_name`.
            Transformations around the link see whole tensors, so any optax optimizer works.
        mesh: axes over workers, and any number of axes over the devices within a worker. Its axes are all
            Auto or all Explicit.
        param_specs: how a worker's devices share the parameters: a PartitionSpec for all, or a pytree of them
            like the parameters. They name only axes within a worker.
        axis_name: the mesh axis over workers, or a tuple of axes.

    Returns:
        The functions, see `Spmd`.

    Raises:
        ValueError: if the mesh lacks an axis or mixes types of axes, or a spec names the workers' axis.

    >>> import jax, jax.numpy as jnp, optax, def_jax
    >>> mesh = jax.make_mesh((1, 1), ('workers', 'shard'))  # two nodes of eight devices: (2, 8)
    >>> optimizer = optax.chain(optax.adamw(0.1), def_jax.error_feedback(def_jax.random_block(2), 'workers'))
    >>> dist = def_jax.spmd(optimizer, mesh, jax.P('shard'))
    >>> params = {'w': jnp.ones(4)}
    >>> opt_state = dist.init(params)
    >>> loss_fn = lambda params, batch: jnp.mean((batch @ params['w']) ** 2)
    >>> losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, jnp.ones((8, 4)))
    >>> losses.shape, grads['w'].shape  # stacked over workers
    ((1,), (1, 4))
    >>> updates, opt_state = dist.update(grads, opt_state, params)
    >>> int((updates['w'] != 0).sum())
    2
    """
    check_axis_name(axis_name)
    _check_mesh(mesh, axis_name, param_specs)
    return Spmd(optimizer, mesh, param_specs, axis_name)


class Spmd:
    """What `spmd` returns: an optimizer's functions on global arrays.

    State and gradients are *stacked over workers*: per-worker values have a leading axis of size K, the
    number of workers, which is sharded over the workers' mesh axis. Parameters are not: they are replicated.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        param_specs: PyTree,
        axis_name: str | tuple[str, ...],
    ):
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.mesh, self.axis_name = mesh, axis_name
        self.param_specs = param_specs
        self._names = axis_names(axis_name)

    @property
    def num_workers(self) -> int:
        """K."""
        return math.prod(self.mesh.shape[name] for name in self._names)

    @property
    def shardings(self) -> PyTree:
        """The parameters' shardings, like `param_specs`: for `jax.device_put` and `jax.jit`."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.param_specs, is_leaf=is_spec)

    def init(self, params: PyTree) -> PyTree:
        """The first state, stacked over workers and sharded as `state_specs` says.

        Args:
            params: a pytree of arrays; their sharding need not be that of `param_specs` yet.

        Raises:
            ValueError: if `param_specs` has another structure, or a dimension does not divide.
        """

        def worker(params):
            return self._stack(self.optimizer.init(params), own_leaves(self.optimizer, params))

        params = self._place(params, self._specs(params))
        mapped = self._map(worker, (P(),), self._prefixes(params))
        return jax.jit(lambda p: self._place(mapped(p), self.state_specs(p)))(params)

    def value_and_grad(self, loss_fn: Callable, has_aux: bool = False) -> Callable:
        """A function that gives every worker's loss and gradient, taken at its own detached point.

        Args:
            loss_fn: `loss_fn(params, batch)`, a worker's loss on its own part of the batch, as for `jax.grad`
                of one worker: it may use sharded parameters in any way and knows nothing of other workers.
            has_aux: whether `loss_fn` returns a pair, the loss and auxiliary values.

        Returns:
            A function of params, opt_state and batch. The leading axis of every array of the batch is divided
            among the workers. It returns the losses [K], or a pair with stacked auxiliary values, and the
            gradients, like params with a leading axis of size K.

        Source: Algorithm 1, lines 4 to 6.
        """

        def worker(params, state, batch):
            return jax.value_and_grad(loss_fn, has_aux=has_aux)(self._point(params, state), batch)

        def losses_and_grads(params, opt_state, batch):
            losses, grads = self.map(worker)(params, opt_state, batch)
            specs = jax.tree.map(lambda spec: P(self.axis_name, *spec), self._specs(params), is_leaf=is_spec)
            return losses, self._place(grads, specs)

        return losses_and_grads

    def map(self, function: Callable) -> Callable:
        """A function that runs `function(params, state, batch)` on every worker, with results stacked.

        `params` are the replicated parameters, `state` is the worker's optimizer state, and collectives over
        `axis_name` may be used, so that functions for mapped code run here: `def_jax.diagnostics`,
        `def_jax.assert_replicated`.

        Returns:
            A function of params, opt_state and batch. The batch may be left out; the leading axes of its
            arrays are divided among the workers.
        """

        def worker(params, state, *batch):
            state = self._unstack(state, own_leaves(self.optimizer, params))
            return jax.tree.map(lambda x: lax.expand_dims(x, [0]), function(params, state, *batch))

        def mapped(params, opt_state, *batch):
            self._check_state(opt_state, params)
            in_specs = (P(), self._prefixes(params), *(P(self.axis_name) for _ in batch))
            params = self._place(params, self._specs(params))
            run = self._map(worker, in_specs, P(self.axis_name))
            return jax.jit(run)(params, opt_state, *self._divide(batch))

        return mapped

    def update(self, grads: PyTree, opt_state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        """One step of the optimizer, with the message that its link sends.

        Args:
            grads: stacked over workers, as `value_and_grad` returns them.
            opt_state: from `init` or the step before.
            params: the shared parameters x. The optimizer sees the detached point, at which weight decay is
                taken.

        Returns:
            The updates, to be added to the parameters, and the new state.

        Source: Algorithm 1, lines 7 to 10.
        """
        self._check_state(opt_state, params)
        check_stacked('grads', grads, params, self.num_workers)
        specs, own = self._specs(params), own_leaves(self.optimizer, params)
        shards = self._shards(specs)

        def worker(grads, state, params):
            state, grads = self._unstack(state, own), jax.tree.map(lambda g: lax.squeeze(g, [0]), grads)
            point = self._point(params, state)
            updates, state = self.optimizer.update(grads, state, point, shards=shards)
            return updates, self._stack(state, own)

        prefixes = self._prefixes(params)
        mapped = self._map(worker, (P(self.axis_name), prefixes, P()), (P(), prefixes))
        placed = (specs, self.state_specs(params))
        return jax.jit(lambda *args: self._place(mapped(*args), placed))(grads, opt_state, params)

    def output_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """DEF's output y = x + mean_k r_k, sharded like the parameters; one dense all-reduce across workers.

        Source: Algorithm 1, line 13.
        """
        self._check_state(opt_state, params)
        specs, own = self._specs(params), own_leaves(self.optimizer, params)

        def worker(params, state):
            return output_params(params, self._unstack(state, own), self.axis_name)

        mapped = self._map(worker, (P(), self._prefixes(params)), P())
        return jax.jit(lambda p, s: self._place(mapped(p, s), specs))(params, opt_state)

    def state_specs(self, params: PyTree) -> PyTree:
        """PartitionSpecs of the state, see `def_jax.state_specs`: for checkpoints and for `jax.jit`."""
        return state_specs(self.optimizer, params, self._specs(params), self.axis_name)

    def abstract_state(self, params: PyTree, num_workers: int | None = None) -> PyTree:
        """The state as `jax.ShapeDtypeStruct` with shardings: the target into which a checkpoint is restored.

        Args:
            params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
            num_workers: of the run that wrote the checkpoint, if it differs; see `regroup`.
        """
        size = self.num_workers if num_workers is None else num_workers
        stacked_over = self.axis_name if size == self.num_workers else None

        def leaf(x, mine, spec):
            shape, spec = ((size, *x.shape), P(stacked_over, *spec[1:])) if mine else (x.shape, spec)
            return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(self.mesh, spec))

        own = own_leaves(self.optimizer, params)
        return jax.tree.map(leaf, jax.eval_shape(self.optimizer.init, params), own, self.state_specs(params))

    def regroup(self, opt_state: PyTree, params: PyTree) -> PyTree:
        """The state of a run with another number of workers, for this one's.

        Every worker gets the mean of what the old workers had of their own: residuals, momenta. So x and y
        stay where they were, y up to the rounding of a float32 mean. Their differences from it are lost.
        If the number of workers is the same, so is the state, bit for bit.
        """
        own = own_leaves(self.optimizer, params)
        sizes = {
            jnp.shape(x)[:1]
            for x, mine in zip(jax.tree.leaves(opt_state), jax.tree.leaves(own), strict=False)
            if mine
        }
        (size,) = sizes.pop() if sizes else (self.num_workers,)
        check_stacked_state(opt_state, jax.eval_shape(self.optimizer.init, params), own, size)
        specs = self.state_specs(params)
        if size == self.num_workers:
            return self._place(opt_state, specs)

        def mean(x):
            return jnp.mean(x, axis=0, keepdims=True, dtype=jnp.float32).astype(x.dtype)

        def regroup(state):
            means = jax.tree.map(lambda x, mine: mean(x) if mine else x, state, own)
            return jax.tree.map(
                lambda x, mine: jnp.repeat(x, self.num_workers, axis=0) if mine else x, means, own
            )

        return jax.jit(lambda state: self._place(regroup(state), specs))(opt_state)

    def _map(self, worker: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Maps a function over workers, and leaves each worker's devices to the compiler."""
        return jax.shard_map(
            worker,
            mesh=self.mesh,
            axis_names=set(self._names),
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,
        )

    def _stack(self, state: PyTree, own: PyTree) -> PyTree:
        """A worker's state with an axis for its place among the workers, inside a mapped function."""
        return jax.tree.map(lambda x, mine: lax.expand_dims(x, [0]) if mine else x, state, own)

    def _unstack(self, state: PyTree, own: PyTree) -> PyTree:
        return jax.tree.map(lambda x, mine: lax.squeeze(x, [0]) if mine else x, state, own)

    def _point(self, params: PyTree, state: PyTree) -> PyTree:
        detached = any(isinstance(link, ErrorFeedbackState) for link in link_states(state))
        return detached_params(params, state) if detached else params

    def _shards(self, specs: PyTree) -> Shards:
        inside = {n: size for n, size in self.mesh.shape.items() if n not in self._names}
        return Shards(self.axis_name, tuple(inside), tuple(inside.values()), specs)

    def _specs(self, params: PyTree) -> PyTree:
        """The specs as a pytree like the parameters, every dimension checked."""
        specs = tree_of_specs(self.param_specs, params, self.axis_name)
        for (path, leaf), spec in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs, is_leaf=is_spec), strict=True
        ):
            check_divisible(f'params{jax.tree_util.keystr(path)}', leaf.shape, spec, self.mesh.shape)
        return specs

    def _prefixes(self, params: PyTree) -> PyTree:
        """Specs of the state that name only the workers' axis."""
        own = own_leaves(self.optimizer, params)
        return jax.tree.map(lambda mine: P(self.axis_name) if mine else P(), own)

    def _place(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Constrains or reshards the arrays of `tree`."""
        explicit = AxisType.Explicit in self.mesh.axis_types

        def place(x, spec):
            to = NamedSharding(self.mesh, spec)
            return jax.sharding.reshard(x, to) if explicit else lax.with_sharding_constraint(x, to)

        return jax.tree.map(place, tree, specs)

    def _divide(self, batch: PyTree) -> PyTree:
        """The batch, checked; on Explicit axes, with its leading axis sharded over the workers."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            shape = jnp.shape(leaf)
            if not shape or shape[0] % self.num_workers:
                raise ValueError(
                    f'batch{jax.tree_util.keystr(path[1:])} has shape {shape}, but its leading axis is '
                    f'divided among {self.num_workers} workers, so that many must divide it. Repeat what all '
                    'workers need, or let loss_fn close over it.'
                )
        if AxisType.Explicit not in self.mesh.axis_types:
            return batch
        return jax.tree.map(self._sharded_over_workers, batch)

    def _sharded_over_workers(self, x: Any) -> jax.Array:
        spec = jax.typeof(x).sharding.spec
        if (
            spec
            and tuple(spec[0] if isinstance(spec[0], tuple) else (spec[0],))[: len(self._names)]
            == self._names
        ):
            return x
        return jax.sharding.reshard(x, NamedSharding(self.mesh, P(self.axis_name)))

    def _check_state(self, opt_state: PyTree, params: PyTree) -> None:
        expected = jax.eval_shape(self.optimizer.init, params)
        check_stacked_state(opt_state, expected, own_leaves(self.optimizer, params), self.num_workers)


def _check_mesh(mesh: Any, axis_name: str | tuple[str, ...], param_specs: PyTree) -> None:
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"{mesh=} must be a jax.sharding.Mesh, e.g. jax.make_mesh((2, 4), ('workers', 'shard'))."
        )
    names = set(axis_names(axis_name))
    if not names or names - set(mesh.axis_names):
        raise ValueError(
            f'{axis_name=} must be an axis of the mesh, or a tuple of axes: it has {mesh.axis_names}.'
        )
    check_specs(param_specs, axis_name)
    for spec in jax.tree.leaves(param_specs, is_leaf=is_spec):
        if missing := spec_axes(spec) - set(mesh.axis_names):
            raise ValueError(
                f'{param_specs=} names {sorted(missing)}, but the mesh has {mesh.axis_names}. Name its axes, '
                'or make the mesh with more.'
            )
    if len(set(mesh.axis_types)) > 1 or AxisType.Manual in mesh.axis_types:
        raise ValueError(
            f'the mesh has axes of types {mesh.axis_types}; make it with all Auto or all Explicit axes: '
            'jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n).'
        )
