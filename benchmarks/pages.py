"""One way to write a page: what programs write stands between marks, and people write the rest.

    python -m benchmarks.pages           # rewrites every page and picture whose records are under results/
    python -m benchmarks.pages cluster

A section of a page lies between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import importlib
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from absl import app, flags

from def_jax.tools import markdown
from experiments import spec

__all__ = ['SUBJECTS', 'origin', 'table', 'write']

# Folders with a module `page`, whose function `write` takes the folder of its records.
SUBJECTS = ('cluster', 'nodes', 'time_to_accuracy', 'accelerators')


def write(output: str | Path, sections: Mapping[str, str]) -> None:
    """Replaces sections of a page, or adds those at its end that it does not have.

    Raises:
        ValueError: if a section of the page has no end.
    """
    page = Path(output)
    page.parent.mkdir(parents=True, exist_ok=True)
    text = page.read_text(encoding='utf-8') if page.exists() else ''
    for name, section in sections.items():
        begin, end = f'<!-- {name} -->', f'<!-- end of {name} -->'
        if begin not in text:
            text = f'{text}\n{begin}{end}\n'.lstrip()
        text = markdown.replaced(text, begin, end, section.strip())
    page.write_text(text, encoding='utf-8')


def table(rows: Iterable[Mapping[str, object]], *, sparse: bool = False) -> str:
    """A table in Markdown with a column for each key; if `sparse`, without columns that have no entry."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    shown = [name for name in names if not sparse or any(row.get(name, '') != '' for row in rows)]
    return markdown.table([shown, *([row.get(name, '') for name in shown] for row in rows)])


def origin(program: str) -> str:
    """The command that is running, the machine and the commit; without paths that are this machine's."""
    shown = [shlex.quote(a) for a in sys.argv[1:] if not a.startswith(('--torch_python', '--data_dir'))]
    found = spec.origin(allow_dirty=True)
    python, jax = (found['versions'][name] for name in ('python', 'jax'))
    where = f'{found["machine"]}; jax {jax}, Python {python}; commit {found["commit"]}'
    return f'`{" ".join(["python -m", program, *shown])}`\n\n{where}.'


def main(argv: list[str]) -> None:
    for name in argv[1:] or SUBJECTS:
        importlib.import_module(f'benchmarks.{name}.page').write(Path(flags.FLAGS.results, 'benchmarks'))


if __name__ == '__main__':
    flags.DEFINE_string('results', 'results', 'Folder of the committed records and pages.')
    app.run(main)
