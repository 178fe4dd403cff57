"""AdamW under detached error feedback, on a small transformer: runs what is asked for and writes the page.

    python -m benchmarks.adamw --settings=settings.jsonl --runs=results/benchmarks/adamw.jsonl
    python -m benchmarks.adamw --runs=results/benchmarks/adamw.jsonl --page=results/benchmarks/adamw.md

A line of `settings` is a JSON object with fields of `settings.Setting`, and those of `runs` are such lines
with results, so that every run can be repeated. A setting whose run is there is not run again.
"""

import json
from pathlib import Path

from absl import app, flags

from benchmarks.adamw import page
from benchmarks.adamw.settings import Setting
from benchmarks.adamw.training import run

_SETTINGS = flags.DEFINE_string(
    'settings', None, 'JSON lines, a setting a line; nothing is run if not given.'
)
_RUNS = flags.DEFINE_string('runs', None, 'JSON lines, a run a line; runs are appended.', required=True)
_PAGE = flags.DEFINE_string('page', None, 'The page, with its picture beside it; not written if not given.')


def main(_) -> None:
    runs = Path(_RUNS.value)
    done = {Setting.of(line) for line in _lines(runs)}
    for line in _lines(Path(_SETTINGS.value)) if _SETTINGS.value else []:
        if Setting.of(line) not in done:
            result = run(Setting(**line))
            with runs.open('a') as file:
                file.write(json.dumps(result) + '\n')
            done.add(Setting.of(line))
    if _PAGE.value:
        page.write(_lines(runs), Path(_PAGE.value))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


if __name__ == '__main__':
    app.run(main)
