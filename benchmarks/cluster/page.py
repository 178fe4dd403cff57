"""The page of the cluster benchmark, made from the workers' reports."""

from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.cluster.network import HEADERS
from benchmarks.cluster.processes import ALLOCATOR
from def_jax.tools.plan import Plan, parse_bandwidth

__all__ = ['merged', 'ring_bytes', 'sections']

_TITLES = {
    'local_sgd': 'JAX, no communication: momentum SGD',
    'local_def64': 'JAX, no communication: DEF, 1/64',
    'local_def64_m0': 'JAX, no communication: DEF, 1/64, no momentum',
    'dense': 'JAX, dense: pmean of the gradient',
    'def64': 'DEF, ratio 64',
    'def64_m0': 'DEF, ratio 64, no momentum',
    'def256': 'DEF, ratio 256',
    'def256_m0': 'DEF, ratio 256, no momentum',
    'def_a64_bf16': 'DEF, ratio 64, bfloat16',
    'ddp': 'PyTorch DDP, dense',
    'ddp_fp16': 'PyTorch DDP, fp16 hook',
    'ddp_powersgd': 'PyTorch DDP, PowerSGD hook, rank 4, one bucket',
}
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
        name: float(np.mean([report['counters'][name] for report in reports])) / len(seconds[0])
        for name in ('tx_bytes', 'tx_packets')
    }
    return {'seconds': seconds} | sent | {k: reports[0][k] for k in ('hlo',) if k in reports[0]}


def ring_bytes(message: float, workers: int, packets: float) -> float:
    """Bytes that an interface sends for a ring all-reduce of `message` bytes in `packets` packets."""
    return 2 * (workers - 1) / workers * message + HEADERS * packets


