"""The compared methods as one family: what each row of the paper's tables sends, where, and reports."""

import dataclasses
import difflib

import optax

from def_jax.compressors import random_block
from def_jax.error_feedback import AxisName, all_reduce_mean, error_feedback

__all__ = ['METHODS', 'Method', 'get_method']


@dataclasses.dataclass(frozen=True)
class Method:
    """One method. `METHODS` lists them."""

    title: str  # as in the paper's tables
    compressed: bool  # False: everything is all-reduced every step and there is no residual
    detach: float | None  # λ where the method fixes it; None: a hyper-parameter
    output: str  # the point that is the method's answer: 'x' (parameters) or 'y' (output_params)
    averages: bool = False  # True: the residual may be averaged over workers every P steps

    def transformation(
        self,
        axis_name: AxisName,
        *,
        ratio: float = 64,
        granularity: str = 'tensor',
        detach: float = 0.3,
        average_every: int = 0,
        seed: int = 0,
    ) -> optax.GradientTransformation:
        """The last link of the chain, after any optimizer.

        Args:
            axis_name: the axis over workers.
            ratio: compression ratio of `random_block`.
            granularity: of `random_block`.
            detach: λ, where the method leaves it free.
            average_every: period of SAEF's residual average; other methods ignore it.
            seed: picks the blocks.

        Returns:
            `error_feedback` as this method sets it, or `all_reduce_mean`.

        Raises:
            ValueError: if an argument is out of range.

        >>> from def_jax import METHODS
        >>> optimizer = optax.chain(optax.sgd(0.1), METHODS['ef'].transformation('workers', ratio=256))
        """
        if not self.compressed:
            return all_reduce_mean(axis_name)
        return error_feedback(
            random_block(ratio, granularity=granularity),
            axis_name,
            seed=seed,
            detach=detach if self.detach is None else self.detach,
            average_every=average_every if self.averages else 0,
        )


METHODS: dict[str, Method] = {
    'sgd': Method('SGD', compressed=False, detach=None, output='x'),
    'ef': Method('EF', compressed=True, detach=0.0, output='x'),
    'saef': Method('SAEF', compressed=True, detach=1.0, output='x', averages=True),
    'def': Method('DEF', compressed=True, detach=None, output='y'),
    'def_a': Method('DEF-A', compressed=True, detach=None, output='x'),
}


def get_method(name: str) -> Method:
    """The method called `name`.

    Args:
        name: a key of `METHODS`.

    Returns:
        The method.

    Raises:
        ValueError: if there is none of that name.

    >>> get_method('def').title
    'DEF'
    """
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f' Did you mean {near[0]!r}?' if near else ''
        raise ValueError(f'method={name!r} is unknown; methods are {", ".join(METHODS)}.{hint}')
    return METHODS[name]
