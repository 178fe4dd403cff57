"""Nodes that shard their model: FSDP over all devices, and FSDP inside a node with DEF between nodes.

    python -m benchmarks.sharded --output=results/benchmarks/sharded.md

Runs two nodes (--nodes), a process each with two CPU devices (--devices), in network namespaces joined by a
bridge that is shaped to each --bandwidth; needs root and iproute2.
"""

import os
import sys

import numpy as np
from absl import app, flags

from benchmarks import pages
from benchmarks.cluster.network import network
from benchmarks.cluster.page import merged
from benchmarks.cluster.processes import guarded, run_workers

_BANDWIDTHS = flags.DEFINE_multi_string('bandwidth', ['1gbit', '100mbit'], "Between nodes, in tc's notation.")
_NODES = flags.DEFINE_integer('nodes', 2, 'Number of nodes.', lower_bound=2, upper_bound=250)
_DEVICES = flags.DEFINE_integer('devices', 2, 'Devices per node.', lower_bound=1)
_WIDTH = flags.DEFINE_integer('width', 1024, 'Inputs of the MLP; its hidden layers are twice as wide.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Examples of all devices together.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2, 'Steps per turn.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 600, 'Seconds after which a bandwidth is abandoned.')
_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks/sharded.md', 'The page, whose tables are replaced.'
)

_MODULE = 'benchmarks.cluster.sharded_worker'
_TITLES = {
    'fsdp': 'FSDP over all devices',
    'dense': 'FSDP inside, dense mean between',
    'def16': 'FSDP inside, DEF between, ratio 16',
    'def64': 'FSDP inside, DEF between, ratio 64',
    'def_q64': 'FSDP inside, DEF-Q between, 64 in 2 bits',
}


def main(_) -> int:
    return guarded('sharded', _run)


def _run() -> None:
    width = _WIDTH.value
    job = {
        'sizes': [width, 2 * width, 2 * width, width],
        'batch': _BATCH.value,
        'devices': _DEVICES.value,
        'threads': 8,  # for the devices' collectives on few cores
        'rounds': _ROUNDS.value,
        'steps': _STEPS.value,
        'variants': list(_TITLES),
    }
    for bandwidth in _BANDWIDTHS.value:
        with network(_NODES.value, bandwidth) as cluster:
            reports = run_workers(cluster, sys.executable, _MODULE, job, _TIMEOUT.value)
        pages.write(_OUTPUT.value, {bandwidth: _section(bandwidth, reports)})
    load = f'Load average {os.getloadavg()[1]:.0f} on {os.cpu_count()} cores.'
    pages.write(_OUTPUT.value, {'origin': f'{pages.origin("benchmarks.sharded")}\n\n{load}'})


def _section(bandwidth: str, reports: list[dict]) -> str:
    plain, rows = None, []
    for name, title in _TITLES.items():
        found = merged([report['variants'][name] for report in reports])
        low, middle, high = 1e3 * np.quantile(found['seconds'], [0.25, 0.5, 0.75])
        plain = plain or middle
        program = found['hlo']
        rows.append(
            {
                'variant': title,
                'ms a step (quartiles)': f'{middle:.0f} ({low:.0f} to {high:.0f})',
                'times as fast as FSDP': f'{plain / middle:.2f}',
                'MB a node sends': f'{found["tx_bytes"] / 1e6:.2f}',
                'MB a device passes between nodes': f'{program["between"] / 1e6:.2f}',
                'and within': f'{program["within"] / 1e6:.2f}',
                'MB held': f'{program["held"] / 1e6:.1f}',
                'MB temporary': f'{program["temporary"] / 1e6:.1f}',
            }
        )
    heading = f'## {bandwidth} between nodes: {reports[0]["params"]:,} parameters, {_BATCH.value} examples\n'
    return f'{heading}\n{pages.table(rows)}'


if __name__ == '__main__':
    app.run(main)