def sections(settings: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """The page's sections, in Markdown."""
    workers, bandwidth = settings['workers'], settings['bandwidth']
    texts = [
        f'{workers} processes in network namespaces connected by a bridge, with every interface shaped to '
        f'{bandwidth} in both directions. The variants of a framework take turns in the same processes; '
        'figures are medians over workers and steps. Compute is the gradient alone, in the same processes; '
        'communication + update is the rest of a step. Communication alone is the difference between a step '
        'and the same step without communication. The workers share the cores and the memory of one machine, '
        'so the update, which is memory-bound, takes longer than on separate machines; its time with one '
        'worker at a time, while the others wait, is shown as well. On a CPU, XLA widens a bfloat16 '
        "all-reduce to float32. Every worker's allocator keeps freed memory "
        f'({ALLOCATOR}); otherwise each step would pay page faults for its temporaries.\n'
    ]
    for model, found in results.items():
        texts += [
            f'## {_MODEL_TITLES[model]}: {found["jax"]["params"]:,} parameters, '
            f'{found["batch"]} examples per worker\n',
            _steps_table(found),
            _failures(found),
            '### Targets\n',
            _targets(found, communication_bound=model != 'vgg16'),
            '### The update, with all workers at once and with one at a time\n',
            _update_table(found),
            "### Bytes sent per worker and step: the program's count and the kernel's\n",
            _bytes_table(found, workers),
            '### `def_jax.plan` compared with the measurement\n',
            _plan_table(found, workers, parse_bandwidth(bandwidth)),
        ]
    return [text for text in texts if text]


def _median(found: dict[str, Any], framework: str, name: str) -> float:
    return float(np.median(found[framework]['variants'][name]['seconds']))


def _rows(found: dict[str, Any]):
    """Framework and name of each variant shown, PyTorch's after JAX's."""
    for framework in ('jax', 'torch'):
        for name in found.get(framework, {}).get('variants', {}):
            if name in _TITLES and not (framework == 'torch' and name == 'local_sgd'):
                yield framework, name


def _rest(found: dict[str, Any], framework: str, name: str) -> float:
    """Seconds of communication and update."""
    return _median(found, framework, name) - _median(found, framework, 'compute')


def _local(name: str) -> str:
    """The same variant without communication."""
    return 'local_sgd' if 'def' not in name else 'local_def64_m0' if name.endswith('m0') else 'local_def64'


def _steps_table(found: dict[str, Any]) -> str:
    dense, rows = _median(found, 'jax', 'dense'), []
    for framework, name in _rows(found):
        step = _median(found, framework, name)
        low, high = np.percentile(found[framework]['variants'][name]['seconds'], [25, 75])
        rest = _rest(found, framework, name)
        local = _local(name)
        speed_up = '' if name.startswith('local') else f'{dense / step:.2f}'
        rows.append(
            [
                _TITLES[name],
                f'{1e3 * step:.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})',
                f'{1e3 * (step - rest):.0f}',
                f'{1e3 * rest:.0f}',
                f'{1e3 * (step - _median(found, framework, local)):.0f}',
                speed_up,
            ]
        )
    columns = ['variant', 'ms per step (quartiles)', 'compute', 'communication + update']
    return timing.table([*columns, 'communication alone', 'speed-up over dense JAX'], rows)


def _failures(found: dict[str, Any]) -> str:
    if 'torch' not in found and not found['failed']:
        return 'PyTorch was not found: `pip install torch` into an environment and set --torch_python.\n'
    return ''.join(f'{_TITLES[name]}: {reason}.\n' for name, reason in found['failed'].items())


def _targets(found: dict[str, Any], *, communication_bound: bool) -> str:
    """Each target with a 95 % interval, and whether it is met: not resolved if the interval contains it."""
    draw = _Draws(found)
    compute, dense, local = draw('jax', 'compute'), draw('jax', 'dense'), draw('jax', 'local_sgd')
    ours, ours_local = draw('jax', 'def64'), draw('jax', 'local_def64')
    rows = []

    def add(what: str, values: np.ndarray, bound: float, at_least: bool) -> None:
        low, middle, high = np.percentile(values, [2.5, 50, 97.5])
        sign, met, missed = (
            ('≥', low >= bound, high < bound) if at_least else ('≤', high <= bound, low > bound)
        )
        verdict = 'yes' if met else 'no' if missed else 'not resolved'
        rows.append([what, f'{middle:.3f} ({low:.3f} to {high:.3f})', f'{sign} {bound:.3g}', verdict])

    rest = ours - compute
    add("communication + update at 64, over dense JAX's", rest / (dense - compute), 1 / 20, False)
    least = draw('jax', 'def256_m0') - compute
    add('the same at 256 without momentum', least / (dense - compute), 1 / 20, False)
    wire, dense_wire = ours - ours_local, dense - local
    add("communication alone at 64, over dense JAX's", wire / dense_wire, 1 / 20, False)
    own, dense_own = (
        draw('jax', f'{name}_alone') - draw('jax', 'compute_alone') for name in ('local_def64', 'local_sgd')
    )
    what = "communication, and the update one worker at a time, at 64, over dense JAX's"
    add(what, (wire + own) / (dense_wire + dense_own), 1 / 20, False)
    if communication_bound:
        add('speed-up at 64', dense / ours, 3.6, True)
        add('speed-up at 256', dense / draw('jax', 'def256'), 4.0, True)
    peers = [name for name in found.get('torch', {}).get('variants', {}) if name.startswith('ddp')]
    if peers:
        best = min(peers, key=lambda name: _rest(found, 'torch', name))
        what = f"communication + update at 64, over the best PyTorch peer's ({_TITLES[best]})"
        add(what, rest / (draw('torch', best) - draw('torch', 'compute')), 0.5, False)
    return timing.table(['what', 'measured (95 % by bootstrap over steps)', 'target', 'met'], rows)


def _update_table(found: dict[str, Any]) -> str:
    """The time of a step without communication, less that of its gradient."""
    rows = []
    for name in ('local_sgd', 'local_def64', 'local_def64_m0'):
        together = _rest(found, 'jax', name)
        alone = _median(found, 'jax', f'{name}_alone') - _median(found, 'jax', 'compute_alone')
        rows.append([_TITLES[name], f'{1e3 * together:.1f}', f'{1e3 * alone:.1f}'])
    columns = ['variant', 'ms, all workers at once', 'ms, one worker at a time']
    return timing.table(columns, rows)


class _Draws:
    """Medians of variants over resampled steps, 2,000 times."""

    def __init__(self, found: dict[str, Any]):
        self._found, self._generator = found, np.random.default_rng(0)

    def __call__(self, framework: str, name: str) -> np.ndarray:
        seconds = np.median(self._found[framework]['variants'][name]['seconds'], axis=0)  # over workers
        return np.median(self._generator.choice(seconds, (2000, len(seconds))), axis=1)


def _bytes_table(found: dict[str, Any], workers: int) -> str:
    rows = []
    for name, variant in found['jax']['variants'].items():
        if not (message := variant.get('hlo', {}).get('bytes')):
            continue
        expected = ring_bytes(message, workers, variant['tx_packets'])
        rows.append(
            [
                _TITLES[name],
                variant['hlo']['all_reduces'],
                f'{message:,}',
                f'{expected:,.0f}',
                f'{variant["tx_bytes"]:,.0f}',
                f'{variant["tx_bytes"] / expected:.3f}',
            ]
        )
    columns = ['variant', 'all-reduces', 'their bytes (HLO)', 'sent by a ring, with headers']
    return timing.table([*columns, 'counted by the kernel', 'ratio (target: within 10 %)'], rows)


def _plan_table(found: dict[str, Any], workers: int, bandwidth: float) -> str:
    """The plan takes the time of a step without communication, and the extra time of DEF's update."""
    plan = Plan(
        params=found['jax']['params'],
        step_time=_median(found, 'jax', 'local_sgd'),
        bandwidth=bandwidth,
        workers=workers,
        overhead=max(0.0, _median(found, 'jax', 'local_def64') - _median(found, 'jax', 'local_sgd')),
    )
    predicted = {'dense': plan.dense_step(), 'def64': plan.step(64), 'def256': plan.step(256)}
    rows = []
    for name, seconds in predicted.items():
        measured = _median(found, 'jax', name)
        speed_ups = predicted['dense'] / seconds, _median(found, 'jax', 'dense') / measured
        off = seconds / measured - 1
        cells = f'{1e3 * seconds:.0f}', f'{1e3 * measured:.0f}', f'{100 * off:+.0f} %'
        rows.append([_TITLES[name], *cells, f'{speed_ups[0]:.2f}', f'{speed_ups[1]:.2f}'])
    columns = ['variant', 'predicted, ms', 'measured, ms', 'error (target: within 20 %)']
    return timing.table([*columns, 'predicted speed-up', 'measured speed-up'], rows)
