"""AdamW under detached error feedback, on a small transformer: runs the settings that are asked for.

    python -m benchmarks.adamw --settings=settings.jsonl --output=results/benchmarks

A line of `settings` is a JSON object with fields of `settings.Setting`, and those of adamw.jsonl are such
lines with results, so that every run can be repeated. A setting whose run is there is not run again.
"""

from pathlib import Path

import jax
from absl import app, flags

from benchmarks import records
from benchmarks.adamw import page
from benchmarks.adamw.settings import Setting, run

_SETTINGS = flags.DEFINE_string('settings', None, 'JSON lines, a setting a line.', required=True)
_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks', 'Folder of adamw.jsonl and its page.')


def main(_) -> None:
    folder = Path(_OUTPUT.value)
    runs = records.Records(folder / 'adamw.jsonl', Setting.of)
    for line in records.read(Path(_SETTINGS.value)):
        if runs.get(line) is None:
            runs.add(run(Setting(**line)))
            jax.clear_caches()
    page.write(folder)


if __name__ == '__main__':
    app.run(main)
