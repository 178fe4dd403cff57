"""Programs that JAX has traced, and those that they run."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar('T')
Factors = frozenset[float | None]  # by any of which a value may move; None is unknown

_SUMS: dict[str, Callable] = {
    'add': operator.add,
    'add_any': operator.add,
    'sub': operator.sub,
    'neg': operator.neg,
}
_CHOICES = ('select_n', 'max', 'min', 'clamp')
_STILL = frozenset([0.0])  # does not move with the arguments


def equations(program: Any) -> Iterator[Any]:
    """Those of a traced program that run no other, and those of all programs that it runs."""
    for equation in program.eqns:
        inner = inner_programs(equation)
        yield from itertools.chain.from_iterable(map(equations, inner)) if inner else [equation]


def inner_programs(equation: Any) -> list[Any]:
    """The programs that an equation of a traced program runs: of a call, a branch or a loop."""
    parts = (getattr(part, 'jaxpr', part) for part in jax.tree.leaves(equation.params))
    return [part for part in parts if hasattr(part, 'eqns')]


def followed(
    program: Any, given: Sequence[T], rule: Callable[[Any, list[T]], list[T]], constant: T
) -> list[T]:
    """What holds of a traced program's results, from what holds of its arguments and of constants.

    `rule` tells it for the results of an equation, from what holds of what the equation is given.
    """
    known = dict(zip(program.invars, given, strict=True))

    def of(atom):
        return constant if hasattr(atom, 'val') else known.get(atom, constant)  # a literal has a value

    for equation in program.eqns:
        found = rule(equation, [of(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [of(atom) for atom in program.outvars]


def factors(program: Any, given: Sequence[float]) -> list[Factors]:
    """By which factors each result may move with some arguments, element by element.

    `given` has 1 for those arguments and 0 for the others. Sums, differences and choices between values, as
    of a branch or a bound, are followed, also through changes of dtype; whatever else depends on the
    arguments is unknown. But -1 stays -1 in a product with a number that only a run knows, such as a scale in
    the state of `optax.contrib.reduce_on_plateau`.
    """
    return _factors(program, [frozenset([factor]) for factor in given])


def _factors(program: Any, given: list[Factors]) -> list[Factors]:
    return followed(program, given, _factors_of, _STILL)


def _factors_of(equation: Any, given: list[Factors]) -> list[Factors]:
    name, inner, results = equation.primitive.name, inner_programs(equation), len(equation.outvars)
    if all(factor == _STILL for factor in given):
        return [_STILL] * results
    if name == 'cond':
        branches = [_factors(branch, given[1:]) for branch in inner]
        return [frozenset().union(*found) for found in zip(*branches, strict=True)]
    if len(inner) == 1 and len(inner[0].invars) == len(given):
        return _factors(inner[0], given)
    if name in ('convert_element_type', 'copy', 'reduce_precision'):
        return given
    if name in _CHOICES:
        return [frozenset().union(*given[name == 'select_n' :])]
    if name in _SUMS:
        pairs = itertools.product(*given)
        return [frozenset(None if None in pair else _SUMS[name](*pair) for pair in pairs)]
    if name == 'mul':
        for number, moved in itertools.permutations(zip(equation.invars, given, strict=True)):
            if number[1] == _STILL and number[0].aval.shape == () and not hasattr(number[0], 'val'):
                return [frozenset(factor if factor == -1 else None for factor in moved[1])]
    return [frozenset([None])] * results
