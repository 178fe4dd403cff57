"""Data-parallel training on a cluster of network namespaces: DEF, dense JAX and PyTorch side by side.

    python -m benchmarks.cluster --bandwidth=1gbit --output=results/benchmarks

Runs four processes (--workers), each in its own namespace, connected by a bridge, with every interface shaped
to --bandwidth; needs root and iproute2. PyTorch, an optional peer, is taken from --torch_python. Writes
--name.md and, with the time of every step, --name.json.
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import pages
from benchmarks.cluster import page
from benchmarks.cluster.network import network
from benchmarks.cluster.processes import WorkerFailed, guarded, run_workers
from benchmarks.cluster.workloads import BATCH

_BANDWIDTH = flags.DEFINE_string(
    'bandwidth', '1gbit', "Of every interface, in tc's notation: '1gbit', '100mbit'."
)
_WORKERS = flags.DEFINE_integer('workers', 4, 'Number of workers.', lower_bound=2, upper_bound=250)
_MODELS = flags.DEFINE_multi_enum('model', ['mlp', 'vgg16'], list(BATCH), 'Which models to train.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 2, 'Steps per turn.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 600, 'Seconds after which a job is abandoned.')
_TORCH = flags.DEFINE_string(
    'torch_python', None, 'A Python with PyTorch; by default this one, if it has it.'
)
_DEF_Q = tuple(f'def_q{compression}_{bits}' for compression in (64, 256) for bits in (1, 2, 4))
_FEW_BITS = flags.DEFINE_multi_enum(
    'def_q', _DEF_Q, _DEF_Q, 'Which compressions and bits of DEF-Q to measure.'
)
_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks', 'Folder of the page and its records.')
_NAME = flags.DEFINE_string('name', 'cluster', 'Of these two files; begins with "cluster".')
flags.register_validator('name', lambda name: name.startswith('cluster'), 'must begin with "cluster".')

# Each tuple is a job: its variants take turns within the same processes.
_LOCAL = ('compute', 'local_sgd', 'local_def64', 'local_def_q64_2', 'local_def_q256_2')  # also one at a time
_JAX = (*_LOCAL, 'dense', 'def64', 'def256')
_TORCH_JOBS = (('compute', 'local_sgd', 'ddp', 'ddp_fp16'), ('compute', 'ddp_powersgd'))


def main(_) -> int:
    return guarded('cluster', _run)


def _run() -> None:
    with network(_WORKERS.value, _BANDWIDTH.value) as cluster:
        results = {model: _measure(cluster, model) for model in _MODELS.value}
    settings = {'bandwidth': _BANDWIDTH.value, 'workers': _WORKERS.value}
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{_NAME.value}.json').write_text(json.dumps(settings | {'models': results}) + '\n')
    page.write(folder)
    pages.write(folder / f'{_NAME.value}.md', {'origin': pages.origin('benchmarks.cluster')})


def _measure(cluster, model: str) -> dict[str, Any]:
    """What the workers report for each variant, and which of PyTorch's could not run."""
    job = {'model': model, 'batch': BATCH[model], 'rounds': _ROUNDS.value, 'steps': _STEPS.value}
    found: dict[str, Any] = {'batch': BATCH[model], 'failed': {}}

    def run(framework: str, python: str, variants: tuple[str, ...], timeout: float) -> None:
        module = f'benchmarks.cluster.{framework}_worker'
        whole = job | {'variants': variants, 'alone': _LOCAL if framework == 'jax' else ()}
        reports = run_workers(cluster, python, module, whole, timeout)
        entry = found.setdefault(framework, {'variants': {}})
        entry |= {name: reports[0][name] for name in ('params', 'version')}
        for name in reports[0]['variants']:
            entry['variants'].setdefault(name, page.merged([report['variants'][name] for report in reports]))
        print(f'{model}: {", ".join(variants)} measured', file=sys.stderr, flush=True)

    run('jax', sys.executable, (*_JAX, *_FEW_BITS.value), _TIMEOUT.value)
    python = _TORCH.value or (sys.executable if importlib.util.find_spec('torch') else None)
    for variants in _TORCH_JOBS if python else ():
        try:
            run('torch', python, variants, _TIMEOUT.value / (1 if 'ddp' in variants else 5))
        except WorkerFailed as error:  # only a peer; PowerSGD's hook is known to fail under gloo
            found['failed'][variants[-1]] = str(error).partition(':')[0][:200]
    return found


if __name__ == '__main__':
    app.run(main)
