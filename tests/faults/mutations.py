"""One fault after another is planted in a copy of the project, and the test that should notice it must fail.

    python tests/faults/mutations.py                        # all of them
    python tests/faults/mutations.py 3 17                   # two of them

The faults are those of tests/MUTATIONS.md. Exit code 1 if one went unnoticed.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / 'tests' / 'MUTATIONS.md'


class Mutation(NamedTuple):
    """A row of the table."""

    number: int
    fault: str
    code: str  # must be in one file, once
    mutated: str
    test: str


def mutations() -> list[Mutation]:
    """The rows of tests/MUTATIONS.md."""
    rows = re.findall(r'^\| (\d+) \| (.*) \| `(.*)` \| `(.*)` \| `(.*)` \|$', TABLE.read_text(), re.MULTILINE)
    return [Mutation(int(number), *row) for number, *row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('numbers', type=int, nargs='*', help='from 1; all if none is given')
    arguments = parser.parse_args()
    unnoticed = 0
    for mutation in mutations():
        if mutation.number in (arguments.numbers or [mutation.number]):
            noticed, file = is_noticed(mutation)
            unnoticed += not noticed
            said = 'noticed' if noticed else 'NOT NOTICED'
            print(f'{mutation.number} {file}: {mutation.fault}: {said}', flush=True)
    return int(unnoticed > 0)


def is_noticed(mutation: Mutation) -> tuple[bool, Path]:
    """Whether the test fails in a copy of the project that has the fault, and the file that has it."""
    with copied() as folder:
        file = place(mutation, folder / 'def_jax')
        file.write_text(file.read_text().replace(mutation.code, mutation.mutated))
        return failed(folder, f'tests/{mutation.test}') is not None, file.relative_to(folder)


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of all files of the project that git knows, until the block ends."""
    names = subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True).split('\0')
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(lambda name: (ROOT / name).is_file(), names):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(folder, name))
        yield Path(folder)


def failed(folder: Path, *tests: str, seconds: float | None = None) -> str | None:
    """The first of some tests that fails in a copy; None if all pass."""
    command = [sys.executable, '-m', 'pytest', '-qx', '--tb=no', '-p', 'no:cacheprovider', *tests]
    # A checkout that is installed in place must not be found in its stead.
    environment = os.environ | {'PYTHONPATH': str(folder), 'PYTHONDONTWRITEBYTECODE': '1'}
    settings = {'cwd': folder, 'env': environment, 'capture_output': True, 'text': True, 'timeout': seconds}
    done = subprocess.run(command, **settings)
    found = re.search(r'^(?:FAILED|ERROR) (\S+)', done.stdout, re.MULTILINE)
    if found or done.returncode < 0:
        return found[1] if found else 'a crash'
    if done.returncode not in (0, 5):  # 5: none of them is fast
        raise SystemExit(done.stdout + done.stderr)
    return None


def place(mutation: Mutation, folder: Path) -> Path:
    """The file below `folder` with the code that the mutation changes, which is there once."""
    files = [path for path in folder.rglob('*.py') if mutation.code in path.read_text()]
    if len(files) != 1 or files[0].read_text().count(mutation.code) != 1:
        raise SystemExit(f'{mutation.code!r} must be in one file, once; it is in {[*map(str, files)]}')
    return files[0]


if __name__ == '__main__':
    sys.exit(main())
