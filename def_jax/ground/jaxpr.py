"""Programs that JAX has traced, and those that they run."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

T = TypeVar('T')

_SUMS: dict[str, Callable] = {
    'add': operator.add,
    'add_any': operator.add,
    'sub': operator.sub,
    'neg': operator.neg,
}


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


def factors(program: Any, given: Sequence[float | None]) -> list[float | None]:
    """By what each result moves with some arguments, element by element: a factor, or None if it is unknown.

    `given` has 1 for those arguments and 0 for the others. Sums and differences are followed, also through
    changes of dtype; whatever else depends on the arguments is unknown.
    """
    return followed(program, given, _factors_of, 0.0)


def _factors_of(equation: Any, given: list[float | None]) -> list[float | None]:
    name, inner, results = equation.primitive.name, inner_programs(equation), len(equation.outvars)
    if not any(factor != 0 for factor in given):
        return [0.0] * results
    if len(inner) == 1 and len(inner[0].invars) == len(given):
        return factors(inner[0], given)
    if name in ('convert_element_type', 'copy', 'reduce_precision'):
        return given
    if name in _SUMS and None not in given:
        return [_SUMS[name](*given)]
    return [None] * results
