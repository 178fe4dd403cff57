"""Records of runs, one a line of a .jsonl file, so that a stopped program goes on where it was."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ['Record', 'add', 'missing', 'read']

Record = dict[str, Any]  # among others `settings`, which tell the run from others


def read(path: Path) -> list[Record]:
    """The records of a file, in order; none if it is not there."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def missing(path: Path, wanted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of which the file has no record."""
    known = [record['settings'] for record in read(path)]
    return [settings for settings in wanted if settings not in known]


def add(path: Path, record: Record) -> None:
    """Appends a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a', encoding='utf-8') as file:
        file.write(json.dumps(record, ensure_ascii=False) + '\n')
