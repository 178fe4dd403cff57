"""The page of the cluster benchmark, made from the workers' reports."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.cluster.network import HEADERS
from def_jax.tools.planner import Plan, parse_bandwidth

__all__ = ['merged', 'ring_bytes', 'write']

Row = dict[str, Any]

_TITLES = {
    'local_sgd': 'no communication: momentum SGD',
    'local_def64': 'no communication: DEF, 1/64',
    'dense': 'dense',
    'def64': 'DEF, 1/64',
    'def256': 'DEF, 1/256',
    **{f'local_def_q{c}_2': f'no communication: DEF-Q, 1/{c}, 2 bits' for c in (64, 256)},
    **{
        f'def_q{c}_{bits}': f'DEF-Q, 1/{c}, {bits} bit{"s" if bits > 1 else ""}'
        for c in (64, 256)
        for bits in (1, 2, 4)
    },
    'ddp': 'PyTorch DDP, dense',
    'ddp_fp16': 'PyTorch DDP, fp16 hook',
    'ddp_powersgd': 'PyTorch DDP, PowerSGD hook, rank 4, one bucket',
}
_LOCAL = 'local_sgd', 'local_def64', 'local_def_q64_2', 'local_def_q256_2'
_PLANNED = 'dense', 'def64', 'def256', 'def_q64_2', 'def_q256_2'
_MODEL_TITLES = {
    'mlp': 'An MLP whose communication dominates',
    'vgg16': 'VGG-16 with one dense layer',
    'mlp_tiny': 'A tiny MLP',
}


def merged(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges one variant's reports from all workers.

    Args:
        reports: each worker's `seconds`, one per step, `counters` and, for JAX, `hlo`.

    Returns:
        `seconds` [workers, steps]; the bytes and packets sent per step, averaged over workers; `hlo` as is.
    """
    seconds = [report['seconds'] for report in reports]
    sent = {
        name: float(np.mean([sum(report['counters'][name]) for report in reports])) / len(seconds[0])
        for name in ('tx_bytes', 'tx_packets')
    }
    return {'seconds': seconds} | sent | {k: reports[0][k] for k in ('hlo',) if k in reports[0]}


def ring_bytes(message: float, workers: int, packets: float) -> float:
    """Bytes that an interface sends for a ring all-reduce of `message` bytes in `packets` packets."""
    return 2 * (workers - 1) / workers * message + HEADERS * packets


def write(folder: Path) -> None:
    """Writes a page for each file of records, cluster*.json."""
    for records in sorted(folder.glob('cluster*.json')):
        pages.write(records.with_suffix('.md'), _sections(json.loads(records.read_text())))


def _sections(settings: dict[str, Any]) -> dict[str, str]:
    """What the cluster is, and the tables of each model."""
    workers, bandwidth = settings['workers'], settings['bandwidth']
    texts = {'cluster': f'{workers} processes, every interface shaped to {bandwidth} in both directions.'}
    for model, found in settings['models'].items():
        parts = [
            f'## {_MODEL_TITLES[model]}: {found["jax"]["params"]:,} parameters, '
            f'{found["batch"]} examples per worker',
            pages.table(_steps(found)),
            '\n'.join(f'{_TITLES[name]}: {reason}.' for name, reason in found['failed'].items()),
            '### The update, with all workers at once and with one at a time',
            pages.table(_updates(found)),
            "### Bytes sent per worker and step: the program's count and the kernel's",
            pages.table(_bytes(found, workers)),
            '### `def_jax.plan` compared with the measurement',
            pages.table(_planned(found, workers, parse_bandwidth(bandwidth))),
        ]
        texts[model] = '\n\n'.join(filter(None, parts))
    return texts


def _median(found: dict[str, Any], framework: str, name: str) -> float:
    return float(np.median(found[framework]['variants'][name]['seconds']))


