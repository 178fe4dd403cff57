"""Records of runs, one a line of a .jsonl file, so that a stopped program goes on where it was."""

import json
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

__all__ = ['Record', 'Records', 'by_settings', 'read']

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The records of a file, in order; none if it is not there."""
    lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def by_settings(run: Record) -> str:
    """The key of a run that its settings tell from others."""
    return json.dumps(run['settings'], sort_keys=True)


class Records:
    """The records of a file by key; `add` writes a new one at once."""

    def __init__(self, path: Path, key: Callable[[Record], Hashable]) -> None:
        self._path, self._key = path, key
        self._known = {key(record): record for record in read(path)}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._known.values())

    def get(self, record: Record) -> Record | None:
        """The record of the same key."""
        return self._known.get(self._key(record))

    def add(self, record: Record) -> Record:
        """Appends a record, or replaces the one of its key."""
        again = self.get(record) is not None
        self._known[self._key(record)] = record
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open('w' if again else 'a', encoding='utf-8') as file:
            file.writelines(
                json.dumps(each, ensure_ascii=False) + '\n' for each in (self if again else [record])
            )
        return record
