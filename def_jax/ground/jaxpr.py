"""Programs that JAX has traced, and those that they run."""

import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

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


def factors(program: Any, given: Sequence[float | None]) -> list[float | None]:
    """By what each result moves with some arguments, element by element: a factor, or None if it is unknown.

    `given` has 1 for those arguments and 0 for the others. Sums and differences are followed, also through
    changes of dtype; whatever else depends on the arguments is unknown.
    """
    known = dict(zip(program.invars, given, strict=True))

    def factor(atom):
        return 0.0 if hasattr(atom, 'val') else known.get(atom, 0.0)  # a literal has a value

    for equation in program.eqns:
        found = _factors_of(equation, [factor(atom) for atom in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [factor(atom) for atom in program.outvars]


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
