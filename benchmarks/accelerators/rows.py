"""Which programs are compiled: all settings on one network, and on the others what differs with them."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.optimizers import ADAMW, SGD

__all__ = ['ROWS', 'Row']


class Row(NamedTuple):
    """One program."""

    target: str
    network: str
    mapping: str
    optimizer: str

    @property
    def key(self) -> str:
        return ' | '.join(self)

    @property
    def by_node(self) -> bool:
        """Whether a worker is all devices of a node."""
        return 'inside' in self.mapping

    @property
    def sharded(self) -> bool:
        """Whether these hold a shard of the model each."""
        return 'FSDP' in self.mapping

    @property
    def dense(self) -> 'Row':
        """The program that it is compared with."""
        return self._replace(optimizer=ADAMW if 'adamw' in self.optimizer.lower() else SGD)


def _rows(target: str, network: str, mapping: str, optimizers: Sequence[str]) -> list[Row]:
    return [Row(target, network, mapping, name) for name in optimizers]


_DEF_Q = ['DEF-Q, 1/64, 2 bits', 'DEF-Q, 1/256, 2 bits']
_NARROW = [SGD, 'DEF, 1/64', *_DEF_Q]
_IN_FLIGHT = ['DEF, 1/64, overlap', 'DEF-Q, 1/64, 2 bits, overlap']
_ADAMW = 'def_adamw, 1/256, 2 bits'
_SETTINGS = ['DEF, 1/64, skip_nonfinite', 'DEF-Q, 1/64, 2 bits, skip_nonfinite', _ADAMW, f'{_ADAMW}, overlap']

ROWS: list[Row] = [
    *_rows('h100', 'vgg16', 'shard_map', [SGD, ADAMW, *_NARROW[1:], *_IN_FLIGHT, *_SETTINGS]),
    *_rows('h100', 'vgg16', 'pmap', _NARROW[:3]),
    *_rows('h100', 'vgg16', '2 virtual workers, vmap', [SGD, 'DEF, 1/64']),
    *_rows('h100', 'resnet50', 'shard_map', _NARROW),
    *_rows('h100', 'transformer_85m', 'shard_map', [ADAMW, _ADAMW]),
    *_rows('h100x2', 'vgg16', 'shard_map', [SGD, *_IN_FLIGHT]),
    *_rows('h100x2', 'vgg16', 'shard_map, a node inside', _NARROW),
    *_rows('h100x2', 'vgg16', 'pmap, a node inside', [SGD, _DEF_Q[0]]),
    *_rows('h100x2', 'vgg16', 'spmd, FSDP inside', [*_NARROW, *_IN_FLIGHT]),
    *_rows('h100x2', 'transformer_85m', 'spmd, FSDP inside', [ADAMW, _ADAMW]),
    *_rows('h100x2', 'vgg16', 'trainer, FSDP inside', _NARROW[:3]),
    *_rows('v5e', 'vgg16', 'optimizer stage', _NARROW),
    *_rows('v5e', 'vgg16', 'shard_map', _NARROW),
    *_rows('v5ex2', 'transformer_85m', 'shard_map, a node inside', [ADAMW, _ADAMW]),
    *_rows('v5ex2', 'transformer_85m', 'spmd, FSDP inside', [ADAMW, _ADAMW, f'{_ADAMW}, overlap']),
]
