"""Mocked examples of TFDS, with what a data source of ArrayRecord files has and they lack."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class OneByOne:
    """Gives mocked records what they lack: several at once."""

    records: Any

    def __len__(self):
        return len(self.records)

    def __getitems__(self, positions):
        return [self.records[position] for position in positions]
