"""Lets `Spmd` pass isinstance checks for optax transformations, without being a tuple otherwise."""

import optax

__all__ = ['Transformation']


class Transformation(optax.GradientTransformationExtraArgs):
    """A transformation whose `init` and `update` are methods of a subclass; it equals itself alone."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls, cls.init, cls.update)  # methods, which hide these fields

    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__

    def __deepcopy__(self, memo=None):
        return self  # a copy of another transformation has the same functions, too

    __copy__ = __deepcopy__

    def __reduce_ex__(self, protocol):
        raise TypeError('def_jax.spmd cannot be pickled: it holds a mesh. Make it again from its arguments.')

    def __iter__(self):
        raise ValueError(
            'def_jax.spmd takes gradients stacked over workers; beside it in optax.chain, a transformation '
            'sees those of all workers at once, and a global norm is too large. Put it into the chain: '
            'def_jax.spmd(optax.chain(optax.clip_by_global_norm(1.0), ..., link), mesh).'
        )
