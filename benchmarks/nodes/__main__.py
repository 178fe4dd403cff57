"""Nodes of several processes with one link a node: a worker a process, a worker a node, and their rivals.

    python -m benchmarks.nodes --output=results/benchmarks

Runs two nodes (--nodes), of one process or several (--node), in network namespaces joined by a bridge, whose
interfaces are shaped to each --bandwidth in turn; needs root and iproute2. A device updates an MLP's
parameters on a fixed gradient, so that a step is communication and the update. Inside a node, processes
communicate by its loopback and devices of one process by memory. Writes nodes.md and, with the time of every
round, nodes.json; layouts of nodes that are not measured again stay there.
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
_LAYOUTS = flags.DEFINE_multi_string(
    'node', ['2x1', '4x1', '1x2'], 'Processes of a node x CPU devices of each, two devices or more.'
)
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
    records = folder / 'nodes.json'
    layouts = json.loads(records.read_text())['layouts'] if records.exists() else {}
    for layout in _LAYOUTS.value:
        layouts[f'{_NODES.value} nodes of {layout}'] = _measure(*map(int, layout.split('x')))
        records.write_text(json.dumps({'bits': 2, 'layouts': layouts}) + '\n')
        page.write(folder)
        print(f'{_NODES.value} nodes of {layout} measured', file=sys.stderr, flush=True)


def _measure(per_node: int, devices: int) -> dict[str, Any]:
    job = {
        'per_node': per_node,
        'devices': devices,
        'threads': 8 if devices > 1 else None,  # for the devices' collectives on few cores
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
    load = f'load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores'
    return {
        'origin': f'{pages.origin("benchmarks.nodes")[:-1]}; {load}.',
        'nodes': _NODES.value,
        'per_node': per_node,
        'devices': devices,
        'sizes': sizes,
    }


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
