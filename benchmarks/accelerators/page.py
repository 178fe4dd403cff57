"""The page: one table for each target and network, every optimizer beside the dense one of its mapping."""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.accelerators.rows import ROWS, Row
from benchmarks.accelerators.targets import TARGETS
from benchmarks.trees import NETWORKS
from def_jax.traffic.hlo import Collective

__all__ = ['misses', 'write']

Figures = Mapping[str, Any]

STAGE = 'optimizer stage'
_MESSAGES, _COMPILE = 3, 2.0  # allowed besides dense training: temporary messages, times its compile time
_TILES = 1.02  # of a message, with the tiles that parts do not fill


def write(folder: Path) -> None:
    """Writes the compilers, and a table for each target and network, of the rows that have figures."""
    figures = json.loads((folder / 'accelerators.json').read_text())
    known = [row for row in ROWS if row.key in figures]
    tables = []
    for target, network in dict.fromkeys(row[:2] for row in known):
        rows = [row for row in known if row[:2] == (target, network)]
        tables.append(f'## {TARGETS[target].title}: {NETWORKS[network].title}\n')
        cells = [_cells(row, figures[row.key], figures.get(row.dense.key)) for row in rows]
        first = {row.mapping: cell for row, cell in zip(reversed(rows), reversed(cells), strict=True)}
        for mapping, cell in first.items():
            cell['optimizer'] = f'**{mapping}**: {cell["optimizer"]}'
        tables.append(pages.table(cells, sparse=True) + '\n')
    if len(known) < len(ROWS):
        tables.append(
            f'{len(known)} of {len(ROWS)} programs are compiled; the command goes on where it stopped.'
        )
    compilers = '; '.join(sorted({figures[row.key]['compiler'] for row in known}))
    texts = {'compilers': f'Compiled on CPUs with {compilers}.', 'programs': '\n'.join(tables)}
    pages.write(folder / 'accelerators.md', texts)


def misses(row: Row, own: Figures, dense: Figures) -> list[str]:
    """The aims that a row of ours misses, by name."""
    if not row.optimizer.lower().startswith('def') or row.key == row.dense.key:
        return []
    between, within = _split(row, own)
    messages = Counter((c.operation, c.dtype) for c in between.elements())
    gathered = _totals(within)['all-gather'] - _totals(_split(row, dense)[1])['all-gather']
    # Of what a worker's devices divide, they gather the mean and what is left, in whole tiles.
    divided = 2 * _TILES * _message(row, own) // 4
    found = {
        'message': messages != Counter(_expected(row)),
        'gathers': gathered > divided,
        'copies': _copied(own) > _copied(dense),
        'memory': own['temporary'] - dense['temporary'] > _allowed(row, own),
        'bytes': row.mapping == STAGE and own['bytes accessed'] > _byte_limit(row) * dense['bytes accessed'],
        'compile time': _compile_ratio(own, dense) > _COMPILE,
    }
    return [name for name, missed in found.items() if missed]


def _cells(row: Row, own: Figures, dense: Figures | None) -> dict[str, str]:
    dense = dense or own
    between, within = _split(row, own)
    base = row.key == row.dense.key
    beyond = Counter() if base else _totals(within) - _totals(_split(row, dense)[1])
    temporary = own['temporary'] - (0 if base else dense['temporary'])
    ratio = f'{"" if own["pairs"] else "~"}{_compile_ratio(own, dense):.1f}'
    compiling = f'{own["seconds"]:.1f} s' if base else ratio
    accessed = own['bytes accessed'] and own['bytes accessed'] / dense['bytes accessed']
    copies = 0 if base else max(0, _copied(own) - _copied(dense))
    over = misses(row, own, dense)

    def shown(text: str, limit: str) -> str:
        return f'**{text}**' if limit in over else text

    return {
        'optimizer': row.optimizer,
        'between workers': shown(_shown(between), 'message'),
        'inside': shown(', '.join(f'{kind} {n:,}' for kind, n in beyond.items()), 'gathers'),
        'meanwhile': f'{sum(own["hidden"])}',
        'copies': shown(f'{copies or ""}', 'copies'),
        'MB': shown(f'{temporary / 1e6:.1f}', 'memory'),
        'accessed': shown(f'{accessed:.3f}', 'bytes') if accessed else '',
        'compiling': shown(compiling, 'compile time'),
    }


def _split(row: Row, own: Figures) -> tuple[Counter[Collective], Counter[Collective]]:
    """The collectives between workers, and those inside one."""
    found = [
        Collective(name, size, 0, tuple(map(tuple, groups)), dtype=dtype)
        for name, dtype, size, groups in own['collectives']
    ]
    per_worker = own['devices'] // TARGETS[row.target].nodes if row.by_node else 1
    workers = [device // per_worker for device in range(own['devices'])]
    between = Counter(c for c in found if c.crosses(workers))
    return between, Counter(found) - between


def _totals(found: Counter[Collective]) -> Counter[str]:
    """How many elements collectives of each kind have; XLA combines several into one as it likes."""
    totals: Counter[str] = Counter()
    for collective in found.elements():
        totals[collective.operation] += collective.elements
    return totals


def _shown(found: Counter[Collective]) -> str:
    """Collectives of a kind in one entry, with their elements: XLA combines and splits them as it likes."""
    elements: Counter[tuple[str, str]] = Counter()
    for c in found.elements():
        elements[c.operation, c.dtype] += c.elements
    return ', '.join(f'{operation} {dtype}[{n:,}]' for (operation, dtype), n in elements.items())


def _compile_ratio(own: Figures, dense: Figures) -> float:
    """Compile time over dense training's: the median of pairs, if there are any."""
    return statistics.median(own['pairs'] or [own['seconds'] / dense['seconds']])


def _copied(own: Figures) -> int:
    return sum(own['copies'].values())


def _allowed(row: Row, own: Figures) -> float:
    """Bytes of temporary memory besides dense training's."""
    points = 0 if row.mapping == STAGE else 2 if 'virtual' in row.mapping else 1
    return _MESSAGES * _message(row, own) + points * own['model']


def _message(row: Row, own: Figures) -> float:
    """Bytes of a block in float32."""
    ratio = re.search(r'1/(\d+)', row.optimizer)
    return own['model'] / int(ratio[1]) * 32 / _bits(row) if ratio else 0.0


def _bits(row: Row) -> int:
    """Of a number in the message."""
    found = re.search(r', (\d+) bit', row.optimizer)
    return int(found[1]) if found else 32


def _expected(row: Row) -> list[tuple[str, str]]:
    """The collectives that carry a message, with their dtypes."""
    if row.mapping == STAGE:
        return []
    bits = _bits(row)
    if bits >= 16:
        return [('all-reduce', 'f32' if bits == 32 else 'bf16')]
    return [('all-to-all', 'u8'), ('all-gather', 'u8')]


def _byte_limit(row: Row) -> float:
    return 1.3 if _bits(row) < 32 or '1/10' in row.optimizer else 1.15
