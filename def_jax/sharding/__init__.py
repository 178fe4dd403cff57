"""`def_jax.spmd`: workers of several devices, sharded inside by the compiler, error feedback across.

A worker is a slice of the mesh, sharded in any way (FSDP, tensor parallel). Across workers, nothing runs but
the links of the optimizer: each device holds the residual of its own shards, cuts its block from them, and
exchanges it with the devices at the same place in the other workers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import P
from jax.sharding import Mesh
from jax.tree_util import Partial

from def_jax.error_feedback import output_params
from def_jax.ground.arguments import check_extra_arguments, check_integer
from def_jax.ground.barriers import in_memory
from def_jax.ground.collectives import Group, check_axis_name
from def_jax.ground.types import PyTree
from def_jax.sharding import at_points
from def_jax.sharding.accumulation import accumulated
from def_jax.sharding.worker_mesh import WorkerMesh, check_mesh, compiled
from def_jax.state import ownership
from def_jax.state.link import Shards, check_like, sharded
from def_jax.state.ownership import link_states, own_leaves
from def_jax.state.regrouping import check_workers, num_stacked, regroup
from def_jax.state.specs import with_specs
from def_jax.traffic import Message, drift, inputs, traffic_of
from def_jax.traffic.crossing import Limits, check_crossing, naming_extra_arguments
from def_jax.traffic.hlo import Collective

_STATE = (
    'It is of another optimizer, of other parameters or dtypes, is not stacked over workers, or was restored '
    'without its structure: restore into what init returns. Of another mesh, pass it through `regroup` first.'
)
_GRADS = 'Pass what value_and_grad of def_jax.spmd (or of def_jax.nnx.Optimizer) returns.'


def spmd(
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    param_specs: PyTree = None,
    axis_name: str | tuple[str, ...] = 'workers',
    *,
    accumulate: int = 1,
) -> 'Spmd':
    """An optimizer that communicates, on a mesh whose workers are one device each or several.

    The functions of the result take and return global arrays, for use inside one `jax.jit`.

    Args:
        optimizer: one that communicates, such as `error_feedback` with the same `axis_name`. Its `inner` and
            everything around it see whole tensors, so any optax optimizer works.
        mesh: axes over workers, and any number of axes over the devices within a worker, all Auto or all
            Explicit.
        param_specs: how a worker's devices share the parameters: a PartitionSpec or NamedSharding for all, or
            a pytree of them, with None for P(), like the parameters or a prefix of these. They name only axes
            within a worker, and may be left out if a worker is one device. P() is plain data parallelism
            inside: every device of a worker holds all parameters. A device sends its own shards, and its
            share of what other devices of the worker hold as well: one message leaves a worker.
        axis_name: the mesh axis over workers, or a tuple of axes.
        accumulate: calls of `update` per step of the optimizer, in place of `optax.MultiSteps`. It takes the
            mean of their gradients, by their `weight=`, and sends at the last; others' updates are zero.

    Raises:
        ValueError: if the mesh lacks an axis or mixes types of axes, a spec names the workers' axis, or there
            are none for workers of several devices.

    >>> import jax, jax.numpy as jnp, optax, def_jax
    >>> mesh = jax.make_mesh((1, 1), ('workers', 'shard'))  # two nodes of eight devices: (2, 8)
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(2), 'workers', inner=optax.adamw(0.1))
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


