"""For two nodes of GPUs with a thin line between them: a transformer's loss against seconds.

    export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7  # under srun, JAX would otherwise take one GPU per node
    python -m benchmarks.two_nodes --launch='srun --nodes=2 --ntasks-per-node=1' --device=eth0 \\
        --config.dataset=text_folder --config.dataset_options.path=DIR
    python -m benchmarks.two_nodes --toy

Losses do not depend on the line, so each method makes whole runs on the line as it is, one a seed; then `tc`
shapes --device of both nodes (as root) to each --bandwidth, and every method makes --timed_steps there. All
are runs of train.py with configs/two_nodes.py, which --launch starts on both nodes, in a folder that they
share; other flags go to train.py. Makes the runs that are missing and writes README.md. --toy takes
minutes on a CPU and shows that everything works.
"""

import argparse
import contextlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks import pages, records
from benchmarks.cluster import network
from def_jax.ground.types import AxisName
from def_jax.trainer import metrics
from experiments import spec
from experiments.statistics import mean_std

_HERE = f'{sys.executable} -m def_jax.launch --processes=2 --together --'
_LOG = 10  # steps between two records, whose times are compared
_ABOVE = (0.05, 0.02, 0.0)  # nats above the final loss of dense training: the targets

DENSE = 'AdamW, bf16'
_NODES = {'num_workers': 2, 'shards_per_worker': 8}  # a worker is a node; else it is a GPU
VARIANTS: dict[str, dict[str, Any]] = {
    DENSE: {'method': 'benchmarks.two_nodes:bf16_mean'},
    'PowerSGD, rank 4': {'method': 'powersgd', 'rank': 4},
    'DiLoCo, H = 32': {'method': 'diloco', 'every': 32},
    **{f'DEF-Q, 1/{ratio}': {'ratio': ratio} for ratio in (16, 64)},
    **{f'DEF-Q, 1/{ratio}, nodes': {'ratio': ratio, **_NODES} for ratio in (16, 64)},
}
_TINY: dict[str, Any] = {
    'fake_devices': True,
    'model': 'transformer_115k',
    'model_options.num_layers': 1,
    'dataset_options.context': 32,
    'batch_size': 8,
    'test_examples': 64,
    'compute_dtype': 'float32',
}


def bf16_mean(axis_name: AxisName) -> optax.GradientTransformation:
    """The dense all-reduce of gradients, in bfloat16."""

    def mean(updates, params):
        del params
        sent = optax.tree.cast(updates, jnp.bfloat16)
        return optax.tree.cast_like(lax.pmean(sent, axis_name), updates)

    return optax.stateless(mean)


def main() -> None:
    parser = _parser()
    given, rest = parser.parse_known_args()
    if not given.launch and not given.toy:
        parser.error('--launch is needed: what starts a command on both nodes; or --toy, on this machine')
    if given.timed_steps < 180 or given.timed_steps % 160 != 20:
        parser.error('--timed_steps must be 20 and a multiple of 160, so that cycles of 32 steps are whole')
    launch = shlex.split(given.launch or _HERE)
    folder = Path(given.output or ('runs/two_nodes_toy' if given.toy else 'runs/two_nodes'))
    path = folder / 'runs.jsonl'
    flags = [flag for flag in rest if flag != '--']
    for settings in records.missing(path, _wanted(given)):
        with _shaped(launch, given.device, settings['bandwidth']):
            record = _run(settings, launch, folder, flags)
        records.add(path, record)
    write(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.two_nodes',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--launch', help='runs a command on both nodes; with --toy, twice here by default')
    parser.add_argument('--device', default='', help='network device that is shaped; without one, nothing is')
    parser.add_argument(
        '--bandwidth', nargs='+', default=['25gbit', '10gbit', '1gbit'], help="in tc's notation"
    )
    parser.add_argument('--seed', nargs='+', type=int, default=[0], help='of whole runs')
    parser.add_argument('--steps', type=int, default=5000, help='of a whole run')
    parser.add_argument(
        '--timed_steps', type=int, default=180, help='at each bandwidth: 20 and a multiple of 160'
    )
    parser.add_argument('--toy', action='store_true', help='a tiny model on four devices of two processes')
    parser.add_argument(
        '--output', help='shared folder of runs, records and the page; runs/two_nodes, or two_nodes_toy'
    )
    return parser


