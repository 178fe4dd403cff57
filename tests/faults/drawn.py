"""Draws small mutations of library and trainer at random, and reports those that no test notices.

    python tests/faults/drawn.py --count=10 --seed=0 --minutes=30

A mutation turns an operator or a comparison, moves a constant by one, or removes a statement. Its tests are
those whose path or text names the module. A survivor is a gap in the tests, or a line that changes nothing.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    'def_jax',
    'configs',
    'tests',
    'benchmarks',
    'experiments',
    'examples',
    'train.py',
    'pyproject.toml',
)
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
SECONDS = 300  # for the tests of one mutation


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that can be mutated, within functions, and how."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
                yield node, 'operator'
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                yield node, 'comparison'
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                yield node, 'constant'
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield node, 'statement'


def mutated(text: str, draw: random.Random) -> tuple[str, str] | None:
    """A text with one mutation, and what it is; None if there is no place for one."""
    tree = ast.parse(text)
    if not (found := list(places(tree))):
        return None
    node, kind = draw.choice(found)
    start, end = (
        _offset(text, node.lineno, node.col_offset),
        _offset(text, node.end_lineno, node.end_col_offset),
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


def _offset(text: str, line: int, column: int) -> int:
    return sum(len(each.encode()) for each in text.splitlines(keepends=True)[: line - 1]) + column


def tests_of(module: Path) -> list[str]:
    """The tests whose path has the module's name, or that import it."""
    dotted = '.'.join(module.with_suffix('').parts).removesuffix('.__init__')
    package, _, name = dotted.rpartition('.')
    named = [path for path in (ROOT / 'tests').rglob('test_*.py') if name in path.stem]
    imports = (dotted, f'from {package} import {name}')
    named += [
        path
        for path in (ROOT / 'tests').rglob('test_*.py')
        if path not in named and any(each in path.read_text() for each in imports)
    ]
    return [str(path.relative_to(ROOT)) for path in named]


def survives(module: Path, text: str, tests: list[str]) -> bool:
    """Whether the tests pass in a copy of the project with another text of the module."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        Path(folder, module).write_text(text)
        command = [sys.executable, '-m', 'pytest', '-qx', '-p', 'no:cacheprovider', '-m', 'not slow', *tests]
        environment = os.environ | {'PYTHONPATH': folder, 'PYTHONDONTWRITEBYTECODE': '1'}
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return False  # a loop without end is noticed
        return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--minutes', type=float, default=30)
    arguments = parser.parse_args()
    draw, end, survivors = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes, 0
    modules = [path.relative_to(ROOT) for path in sorted((ROOT / 'def_jax').rglob('*.py'))]
    tried = 0
    while tried < arguments.count and time.monotonic() < end:
        module = draw.choice(modules)
        change, tests = mutated((ROOT / module).read_text(), draw), tests_of(module)
        if change is None or not tests:
            continue
        tried += 1
        text, said = change
        if survives(module, text, tests):
            survivors += 1
            print(f'SURVIVED {module}, {said}; tests: {" ".join(tests)}', flush=True)
        else:
            print(f'noticed  {module}, {said}', flush=True)
    print(f'{survivors} of {tried} survived')
    return 0


if __name__ == '__main__':
    sys.exit(main())
