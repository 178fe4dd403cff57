"""Nodes of several processes with one link a node: a worker a process, a worker a node, and their rivals.

    python -m benchmarks.nodes --output=results/benchmarks

Runs two nodes (--nodes) of two and of four processes (--per_node) in network namespaces, joined by a bridge,
whose interfaces are shaped to each --bandwidth in turn; needs root and iproute2. A process has one CPU device
and updates an MLP's parameters on a fixed gradient, so that a step is communication and the update. Writes
nodes.md and, with the time of every round, nodes.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import pages
from benchmarks.cluster.network import network
from benchmarks.cluster.processes import guarded, run_workers
from benchmarks.nodes import page

_BANDWIDTHS = flags.DEFINE_multi_string('bandwidth', ['1gbit', '100mbit'], "Of a node, in tc's notation.")
_NODES = flags.DEFINE_integer('nodes', 2, 'Number of nodes.', lower_bound=2, upper_bound=250)
_PER_NODE = flags.DEFINE_multi_integer('per_node', [2, 4], 'Processes of a node.', lower_bound=2)
_HIDDEN = flags.DEFINE_multi_integer(
    'hidden', [1024, 2048], "The MLP's hidden units, for as many squared parameters and some.", lower_bound=8
)
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 4, 'Steps per turn.', lower_bound=1)
_SLOW = flags.DEFINE_integer('slow_rounds', 3, 'Turns of a step, of dense variants.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 1200, 'Seconds after which a layout is abandoned.')
_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks', 'Folder of the page and its records.')


def main(_) -> int:
    return guarded('nodes', _run)


def _run() -> None:
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    layouts = []
    for per_node in _PER_NODE.value:
        layouts.append(_measure(per_node))
        (folder / 'nodes.json').write_text(json.dumps({'bits': 2, 'layouts': layouts}) + '\n')
        page.write(folder)
        print(f'{_NODES.value} nodes of {per_node} processes measured', file=sys.stderr, flush=True)
    load = f'Load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores.'
    pages.write(folder / 'nodes.md', {'origin': f'{pages.origin("benchmarks.nodes")}\n\n{load}'})


def _measure(per_node: int) -> dict[str, Any]:
    job = {
        'per_node': per_node,
        'hidden': _HIDDEN.value,
        'rates': _BANDWIDTHS.value,
        'variants': list(page.TITLES),
        'rounds': _ROUNDS.value,
        'steps': _STEPS.value,
        'slow': {'rounds': _SLOW.value, 'steps': 1},
    }
    workers, rate = _NODES.value * per_node, _BANDWIDTHS.value[0]
    with network(workers, rate, per_node) as cluster:
        reports = run_workers(cluster, sys.executable, 'benchmarks.nodes.worker', job, _TIMEOUT.value)
    sizes = [_of_size(reports, hidden, per_node) for hidden in map(str, _HIDDEN.value)]
    return {'nodes': _NODES.value, 'per_node': per_node, 'sizes': sizes}


def _of_size(reports: list[dict], hidden: str, per_node: int) -> dict[str, Any]:
    """The records of one size, whose reports are by hidden units, which JSON has as strings."""
    found = [report[hidden] for report in reports]
    rates = {
        rate: page.merged([each['rates'][rate] for each in found], per_node, found[0]['leaving'])
        for rate in _BANDWIDTHS.value
    }
    return {'params': found[0]['params'], 'message': found[0]['message'], 'rates': rates}


if __name__ == '__main__':
    app.run(main)
