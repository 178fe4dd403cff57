"""Programs that JAX has traced, and those that they run."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax


def equations(program: Any) -> Iterator[Any]:
    """Those of a traced program that run no other, and those of all programs that it runs."""
    for equation in program.eqns:
        inner = inner_programs(equation)
        yield from itertools.chain.from_iterable(map(equations, inner)) if inner else [equation]


def inner_programs(equation: Any) -> list[Any]:
    """The programs that an equation of a traced program runs: of a call, a branch or a loop."""
    parts = (getattr(part, 'jaxpr', part) for part in jax.tree.leaves(equation.params))
    return [part for part in parts if hasattr(part, 'eqns')]