def _shown(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Framework and name of each variant shown, PyTorch's after JAX's."""
    for framework in ('jax', 'torch'):
        for name in found.get(framework, {}).get('variants', {}):
            if name in _TITLES and not (framework == 'torch' and name == 'local_sgd'):
                yield framework, name


def _rest(found: dict[str, Any], framework: str, name: str) -> float:
    """Seconds of communication and update."""
    return _median(found, framework, name) - _median(found, framework, 'compute')


def _local(name: str) -> str:
    """The same variant without communication; of DEF-Q in 2 bits, which one worker does not pack."""
    if name.startswith('def_q'):
        return f'local_{name.rpartition("_")[0]}_2'
    return 'local_def64' if 'def' in name else 'local_sgd'


def _steps(found: dict[str, Any]) -> Iterator[Row]:
    dense = _median(found, 'jax', 'dense')
    for framework, name in _shown(found):
        step, rest = _median(found, framework, name), _rest(found, framework, name)
        low, high = np.percentile(found[framework]['variants'][name]['seconds'], [25, 75])
        yield {
            'variant': _TITLES[name],
            'ms per step (quartiles)': f'{1e3 * step:.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})',
            'compute': f'{1e3 * (step - rest):.0f}',
            'communication + update': f'{1e3 * rest:.0f}',
            'communication alone': f'{1e3 * (step - _median(found, framework, _local(name))):.0f}',
            'speed-up over dense': '' if name.startswith('local') else f'{dense / step:.2f}',
        }


def _updates(found: dict[str, Any]) -> Iterator[Row]:
    """The time of a step without communication, less that of its gradient."""
    for name in _LOCAL:
        alone = _median(found, 'jax', f'{name}_alone') - _median(found, 'jax', 'compute_alone')
        yield {
            'variant': _TITLES[name],
            'ms, all workers at once': f'{1e3 * _rest(found, "jax", name):.1f}',
            'ms, one worker at a time': f'{1e3 * alone:.1f}',
        }


def _compression(name: str) -> int:
    """Bytes of a float32 all-reduce of the model over those of a message."""
    found = re.search(r'\d+', name)
    return int(found[0]) if found else 1


def _bytes(found: dict[str, Any], workers: int) -> Iterator[Row]:
    for name, variant in found['jax']['variants'].items():
        if message := variant.get('hlo', {}).get('wire_bytes'):
            headers = HEADERS * variant['tx_packets']
            body = variant['tx_bytes'] - headers
            asked = ring_bytes(4 * found['jax']['params'] / _compression(name), workers, packets=0)
            yield {
                'variant': _TITLES[name],
                'collectives': ', '.join(variant['hlo']['collectives']),
                'by rings (HLO)': f'{message:,.0f}',
                'counted by the kernel': f'{variant["tx_bytes"]:,.0f}',
                'over rings and headers': f'{variant["tx_bytes"] / (message + headers):.3f}',
                'without headers, over the plan': f'{body / asked:.3f}',
            }


def _planned(found: dict[str, Any], workers: int, bandwidth: float) -> Iterator[Row]:
    """The plan takes the time of a step without communication, and the extra time of DEF's update."""

    def plan(name):
        return Plan(
            params=found['jax']['params'],
            step_time=_median(found, 'jax', 'local_sgd'),
            bandwidth=bandwidth,
            workers=workers,
            dense_bytes=4,
            overhead=max(0.0, _median(found, 'jax', _local(name)) - _median(found, 'jax', 'local_sgd')),
        )

    for name in filter(found['jax']['variants'].__contains__, _PLANNED):
        predicted = plan(name).dense_step() if name == 'dense' else plan(name).step(_compression(name))
        measured = _median(found, 'jax', name)
        yield {
            'variant': _TITLES[name],
            'predicted, ms': f'{1e3 * predicted:.0f}',
            'measured, ms': f'{1e3 * measured:.0f}',
            'error': f'{100 * (predicted / measured - 1):+.0f} %',
        }
