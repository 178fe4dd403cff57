"""Detached error feedback for Flax NNX: the optimizer of a model whose gradients are per-worker.

Needs flax, which `import def_jax` does not; import this module by its name.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from def_jax.sharding import Spmd, at_points

__all__ = ['Optimizer']


class Optimizer(nnx.Optimizer):
    """An `nnx.Optimizer` whose transformation is that of `def_jax.spmd`.

    `update(model, grads)` is that of `nnx.Optimizer`.

    Args:
        model: an NNX module. Its parameters are x.
        tx: from `def_jax.spmd`.
        wrt: which variables are trained.

    Raises:
        TypeError: if `tx` is not from `def_jax.spmd`.

    >>> import def_jax, def_jax.nnx
    >>> mesh = jax.make_mesh((1,), ('workers',))
    >>> model = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    >>> tx = def_jax.spmd(def_jax.def_sgd(0.1, 16, 'workers'), mesh)
    >>> optimizer = def_jax.nnx.Optimizer(model, tx, wrt=nnx.Param)
    >>> loss_fn = lambda model, rows: jnp.mean(model(rows) ** 2)
    >>> loss, grads = optimizer.value_and_grad(loss_fn)(model, jnp.ones((8, 4)))
    >>> updates = optimizer.update(model, grads)
    >>> loss.shape, optimizer.output_model(model)(jnp.ones((1, 4))).shape
    ((), (1, 2))
    """

    def __init__(self, model: nnx.Module, tx: Spmd, *, wrt: Any = nnx.Param):
        if not isinstance(tx, Spmd):
            raise TypeError(f'{tx=} must come from def_jax.spmd(optimizer, mesh), which knows the workers.')
        super().__init__(model, tx, wrt=wrt)
        # Where the state is: a restored checkpoint would hold it to the one device it is created on.
        self.step.set_value(jax.device_put(self.step.get_value(), jax.NamedSharding(tx.mesh, jax.P())))

    def value_and_grad(
        self,
        loss_fn: Callable,
        *,
        has_aux: bool = False,
        split: tuple[int, ...] = (1,),
        mapping: at_points.Mapping = 'vmap',
    ) -> Callable:
        """As `nnx.value_and_grad(loss_fn, has_aux=has_aux)`, with every worker's gradient at its own point.

        Args:
            loss_fn: `loss_fn(model, *args, **kwargs)`, a worker's loss on its own part of the arguments.
            has_aux: whether it returns a pair, the loss and auxiliary values.
            split: positions of the arguments whose leading axes are divided among the workers: (2,) for
                `loss_fn(model, rngs, batch)`.
            mapping: see `at_points` of `def_jax.spmd`; 'shard_map' with convolutions.

        Returns:
            A function of the same arguments, which returns the mean loss and the gradients, for `update`.
            Random numbers, of the model or of an `nnx.Rngs` among the arguments, differ by worker. Other
            variables that `loss_fn` changes are averaged if they are floating-point, like BatchNorm's
            statistics. Of integers the largest is kept, which is right for what all workers count alike,
            like steps; count examples in floats, or sum them yourself. Auxiliary scalars are averaged; arrays
            come stacked over workers.

        Raises:
            ValueError: if `split` names an argument that is missing or an `nnx.Rngs`, another argument
                holds one, or `loss_fn` leaves a variable in the model that was not there.
        """
        at_points.check_arguments(split, (), mapping)
        return functools.partial(self._value_and_grad, loss_fn, has_aux, split, mapping)

    def _value_and_grad(self, loss_fn, has_aux, split, mapping, model, /, *args, **kwargs):
        given = dict(enumerate(args, start=1)) | kwargs
        streams = {str(name): x for name, x in given.items() if _are_rngs(x)}
        for name, x in given.items():
            if str(name) not in streams and any(map(_are_rngs, jax.tree.leaves(x, is_leaf=_are_rngs))):
                raise ValueError(
                    f'argument {name} holds an nnx.Rngs, whose keys would be the same for all workers. Pass '
                    'it as an argument of its own.'
                )
        divisible = tuple(i for i in range(1, len(args) + 1) if str(i) not in streams)
        if wrong := sorted(set(split) - set(divisible)):
            raise ValueError(
                f'{split=} names argument {wrong[0]}, but of the {len(args)} after the model, {divisible} '
                'can be divided: the keys of an nnx.Rngs are folded with the number of the worker. Name the '
                f'batch, e.g. split={divisible[:1]}.'
            )
        chosen = nnx.filterlib.to_predicate(self.wrt)

        def wrt(path, x):  # of the model's own paths
            return path[0] == 0 and chosen(path[1:], x)

        graph, *states = nnx.split((model, streams), wrt, nnx.RngKey, ...)
        _, keys, rest = nnx.as_pure(states)

        def grad_fn(point, /, *passed, **kwargs):
            *args, keys, rest = passed
            old = dict(nnx.to_flat_state(rest))

            def loss(point):
                model, streams = nnx.merge(graph, nnx.State({0: point}), keys, rest)
                own_args = (streams.get(str(i), x) for i, x in enumerate(args, start=1))
                result = loss_fn(model, *own_args, **{n: streams.get(n, x) for n, x in kwargs.items()})
                value, aux = result if has_aux else (result, None)
                frozen = nnx.Any(wrt, nnx.RngKey, lambda path, x: x.get_raw_value() is _before(old, path))
                changed = nnx.state((model, streams), nnx.Not(frozen))
                return value, (aux, nnx.as_pure(changed))

            return jax.value_and_grad(loss, has_aux=True)(point)

        run = self.tx.at_points(grad_fn, split, keys=(len(args) + 1,), mapping=mapping)
        passed = (None if str(i) in streams else x for i, x in enumerate(args, start=1))
        kwargs = {name: None if name in streams else x for name, x in kwargs.items()}
        variables = nnx.state(model, self.wrt)
        (values, (aux, changed)), grads = run(
            nnx.as_pure(variables), nnx.as_pure(self.opt_state), *passed, keys, rest, **kwargs
        )
        nnx.update((model, streams), jax.tree.map(_agreed, changed))
        aux = jax.tree.map(lambda x: x.mean(0) if x.ndim == 1 else x, aux)
        grads = jax.tree.unflatten(jax.tree.structure(variables), jax.tree.leaves(grads))
        return ((values.mean(), aux) if has_aux else values.mean()), grads

    def output_model(self, model: nnx.Module) -> nnx.Module:
        """A copy of the model at DEF's output y; costs one dense all-reduce across workers."""
        output = nnx.clone(model)
        params = nnx.as_pure(nnx.state(model, self.wrt))
        nnx.update(output, self.tx.output_params(params, nnx.as_pure(self.opt_state)))
        return output


def _are_rngs(x: Any) -> bool:
    return isinstance(x, nnx.Rngs)


def _before(old: dict, path: tuple) -> Any:
    """What a variable held before the loss was computed."""
    if path not in old:
        name = '.'.join(map(str, path[1:]))
        raise ValueError(
            f'loss_fn leaves a new variable, {name}, in the model, as sow does. Take it out with nnx.pop in '
            'loss_fn, and return what it holds as an auxiliary value (has_aux=True).'
        )
    return old[path]


def _agreed(x: jax.Array) -> jax.Array:
    """The mean of what workers computed, or what they have in common, like counts."""
    return x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x.max(0)  # x[0] fails on Explicit axes
