"""Draws small mutations of library and trainer at random, and reports those that no test notices.

    python tests/faults/drawn.py --count=10 --seed=0 --minutes=30
    python tests/faults/drawn.py --below=def_jax/wires

A mutation turns an operator or a comparison, moves a constant by one, or removes a statement. Its tests are
the fast ones whose path or text names the module, nearest first. A survivor is a gap in the tests, or a line
that changes nothing.
"""

import argparse
import ast
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mutations import ROOT, copied, failed

PAIRS = [(ast.Add, ast.Sub), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.And, ast.Or)]
SWAPS = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
SWAPS |= {ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}


def places(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that can be mutated, within functions, and how."""
    if isinstance(node, ast.JoinedStr):
        return  # Python 3.11 does not know where the parts of an f-string are
    if inside:
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, 'operator'
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, 'comparison'
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, 'constant'
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, 'statement'
    for child in ast.iter_child_nodes(node):
        yield from places(child, inside or isinstance(node, ast.FunctionDef))


def mutated(text: str, draw: random.Random) -> tuple[str, str] | None:
    """A text with one mutation, and what it is; None if there is no place for one."""
    if not (found := list(places(ast.parse(text)))):
        return None
    node, kind = draw.choice(found)
    lines = text.encode().splitlines(keepends=True)
    start, end = (
        sum(map(len, lines[: line - 1])) + column
        for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
    )
    if kind == 'operator':
        node.op = SWAPS[type(node.op)]()
    elif kind == 'comparison':
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif kind == 'constant':
        node.value += 1
    new = 'pass' if kind == 'statement' else f'({ast.unparse(node)})'
    raw = text.encode()
    said = f'line {node.lineno}: {raw[start:end].decode()} -> {new}'
    return (raw[:start] + new.encode() + raw[end:]).decode(), said


def tests_of(module: Path) -> list[str]:
    """Tests with the module's name in their own, then those that import it, then its folder's: ten."""
    *parents, name = module.with_suffix('').parts
    if name == '__init__':
        *parents, name = parents
    package, folder = '.'.join(parents), Path('tests', *parents[1:])
    near = []
    for path in sorted((ROOT / 'tests').rglob('test_*.py')):
        own, text = path.relative_to(ROOT), path.read_text()
        imports = re.search(rf'from {package} import [^\n]*\b{name}\b|{package}\.{name}\b', text)
        if name in path.stem or imports or (own.parent == folder and parents[1:]):
            near.append((name not in path.stem, not imports, own.parent != folder, str(own)))
    return [test for *_, test in sorted(near)][:10]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--seconds', type=float, default=300, help='for the tests of one mutation')
    parser.add_argument('--below', default='def_jax', help='the folder whose modules are mutated')
    arguments = parser.parse_args()
    draw, end = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    modules = [path.relative_to(ROOT) for path in sorted((ROOT / arguments.below).rglob('*.py'))]
    found = dict.fromkeys(('noticed', 'SURVIVED', 'undecided'), 0)
    with tempfile.TemporaryDirectory() as compiled:
        # Most programs are those of the last one.
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', compiled)
        while sum(found.values()) < arguments.count and time.monotonic() < end:
            module = draw.choice(modules)
            change, tests = mutated((ROOT / module).read_text(), draw), tests_of(module)
            if change is None or not tests:
                continue
            with copied() as folder:
                (folder / module).write_text(change[0])
                try:
                    by = failed(folder, '-m', 'not slow', *tests, seconds=arguments.seconds)
                    outcome = 'noticed' if by else 'SURVIVED'
                except subprocess.TimeoutExpired:
                    by, outcome = None, 'undecided'  # a loop without end, or too many tests
            found[outcome] += 1
            print(f'{outcome} {module}, {change[1]}; {by or " ".join(tests)}', flush=True)
    print(', '.join(f'{count} {outcome}' for outcome, count in found.items()))
    return int(found['SURVIVED'] > 0)


if __name__ == '__main__':
    sys.exit(main())
