"""The page of `benchmarks.nodes`, made from its records."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from benchmarks.cluster.network import HEADERS

__all__ = ['TITLES', 'merged', 'write']

Row = dict[str, Any]

TITLES = {
    'local_sgd': 'no communication: momentum SGD',
    'local_def_q': 'no communication: DEF-Q',
    'mean_inside': 'dense mean inside the nodes, none between',
    'dense': 'dense, one ring',
    'dense_nodes': 'dense, hierarchical',
    'powersgd': 'PowerSGD, a worker a device',
    'def_q': 'DEF-Q, a worker a device',
    'def_q_inside': 'DEF-Q, a worker a node: `inside`',
    'replicated': 'the same, gradients averaged before',
    'fsdp': 'the same, and FSDP inside',
}


def merged(reports: Sequence[dict[str, Any]], per_node: int, leaving: dict[str, int]) -> dict[str, Any]:
    """Merges what all processes measured at one rate, by variant.

    Returns:
        `seconds` of a step, one per round: the median over its steps of the slowest process's; `bytes` and
        `packets` that leave the node that sends most in a step, less those of barriers, medians over rounds;
        and the variant's entry of `leaving`, what its program sends.
    """
    barriers = {key: float(np.median(n)) for key, n in reports[0]['nothing']['counters'].items()}
    found = {}
    for name, by_program in leaving.items():
        entries = [report[name] for report in reports]
        rounds = len(entries[0]['processor'])
        seconds = np.reshape([entry['seconds'] for entry in entries], (len(entries), rounds, -1))
        sent = {
            key: max(np.median(entry['counters'][f'tx_{key}']) for entry in entries[::per_node])
            for key in ('bytes', 'packets')
        }
        found[name] = {
            'seconds': np.round(np.median(seconds.max(0), axis=1), 6).tolist(),
            **{key: (float(n) - barriers[f'tx_{key}']) / seconds.shape[2] for key, n in sent.items()},
            'leaving': by_program,
        }
    return found


def write(folder: Path) -> None:
    records = json.loads((folder / 'nodes.json').read_text())
    pages.write(
        folder / 'nodes.md',
        {
            'times': '\n\n'.join(map(_layout, records['layouts'].values())),
            'bytes': pages.table(_messages(records)),
            'ratios': pages.table(_ratios(records)),
        },
    )


def _named(layout: dict[str, Any]) -> str:
    per_node, devices = layout['per_node'], layout['devices']
    inside = f'{per_node} processes' if devices == 1 else f'a process with {devices} devices'
    return f'{layout["nodes"]} nodes of {inside}'


def _layout(layout: dict[str, Any]) -> str:
    parts = [f'## {_named(layout)}', layout['origin']]
    for size in layout['sizes']:
        parts += [f'### {size["params"]:,} parameters', pages.table(_steps(size))]
    return '\n\n'.join(parts)


def _steps(size: dict[str, Any]) -> Iterator[Row]:
    for name, title in TITLES.items():
        row: Row = {'variant': title}
        for rate, variants in size['rates'].items():
            low, middle, high = 1e3 * np.quantile(variants[name]['seconds'], [0.25, 0.5, 0.75])
            row[f'{rate}: ms a step (quartiles)'] = f'{middle:.1f} ({low:.1f} to {high:.1f})'
            local = 'local_def_q' if name in _OF_DEF_Q else 'local_sgd'
            alone = middle - 1e3 * np.median(variants[local]['seconds'])
            row[f'{rate}: communication'] = '' if name.startswith('local') else f'{alone:.1f}'
        sent = [variants[name] for variants in size['rates'].values()]
        row['kB leave a node'] = f'{np.mean([each["bytes"] for each in sent]) / 1e3:,.1f}'
        row["by the program's collectives"] = f'{sent[0]["leaving"] / 1e3:,.1f}'
        yield row


_OF_DEF_Q = 'def_q', 'def_q_inside', 'replicated', 'fsdp'


def _messages(records: dict[str, Any]) -> Iterator[Row]:
    """What leaves a node for one message, compared with the least for messages of so many bits."""
    for layout in records['layouts'].values():
        for size in layout['sizes']:
            workers = layout['nodes']
            least = 2 * (workers - 1) / workers * size['message'] * records['bits'] / 8
            for name in ('def_q_inside', 'replicated', 'fsdp'):
                variants = [of_rate[name] for of_rate in size['rates'].values()]
                counted, packets = (np.mean([each[key] for each in variants]) for key in ('bytes', 'packets'))
                body, program = counted - HEADERS * packets, variants[0]['leaving']
                yield {
                    'nodes': _named(layout),
                    'parameters': f'{size["params"]:,}',
                    'variant': TITLES[name],
                    '2 (K - 1)/K · M · b/8': f'{least:,.0f}',
                    'program': f'{program:,.0f} ({program / least:.3f})',
                    'kernel, without headers': f'{body:,.0f} ({body / least:.3f})',
                    'kernel': f'{counted:,.0f} ({counted / least:.3f})',
                    'of gloo itself': f'{body - program:,.0f}',
                }


def _ratios(records: dict[str, Any]) -> Iterator[Row]:
    """Communication with a node for a worker over that with a process, round by round."""

    def shown(over, under):
        low, middle, high = np.quantile(over / under, [0.25, 0.5, 0.75])
        return f'{middle:.2f} ({low:.2f} to {high:.2f})'

    for layout in records['layouts'].values():
        for size in layout['sizes']:
            for rate, variants in size['rates'].items():
                seconds = {name: np.array(variants[name]['seconds']) for name in TITLES}
                flat, node, between = (
                    seconds[name] - seconds['local_def_q'] for name in ('def_q', 'def_q_inside', 'replicated')
                )
                yield {
                    'nodes': _named(layout),
                    'parameters': f'{size["params"]:,}',
                    'link': rate,
                    'bytes': f'{variants["def_q_inside"]["bytes"] / variants["def_q"]["bytes"]:.2f}',
                    'communication': shown(node, flat),
                    'communication, gradients averaged before': shown(between, flat),
                }
