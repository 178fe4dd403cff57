"""Nodes that shard their model: FSDP over all devices, and FSDP inside a node with DEF between nodes.

    python -m benchmarks.sharded --output=results/benchmarks/sharded.md

Runs two nodes (--nodes), a process each with two CPU devices (--devices), in network namespaces joined by a
bridge that is shaped to each --bandwidth; needs root and iproute2.
"""

import os
import signal
import sys

import numpy as np
from absl import app, flags

from benchmarks import timing
from benchmarks.cluster.network import Unavailable, check_available, network
from benchmarks.cluster.page import merged
from benchmarks.cluster.processes import WorkerFailed, run_workers

_BANDWIDTHS = flags.DEFINE_multi_string('bandwidth', ['1gbit', '100mbit'], "Between nodes, in tc's notation.")
_NODES = flags.DEFINE_integer('nodes', 2, 'Number of nodes.', lower_bound=2, upper_bound=250)
_DEVICES = flags.DEFINE_integer('devices', 2, 'Devices per node.', lower_bound=1)
_WIDTH = flags.DEFINE_integer('width', 1024, 'Inputs of the MLP; its hidden layers are twice as wide.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Examples of all devices together.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2, 'Steps per turn.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 600, 'Seconds after which a bandwidth is abandoned.')
_OUTPUT = flags.DEFINE_string('output', None, 'File for the page.')

_MODULE = 'benchmarks.cluster.sharded_worker'
_TITLES = {
    'fsdp': 'FSDP over all devices',
    'dense': 'FSDP inside, dense mean between',
    'def16': 'FSDP inside, DEF between, ratio 16',
    'def64': 'FSDP inside, DEF between, ratio 64',
}


def main(_) -> int:
    sections = []
    try:
        check_available()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        for bandwidth in _BANDWIDTHS.value:
            with network(_NODES.value, bandwidth) as cluster:
                sections += _section(
                    bandwidth, run_workers(cluster, sys.executable, _MODULE, _job(), _TIMEOUT.value)
                )
    except (Unavailable, WorkerFailed) as error:
        print(f'sharded: {error}', file=sys.stderr)
        return 2
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.sharded', [_introduction(), *sections])
    return 0


def _job() -> dict:
    width = _WIDTH.value
    return {
        'sizes': [width, 2 * width, 2 * width, width],
        'batch': _BATCH.value,
        'devices': _DEVICES.value,
        'rounds': _ROUNDS.value,
        'warm_up': 1,
        'steps': _STEPS.value,
        'variants': list(_TITLES),
        'alone': [],
    }


def _introduction() -> str:
    return (
        f'{_NODES.value} nodes of {_DEVICES.value} devices, a process each, in network namespaces joined by '
        'a bridge. AdamW; the variants take turns in the same processes. Time: median over nodes and steps, '
        "with quartiles. Bytes between nodes: those that the kernel counts at a node's interface, and those "
        "that a device passes to the program's collectives. Memory: a device's arguments (parameters, state, "
        'batch) and temporaries. All nodes share the cores of one machine, which lengthens compute and what '
        'devices exchange within a node, but not what the network takes. The load average was '
        f'{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores.\n'
    )


def _section(bandwidth: str, reports: list[dict]) -> list[str]:
    rows, plain = [], None
    for name, title in _TITLES.items():
        found = merged([report['variants'][name] for report in reports])
        low, middle, high = 1e3 * np.quantile(found['seconds'], [0.25, 0.5, 0.75])
        plain = plain or middle
        program = found['hlo']
        rows.append(
            [
                title,
                f'{middle:.0f} ({low:.0f} to {high:.0f})',
                f'{plain / middle:.2f}',
                f'{found["tx_bytes"] / 1e6:.2f}',
                f'{program["between"] / 1e6:.2f}',
                f'{program["within"] / 1e6:.2f}',
                f'{program["held"] / 1e6:.1f}',
                f'{program["temporary"] / 1e6:.1f}',
            ]
        )
    columns = [
        'variant',
        'ms a step (quartiles)',
        'times as fast as FSDP',
        'MB a node sends',
        'MB a device passes between nodes',
        'and within',
        'MB held',
        'MB temporary',
    ]
    heading = f'## {bandwidth} between nodes: {reports[0]["params"]:,} parameters, {_BATCH.value} examples\n'
    return [heading, timing.table(columns, rows)]


if __name__ == '__main__':
    app.run(main)
