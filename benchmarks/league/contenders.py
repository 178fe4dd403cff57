"""A method with its settings, and what a problem lets them train on."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

import def_jax
from def_jax.baselines.methods import Method

__all__ = ['WORKERS', 'Contender', 'Problem', 'answer', 'narrower']

WORKERS = 8
PyTree = Any


class Contender(NamedTuple):
    """A method with its settings."""

    title: str
    method: str
    ratio: float = 1
    blocks: Mapping[str, Any] = {}  # arguments of the compressor
    options: Mapping[str, Any] = {}  # of the method's optimizer
    link: Mapping[str, Any] = {}  # other arguments of the method's own link
    outer: Mapping[str, Any] = {}  # of SGD on the mean messages, where that is an option
    inner: Mapping[str, Any] = {'momentum': 0.9}  # of the problem's optimizer
    rate: float = 0.1  # in the middle of the grid

    @property
    def nominal(self) -> float:
        """How many times fewer bytes than dense it is meant to send; 1 if it has no such setting."""
        counted = self.method == 'cser'  # whose ratio is that of all it sends, whatever H is
        return self.ratio * (1 if counted else self.options.get('every', 1))

    def optimizer(
        self, inner: optax.GradientTransformation, axis_name: str | None = 'workers'
    ) -> optax.GradientTransformation:
        """The method's chain with `inner` before or after its communication."""
        method = def_jax.get_method(self.method)
        if self.link:
            method = dataclasses.replace(method, link=functools.partial(method.link, **self.link))
        options = {'ratio': self.ratio, **self.options}
        if self.outer:
            options['outer'] = optax.sgd(**self.outer)
        compressor = method.compressor(self.ratio, **self.blocks)
        return method.optimizer(optax.identity(), inner, axis_name, compressor, **options)


class Problem(NamedTuple):
    """What the contenders train on.

    `train(contender)` is a function of rates [n] and seeds [n], and whether to evaluate on held-out training
    data, to curves [n, metrics, points]: the training loss, the loss and, if there is one, the accuracy.
    """

    contenders: Sequence[Contender]
    params: PyTree  # of one seed, for their shapes
    steps: int
    inner: Callable[..., optax.GradientTransformation]  # of the rate and a contender's `inner`
    train: Callable[[Contender], Callable[[Sequence[float], Sequence[int], bool], np.ndarray]]
    reach: int  # rates that are tried first on either side of a contender's
    tuning_seeds: Sequence[int]
    seeds: Sequence[int]
    metrics: Sequence[str] = ('train_loss', 'test_loss', 'accuracy')


def narrower(ours: Contender) -> list[Contender]:
    """The same with narrower numbers in larger blocks, at the same bytes."""
    return [
        ours._replace(
            title=f'{ours.title}, {wire_dtype}',
            ratio=ours.ratio / times,
            options={**ours.options, 'wire_dtype': wire_dtype},
        )
        for wire_dtype, times in (('bfloat16', 2), ('int8', 4))
    ]


def answer(method: Method, params: PyTree, state: PyTree) -> PyTree:
    """The point that the method outputs."""
    if method.answer == 'y':
        return def_jax.output_params(params, state, 'workers')
    return def_jax.detached_params(params, state) if method.answer == 'own' else params