def _wanted(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Whole runs, which have no bandwidth, then those that are timed."""
    whole = itertools.product([''], given.seed, VARIANTS)
    timed = itertools.product(given.bandwidth, given.seed[:1], VARIANTS)
    for bandwidth, seed, variant in itertools.chain(whole, timed if given.device or given.toy else ()):
        steps = given.timed_steps if bandwidth else given.steps
        yield {'variant': variant, 'seed': seed, 'bandwidth': bandwidth, 'steps': steps, 'toy': given.toy}


@contextlib.contextmanager
def _shaped(launch: list[str], device: str, bandwidth: str) -> Iterator[None]:
    """Both nodes' device at a bandwidth; as it is, if one of them is empty."""
    if not device or not bandwidth:
        yield
        return
    shape = f'root tbf rate {bandwidth} burst {network.burst(bandwidth)}b latency 50ms'
    subprocess.run([*launch, *f'tc qdisc replace dev {device} {shape}'.split()], check=True)
    try:
        yield
    finally:
        subprocess.run([*launch, *f'tc qdisc del dev {device} root'.split()], check=True)


def _run(settings: dict[str, Any], launch: list[str], folder: Path, flags: list[str]) -> dict[str, Any]:
    """One run of train.py on both nodes; raises CalledProcessError if it fails."""
    name = ' '.join(str(settings[key]) for key in ('variant', 'seed', 'steps', 'bandwidth'))
    workdir = folder / re.sub('[^A-Za-z0-9]+', '_', name)
    chosen = [f'--config.{key}={value}' for key, value in _config(settings).items()]
    program = [sys.executable, 'train.py', '--config=configs/two_nodes.py', *chosen, *flags]
    subprocess.run([*launch, *program, f'--workdir={workdir}'], check=True)
    logged = metrics.read(workdir / 'metrics.jsonl')
    clock = [record['seconds'] for record in logged if 'loss' in record]
    return {
        'settings': settings,
        'curve': [[record['step'], record['test_loss_x']] for record in logged if 'test_loss_x' in record],
        'step_seconds': step_seconds(clock),
        'commit': spec.commit(allow_dirty=True),
    }


def step_seconds(clock: list[float]) -> float:
    """The mean time of a step, from what the clock showed after every tenth; the first twenty are left out.

    A median would leave DiLoCo's messages out: most windows of ten steps have none. Of 180 steps 160 count,
    which hold five of them.
    """
    return (clock[-1] - clock[1]) / (_LOG * (len(clock) - 2))


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    """What differs from configs/two_nodes.py."""
    steps = settings['steps']
    config = {'num_steps': steps, 'seed': settings['seed'], **VARIANTS[settings['variant']]}
    config['eval_every_steps'] = steps if settings['bandwidth'] else max(1, steps // 20)
    if settings['toy']:
        workers = {'num_workers': 4} if 'num_workers' not in config else {'shards_per_worker': 2}
        config |= _TINY | workers
    return config


def write(folder: Path) -> None:
    """Writes the page from the records of a folder."""
    runs = records.read(folder / 'runs.jsonl')
    whole = [run for run in runs if not run['settings']['bandwidth']]
    final = np.mean([run['curve'][-1][1] for run in whole if run['settings']['variant'] == DENSE])
    rows = []
    for variant in dict.fromkeys(run['settings']['variant'] for run in runs):
        curves = [run['curve'] for run in whole if run['settings']['variant'] == variant]
        row: dict[str, object] = {'method': variant, 'loss': mean_std([curve[-1][1] for curve in curves], 3)}
        for run in runs:
            if run['settings']['variant'] == variant and (bandwidth := run['settings']['bandwidth']):
                row[f'{bandwidth}: ms a step'] = f'{1e3 * run["step_seconds"]:.0f}'
                for above in _ABOVE:
                    steps = [s for s in (_reached(curve, final + above) for curve in curves) if s]
                    seconds = f'{np.mean(steps) * run["step_seconds"]:.0f}' if steps else ''
                    row[f'{bandwidth}: s to +{above:g}'] = seconds
        rows.append(row)
    commits = ', '.join(dict.fromkeys(run['commit'] for run in runs))
    pages.write(folder / 'README.md', {'table': _TEXT.format(table=pages.table(rows), commits=commits)})


def _reached(curve: list[list[float]], target: float) -> float | None:
    """The step of the first evaluation whose loss is at most the target."""
    return next((step for step, loss in curve if loss <= target), None)


_TEXT = """
# Two nodes, a transformer

{table}

Test loss in nats a byte; "s to +0.05" are seconds until it is 0.05 above the final one of dense training, the
mean over the seeds that get there: evaluations' steps times the time of a step. Every GPU is a worker, or, in
rows called "nodes", every node. All methods have AdamW's rate, which was not tuned. Commits: {commits}.
"""


if __name__ == '__main__':
    main()
