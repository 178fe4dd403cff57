"""Workers of several devices: sharded inside by the compiler, error feedback across.

A worker is a slice of the mesh. Its parameters are sharded over its devices in any way (FSDP, tensor
parallel), and the compiler inserts what that takes. Across workers, nothing runs but the links of the
optimizer. Each device holds the residual of its own shards, cuts its block from them, and exchanges it with
the devices at the same place in the other workers: one all-reduce a step, as long as a device's block.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from def_jax.checks import (
    check_floating,
    check_integer,
    check_leading_axis,
    check_stacked,
    check_stacked_state,
)
from def_jax.error_feedback import output_params
from def_jax.mesh.collectives import check_axis_name
from def_jax.mesh.link import link_states
from def_jax.mesh.ownership import abstract_state, own_leaves, state_specs
from def_jax.mesh.regrouping import num_stacked, regroup
from def_jax.mesh.specs import check_divisible, tree_of_specs, with_specs
from def_jax.mesh.spmd import accumulation, after_link, at_points
from def_jax.mesh.spmd.eager import Recent, compiled_method, compiled_once, signature
from def_jax.mesh.spmd.trained import combined, like, trained, untrained
from def_jax.mesh.spmd.transformation import Transformation
from def_jax.mesh.worker_mesh import WorkerMesh, check_mesh
from def_jax.traffic import crossing
from def_jax.traffic.hlo import Collective
from def_jax.types import PyTree

__all__ = ['Spmd', 'spmd']


def spmd(
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    param_specs: PyTree = P(),  # noqa: B008
    axis_name: str | tuple[str, ...] = 'workers',
    *,
    accumulate: int = 1,
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
            like the parameters or a prefix of these; NamedShardings and None are taken as well. They name
            only axes within a worker.
        axis_name: the mesh axis over workers, or a tuple of axes.
        accumulate: calls of `update` per step of the optimizer, which takes the mean of their gradients and
            sends its message at the last of them; updates are zero at the others. In place of
            `optax.MultiSteps`.

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
    check_integer('accumulate', accumulate, 1, 'calls of update per step')
    check_mesh(mesh, axis_name, param_specs)
    return Spmd(optimizer, mesh, param_specs, axis_name, accumulate)


class Spmd(Transformation):
    """What `spmd` returns: an optimizer's functions on global arrays.

    State and gradients are *stacked over workers*: per-worker values have a leading axis of size K, the
    number of workers, which is sharded over the workers' mesh axis. Parameters are not: they are replicated.
    Leaves of the parameters that are no floating-point arrays (functions, integers) are not trained.

    It is an optax transformation itself, for what takes one: `TrainState.create(tx=...)`.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        param_specs: PyTree,
        axis_name: str | tuple[str, ...],
        accumulate: int = 1,
    ):
        self.optimizer = self._inner = optax.with_extra_args_support(optimizer)
        if accumulate > 1:  # for its state; `update` decides for all workers at once when to send
            self.optimizer = optax.MultiSteps(optimizer, accumulate).gradient_transformation()
        self.mesh, self.axis_name, self.param_specs = mesh, axis_name, param_specs
        self._workers, self._accumulate = WorkerMesh(mesh, axis_name), accumulate
        self._programs = Recent()
        self._params: PyTree = None  # abstract: those of the last update that was traced, for `check`

    @property
    def num_workers(self) -> int:
        """K."""
        return self._workers.num_workers

    @property
    def shardings(self) -> PyTree:
        """The parameters' shardings, like `param_specs`: for `jax.device_put` and `jax.jit`."""
        return self._workers.shardings(with_specs(self.param_specs))

    def init(self, params: PyTree) -> PyTree:
        """The first state, stacked over workers and sharded as `state_specs` says.

        Args:
            params: a pytree of arrays; their sharding need not be that of `param_specs` yet.

        Raises:
            ValueError: if a parameter has no spec, or a dimension does not divide.
        """
        params = trained(params)
        return self._init(self._workers.place(params, self._specs(params)))

    @compiled_method
    def _init(self, params):
        init = self._workers.map(self.optimizer.init, (False,), own_leaves(self.optimizer, params))
        return self._workers.auto(init, self.state_specs(params))(params)

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
        gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)
        run = functools.partial(self._at_points, gradient, (1,), ())
        return self._remembered((signature(loss_fn), has_aux), run)

    def at_points(
        self, grad_fn: Callable, split: tuple[int, ...] = (1,), keys: tuple[int, ...] = ()
    ) -> Callable:
        """Any gradient function of yours, run on every worker at its own detached point.

        Args:
            grad_fn: takes the parameters first, e.g. `jax.value_and_grad(loss_fn, has_aux=True)`, and then
                whatever arguments it likes.
            split: positions of the arguments whose arrays are divided among the workers, by their leading
                axis.
            keys: positions of PRNG keys, or trees of them, which are folded with the worker's number.

        Returns:
            A function of `params, opt_state, *args, **kwargs`, the arguments of `grad_fn` after the first.
            What is in neither `split` nor `keys` is the same for all workers: of a key there, all draw the
            same random numbers. Results are stacked over workers.

        Outside of `jax.jit`, it is compiled once for each `grad_fn` and the variables that this reads from
        around it; arguments that are no arrays are part of the program. `mesh.spmd.at_points` maps it.

        Source: Algorithm 1, lines 4 to 6.

        >>> import jax, jax.numpy as jnp, def_jax
        >>> dist = def_jax.spmd(def_jax.def_sgd(0.1, 2, 'workers'), jax.make_mesh((1,), ('workers',)))
        >>> params = jnp.ones(4)
        >>> grad_fn = jax.grad(lambda w, rows, power: jnp.mean((rows @ w) ** power))
        >>> dist.at_points(grad_fn)(params, dist.init(params), jnp.ones((8, 4)), power=2).shape
        (1, 4)
        """
        at_points.check_arguments(split, keys)
        run = functools.partial(self._at_points, grad_fn, split, keys)
        return self._remembered((signature(grad_fn), split, keys), run)

    def _remembered(self, key, run):
        """Where it was asked for before, the function that may be compiled already."""
        return self._programs.get(key, lambda: functools.partial(self._on_mesh, compiled_once(run)))

    def _on_mesh(self, compiled, params, opt_state, *args, **kwargs):
        weights, opt_state = self._placed(params, opt_state)  # so that it runs on the mesh
        return compiled(combined(params, weights), opt_state, *args, **kwargs)

    def _at_points(self, grad_fn, split, keys, params, opt_state, *args, **kwargs):
        weights = trained(params)
        own, specs = own_leaves(self.optimizer, weights), self._stacked_specs(weights)
        axes = jax.tree.map(lambda mine: 0 if mine else None, own)
        points = jax.vmap(at_points.point, in_axes=(None, axes), axis_size=self.num_workers)
        points = self._workers.auto(points, specs)(weights, opt_state)

        def at_point(point, rest, *args, **kwargs):
            return grad_fn(combined(rest, point), *args, **kwargs)

        args = untrained(params), *args
        results = at_points.run(self._workers, at_point, points, args, kwargs, split, keys)
        return at_points.placed_gradients(self._workers, results, points, specs)

    def map(self, function: Callable) -> Callable:
        """A function that runs `function(params, state, batch)` on every worker, with results stacked.

        `params` are the replicated parameters, `state` is the worker's optimizer state, and collectives over
        `axis_name` may be used, so that functions for mapped code run here: `def_jax.diagnostics`,
        `def_jax.assert_replicated`. All axes of the mesh are Auto inside.

        Returns:
            A function of params, opt_state and batch. The batch may be left out; the leading axes of its
            arrays are divided among the workers.
        """
        return self._remembered(signature(function), functools.partial(self._map, function))

    def _map(self, function, params, opt_state, *batch):
        weights = trained(params)
        divided = at_points.divide(self._workers, batch, 'batch')
        own = False, own_leaves(self.optimizer, weights), *(True for _ in batch)
        mapped = self._workers.map(function, own, True)
        if self._workers.explicit:
            mapped = self._workers.auto(mapped, P(self.axis_name))
        return mapped(weights, opt_state, *divided)

    def update(
        self, grads: PyTree, opt_state: PyTree, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        """One step of the optimizer, with the message that its link sends.

        Args:
            grads: stacked over workers, as `value_and_grad` and `at_points` return them.
            opt_state: from `init` or the step before.
            params: the replicated parameters x. Transformations before the link see the detached point, at
                which weight decay is taken; those after or around it see x.
            extra_args: of the optimizer, the same for all workers, e.g. `value=tx.mean(losses)`.

        Raises:
            ValueError: if arguments do not belong together, or an extra one is stacked; if a transformation
                would make the copies of x drift apart, or keeps the link from sending by shards.

        Source: Algorithm 1, lines 7 to 10.
        """
        params, opt_state = self._placed(params, opt_state)
        check_stacked('grads', grads := like(params, grads), params, self.num_workers)
        grads = self._workers.place(grads, self._stacked_specs(params))
        return self._update(grads, opt_state, params, extra_args)

    @compiled_method
    def _update(self, grads, opt_state, params, extra_args):
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        specs = self._specs(params)

        def send(grads, opt_state):
            arguments = grads, opt_state, params, extra_args
            return after_link.run(self._workers, self._inner, specs, *arguments)

        if self._accumulate == 1:
            return send(grads, opt_state)
        zeros = self._workers.place(optax.tree.zeros_like(params), specs)
        return accumulation.update(send, self._accumulate, grads, opt_state, zeros)

    def output_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """DEF's output y = x + mean_k r_k, sharded like the parameters; one dense all-reduce across workers.

        Source: Algorithm 1, line 13.
        """
        weights, opt_state = self._placed(params, opt_state)
        return combined(params, self._output_params(weights, opt_state))

    @compiled_method
    def _output_params(self, params, opt_state):
        output = functools.partial(output_params, axis_name=self.axis_name)
        mapped = self._workers.map(output, (False, own_leaves(self.optimizer, params)), False)
        return self._workers.auto(mapped, self._specs(params))(params, opt_state)

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over workers of floating-point values that `at_points` or `map` returned."""
        check_floating(tree, 'tree', 'Make a float32 of a count first; leave out seeds and keys.')
        check_leading_axis(tree, self.num_workers)
        return jax.tree.map(lambda x: x.mean(0), tree)

    def state_specs(self, params: PyTree) -> PyTree:
        """PartitionSpecs of the state, see `def_jax.state_specs`: for checkpoints and for `jax.shard_map`."""
        params = trained(params)
        return state_specs(self.optimizer, params, self._specs(params), self.axis_name)

    def state_shardings(self, params: PyTree) -> PyTree:
        """The state's shardings, for out_shardings of `jax.jit` and for `jax.device_put`."""
        return self._workers.shardings(self.state_specs(params))

    def check(self, compiled: Any, params: PyTree = None, besides: int = 256) -> list[Collective]:
        """Raises if a compiled step passes more between workers than the message.

        Args:
            compiled: `step.lower(...).compile()` of a step that calls `update`, by `jax.jit`, `nnx.jit` or
                `eqx.filter_jit`.
            params: arrays or `jax.ShapeDtypeStruct`, if `update` was traced for others since.
            besides: bytes that the step may pass in addition, for means of losses and metrics.

        Returns:
            The collectives between workers, with what a device passes to each. One in a branch counts as if
            it ran at every step.

        Raises:
            TypeError: if the step is not compiled: one that is lowered has no collectives yet.
            ValueError: if they pass more, with sizes by kind, the largest collectives and the cure.
        """
        params = self._params if params is None else trained(params)
        if params is None:
            raise ValueError('no update of this def_jax.spmd was traced yet: pass params.')
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.num_workers, *x.shape), x.dtype), params)
        shapes = self._workers.abstract((stacked, params), (self._stacked_specs(params), self._specs(params)))
        update = functools.partial(self._update, extra_args={})
        program = jax.make_jaxpr(update)(shapes[0], self.abstract_state(params), shapes[1])
        message = crossing.message_bytes(program, self.axis_name)
        return crossing.check(compiled, self._workers, message, besides)

    def abstract_state(self, params: PyTree, num_workers: int | None = None) -> PyTree:
        """The state as `jax.ShapeDtypeStruct` with shardings: the target into which a checkpoint is restored.

        Args:
            params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
            num_workers: of the run that wrote the checkpoint, if it differs; see `regroup`.
        """
        params = trained(params)
        size = self.num_workers if num_workers is None else num_workers
        stacked_over = self.axis_name if size == self.num_workers else None

        def leaf(x, mine, spec):
            if mine:
                x, spec = jax.ShapeDtypeStruct((size, *x.shape), x.dtype), P(stacked_over, *spec[1:])
            return self._workers.abstract(x, spec)

        own = own_leaves(self.optimizer, params)
        return jax.tree.map(leaf, abstract_state(self.optimizer, params), own, self.state_specs(params))

    def regroup(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """The state of a run with another number of workers, for this one's; see `def_jax.mesh.regrouping`.

        The arrays may lie anywhere: on the mesh of that run, on this one, or in the host's memory.
        """
        if link_states(params):
            raise ValueError('regroup takes params first and opt_state second, as output_params does.')
        params = trained(params)
        own = own_leaves(self.optimizer, params)
        size = num_stacked(opt_state, own, self.num_workers)
        check_stacked_state(opt_state, abstract_state(self.optimizer, params), own, size)
        specs = jax.tree.map(lambda x: x.sharding.spec, self.abstract_state(params, size))
        opt_state = self._workers.place(opt_state, specs)
        return opt_state if size == self.num_workers else self._regroup(opt_state, params, size)

    @compiled_method
    def _regroup(self, opt_state, params, size):
        own = own_leaves(self.optimizer, params)
        means = functools.partial(regroup, own=own, before=(size,), after=(self.num_workers,))
        return self._workers.auto(means, self.state_specs(params))(opt_state)

    def _specs(self, params: PyTree) -> PyTree:
        if isinstance(params, optax.LookaheadParams):
            raise ValueError(
                'optax.lookahead goes around def_jax.spmd, not into it: optax.lookahead(def_jax.spmd(...), '
                '...). Take gradients at params.fast with opt_state.fast_state.'
            )
        specs = tree_of_specs(self.param_specs, params, self.axis_name)
        check_divisible(params, specs, self.mesh.shape)
        return specs

    def _stacked_specs(self, params: PyTree) -> PyTree:
        return jax.tree.map(lambda spec: P(self.axis_name, *spec), self._specs(params))

    def _placed(self, params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
        """What is trained, and the checked state, where their specs say: moved if known to lie elsewhere."""
        params = trained(params)
        expected, own = abstract_state(self.optimizer, params), own_leaves(self.optimizer, params)
        check_stacked_state(opt_state, expected, own, self.num_workers)
        opt_state = self._workers.place(opt_state, self.state_specs(params))
        return self._workers.place(params, self._specs(params)), opt_state