class Spmd:
    """What `spmd` returns: an optimizer's functions on global arrays.

    State and gradients are *stacked over workers*: per-worker values have a leading axis of size K =
    `num_workers`, which is sharded over the workers' mesh axis. Parameters are not: they are replicated.

    What only calls `init` and `update`, such as Flax's `TrainState`, takes it as it is; `as_optax` is for
    what asks for an optax transformation.
    """

    def __init__(self, optimizer, mesh: Mesh, param_specs: PyTree, axis_name: Any, accumulate: int):
        optimizer = optax.with_extra_args_support(optimizer)
        self.optimizer = accumulated(optimizer, accumulate) if accumulate > 1 else optimizer
        self.mesh, self.axis_name, self.param_specs = mesh, axis_name, param_specs
        self._workers = WorkerMesh(mesh, axis_name)
        self.num_workers = self._workers.num_workers
        self._init, self._output_params = compiled(self._init_program), compiled(self._output_program)
        self._update = compiled(self._update_program)
        self._params: PyTree = None  # abstract: those of the last update that was traced, for `check`

    def __deepcopy__(self, memo=None):  # as of a function: the copy of a TrainState has its structure
        return self

    __copy__ = __deepcopy__

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
        return self._init(self._workers.place(params, self._specs(params)))

    def _init_program(self, params):
        init = self._workers.map(self.optimizer.init, (False,), own_leaves(self.optimizer, params))
        return self._workers.auto(init, self.state_specs(params))(params)

    def value_and_grad(
        self,
        loss_fn: Callable,
        has_aux: bool = False,
        keys: tuple[int, ...] = (),
        *,
        mapping: at_points.Mapping = 'vmap',
    ) -> Callable:
        """A function that gives every worker's loss and gradient, taken at its own detached point.

        Args:
            loss_fn: `loss_fn(params, batch)`, a worker's loss on its own part of the batch, as for `jax.grad`
                of one worker: it may use sharded parameters in any way and knows nothing of other workers.
            has_aux: whether `loss_fn` returns a pair, the loss and auxiliary values.
            keys, mapping: see `at_points`; with convolutions, 'shard_map'.

        Returns:
            A function of params, opt_state and batch, see `at_points`; further arguments of `loss_fn` are
            the same for all, and a typed key must be among `keys`, or it raises ValueError. It returns the
            losses [K], or a pair with auxiliary values, and the gradients, all stacked. Outside `jax.jit`,
            every call compiles it again.
        """
        run = self.at_points(jax.value_and_grad(loss_fn, has_aux=has_aux), (1,), keys, mapping=mapping)
        return at_points.without_shared_keys(run, keys)

    def at_points(
        self,
        grad_fn: Callable,
        split: tuple[int, ...] = (1,),
        keys: tuple[int, ...] = (),
        *,
        mapping: at_points.Mapping = 'vmap',
    ) -> Callable:
        """Any gradient function of yours, run on every worker at its own detached point.

        Args:
            grad_fn: takes the parameters first, e.g. `jax.value_and_grad(loss_fn, has_aux=True)`, and then
                whatever arguments it likes.
            split: positions of the arguments whose leading axes are divided among the workers.
            keys: positions of PRNG keys, or trees of them, which are folded with the worker's number.
            mapping: by 'vmap', convolutions become grouped ones, which are slow and fail on Explicit axes.
                'shard_map' runs these and what `jax.vmap` can't map, such as kernels; `grad_fn` must not
                close over arrays on Explicit axes, and a `jax.shard_map` in it takes no mesh.

        Returns:
            A function of `params, opt_state, *args, **kwargs`, the arguments of `grad_fn` after the first.
            What is in neither `split` nor `keys` is the same for all workers: of a key there, all draw the
            same random numbers. Results are stacked over workers.

        Source: Algorithm 1, lines 4 to 6.

        >>> import jax, jax.numpy as jnp, def_jax
        >>> dist = def_jax.spmd(def_jax.def_sgd(0.1, 16, 'workers'), jax.make_mesh((1,), ('workers',)))
        >>> params = jnp.ones(4)
        >>> grad_fn = jax.grad(lambda w, rows, power: jnp.mean((rows @ w) ** power))
        >>> dist.at_points(grad_fn)(params, dist.init(params), jnp.ones((8, 4)), power=2).shape
        (1, 4)
        """
        at_points.check_arguments(split, keys, mapping)

        def on_workers(params, opt_state, /, *args, **kwargs):
            params, opt_state = self._placed(params, opt_state)
            axes = jax.tree.map(lambda mine: 0 if mine else None, own_leaves(self.optimizer, params))
            specs = jax.tree.map(lambda x: x.sharding.spec, self._abstract_grads(params))
            points = jax.vmap(at_points.point, in_axes=(None, axes), axis_size=self.num_workers)
            points = self._workers.auto(points, specs)(params, opt_state)
            return at_points.run(self._workers, grad_fn, points, args, kwargs, split, keys, mapping)

        return on_workers

    def map(self, function: Callable) -> Callable:
        """A function that runs `function(params, state, batch)` on every worker, with results stacked.

        `params` are the replicated parameters, `state` is the worker's optimizer state, and collectives over
        `axis_name` may be used, so that functions for mapped code run here: `def_jax.diagnostics`,
        `def_jax.assert_replicated`. All axes of the mesh are Auto inside.

        Returns:
            A function of params, opt_state and batch, which is divided among the workers or left out.
        """

        @compiled
        def program(params, opt_state, *batch):
            divided = at_points.divide(self._workers, batch, 'batch')
            own = False, own_leaves(self.optimizer, params), *(True for _ in batch)
            mapped = self._workers.map(function, own, True)
            if self._workers.explicit:
                mapped = self._workers.auto(mapped, P(self.axis_name))
            return mapped(params, opt_state, *divided)

        return lambda params, opt_state, *batch: program(*self._placed(params, opt_state), *batch)

    def update(
        self, grads: PyTree, opt_state: PyTree, params: PyTree, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        """One step of the optimizer, with the message that its link sends.

        Args:
            grads: stacked over workers, as `value_and_grad` and `at_points` return them.
            opt_state: from `init` or the step before.
            params: the replicated parameters x.
            extra_args: of the optimizer, the same for all workers, e.g. `value=tx.mean(losses)`; but for
                `weight`, [K], a number for every worker, see `error_feedback`.

        Raises:
            ValueError: if arguments do not belong together, or an extra one is stacked.
        """
        params, opt_state = self._placed(params, opt_state)
        grads = self._fitting('grads', grads, self._abstract_grads(params), _GRADS)
        weight = extra_args.pop('weight', None)
        if weight is not None:
            expected = jax.ShapeDtypeStruct((self.num_workers,), jnp.float32)
            check_like('weight', weight, expected, 'Pass one number for every worker.')
            weight = self._workers.place(jnp.asarray(weight), P(self.axis_name))
        check_extra_arguments(extra_args, params, self.num_workers)
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        # `Partial` is a tree without leaves.
        extra_args = {name: Partial(x) if callable(x) else x for name, x in extra_args.items()}
        return self._update(grads, opt_state, params, weight, extra_args)

    def _update_program(self, grads, opt_state, params, weight, extra_args):
        specs, own = self._specs(params), own_leaves(self.optimizer, params)

        def update(grads, opt_state, params, weight, extra_args):
            weights = {} if weight is None else {'weight': weight}
            return self.optimizer.update(grads, opt_state, params, **weights, **extra_args)

        def worker(grads, *others):
            arguments = in_memory(grads), *others
            with sharded(Shards(self.axis_name, Group(self._workers.inside), specs)):
                updates, opt_state = drift.agreed(update, own_in, own_out, self._workers.apart, arguments, 3)
            return updates, in_memory(opt_state)

        own_in, own_out = (True, own, False, True, False), (False, own)
        mapped = self._workers.map(worker, own_in, own_out)
        placed = specs, self.state_specs(params)
        return self._workers.auto(mapped, placed)(grads, opt_state, params, weight, extra_args)

    def as_optax(self) -> optax.GradientTransformationExtraArgs:
        """`init` and `update` as an optax transformation, which must not be chained.

        It takes gradients stacked over workers, so what precedes it in an `optax.chain` would see those of
        all workers at once: put that into the chain that `spmd` is given.
        """
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def output_params(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """DEF's output y, sharded like the parameters, see `def_jax.output_params`."""
        check_workers(opt_state, 'output_params')
        return self._output_params(*self._placed(params, opt_state))

    def _output_program(self, params, opt_state):
        output = functools.partial(output_params, axis_name=self.axis_name)
        mapped = self._workers.map(output, (False, own_leaves(self.optimizer, params)), False)
        return self._workers.auto(mapped, self._specs(params))(params, opt_state)

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over workers of floating-point values that `at_points` or `map` returned."""
        return at_points.mean(tree, self.num_workers)

    def state_specs(self, params: PyTree) -> PyTree:
        """PartitionSpecs of the state, for checkpoints and for `jax.shard_map`, see `def_jax.state_specs`."""
        state = ownership.abstract_state(self.optimizer, params)
        ownership.check_surroundings(state, 'def_jax.spmd', in_spmd=True)
        return ownership.state_specs(self.optimizer, params, self._specs(params), self.axis_name)

    def state_shardings(self, params: PyTree) -> PyTree:
        """The state's shardings, for out_shardings of `jax.jit` and for `jax.device_put`."""
        return self._workers.shardings(self.state_specs(params))

    def check(
        self,
        compiled: Any,
        params: PyTree = None,
        besides: int = 256,
        steps: int = 1,
        devices_per_node: int | None = None,
        others: Sequence['Spmd'] = (),
    ) -> list[Collective]:
        """`def_jax.check` of a compiled step that calls `update`, for workers of any number of devices.

        Args:
            compiled: `step.lower(...).compile()`, by `jax.jit`, `nnx.jit` or `eqx.filter_jit`.
            params: arrays or `jax.ShapeDtypeStruct`; needed if `update` has been traced for others since.
            besides, steps, devices_per_node: see `def_jax.check`.
            others: whose `update` the step calls besides, on the same mesh, as for a GAN's two networks.
        """
        limits, names = Limits(besides, steps, devices_per_node), self._workers.names
        each = [self._sent(compiled, params), *(other._sent(compiled) for other in others)]
        sent, trees = [m for messages, _ in each for m in messages], [tree for _, tree in each]
        return check_crossing(compiled, self._workers.of_devices, sent, limits, names, trees)

    def _sent(self, compiled: Any, params: PyTree = None) -> tuple[Sequence[Message], PyTree]:
        """The messages of one update, and the parameters as a compiled step must hold them."""
        params = self._params if params is None else params
        if params is None:
            raise ValueError('no update of this def_jax.spmd was traced yet: pass params.')
        grads, state = self._abstract_grads(params), self.abstract_state(params)
        params = self._workers.abstract(params, self._specs(params))
        inputs.check_shards(compiled, params, self._workers.names)
        with naming_extra_arguments():
            program = self._update.__wrapped__.trace(grads, state, params, None, {'value': 0.0}).jaxpr
        return traffic_of(program.jaxpr, self.axis_name, self.mesh.shape).messages, params

    def abstract_state(self, params: PyTree, num_workers: int | None = None) -> PyTree:
        """The state as `jax.ShapeDtypeStruct` with shardings: the target into which a checkpoint is restored.

        Args:
            params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
            num_workers: of the run that wrote the checkpoint, if it differs; see `regroup`.
        """
        size = self.num_workers if num_workers is None else num_workers
        stacked_over = self.axis_name if size == self.num_workers else None

        def leaf(x, mine, spec):
            if mine:
                x, spec = jax.ShapeDtypeStruct((size, *x.shape), x.dtype), P(stacked_over, *spec[1:])
            return self._workers.abstract(x, spec)

        own, specs = own_leaves(self.optimizer, params), self.state_specs(params)
        return jax.tree.map(leaf, ownership.abstract_state(self.optimizer, params), own, specs)

    def regroup(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """The state of a run with another number of workers, wherever it lies, for this one's.

        Every worker gets the mean of what the old ones had, see `def_jax.unstack_state`.
        """
        check_workers(opt_state, 'regroup')
        if link_states(params):
            raise ValueError('regroup takes params first and opt_state second, as output_params does.')
        own = own_leaves(self.optimizer, params)
        size = num_stacked(opt_state, own, self.num_workers)
        opt_state = self._checked(params, opt_state, size)
        if size == self.num_workers:
            return opt_state
        means = functools.partial(regroup, own=own, before=(size,), after=(self.num_workers,))
        return jax.jit(self._workers.auto(means, self.state_specs(params)))(opt_state)

    def _specs(self, params: PyTree) -> PyTree:
        return self._workers.specs(self.param_specs, params)

    def _abstract_grads(self, params: PyTree) -> PyTree:
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.num_workers, *x.shape), x.dtype), params)
        specs = jax.tree.map(lambda spec: P(self.axis_name, *spec), self._specs(params))
        return self._workers.abstract(stacked, specs)

    def _placed(self, params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
        """Parameters and checked state where their specs say: moved if known to lie elsewhere."""
        opt_state = self._checked(params, opt_state)
        return self._workers.place(params, self._specs(params)), opt_state

    def _checked(self, params: PyTree, opt_state: PyTree, num_workers: int | None = None) -> PyTree:
        ownership.check_surroundings(opt_state, 'def_jax.spmd')
        like = self.abstract_state(params, num_workers)
        ownership.check_not_chained(opt_state, like)
        return self._fitting('opt_state', opt_state, like, _STATE)

    def _fitting(self, name: str, tree: PyTree, like: PyTree, remedy: str) -> PyTree:
        check_like(name, tree, like, remedy)
        return self._workers.place(tree, jax.tree.map(lambda x: x.sharding.spec, like))
