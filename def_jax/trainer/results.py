"""result.json: the configuration, environment and results of a run."""

import importlib.metadata
import json
import platform
import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import def_jax
from def_jax.trainer.checkpointing.workdir import write_json
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.metrics import MetricLog
from def_jax.trainer.tasks.base import Measure

__all__ = ['finished', 'is_outdated', 'read', 'write']

_EVALUATION = ('evaluate_on', 'evaluate_train_examples', 'recalibrate_batches', 'test_examples')
_SPLITS = ('test_', 'validation_', 'train_')  # how the names of metrics begin


def write(
    run: Path,
    experiment: Experiment,
    log: MetricLog,
    diverged: Any = None,
    sample: str | None = None,
    exchange: float | None = None,
) -> dict[str, Any]:
    """Writes result.json, also for a run that diverged, and returns its content.

    `exchange`: seconds that an all-reduce of a step's bytes takes alone, if that was measured.
    """
    steps_done = diverged.step if diverged else experiment.num_steps
    config, measure, sent = experiment.config, experiment.measure, experiment.communication
    ratio = 'compression' if experiment.method.in_bytes else 'ratio'
    ratio = f' at {ratio} {config.ratio:g}' if experiment.method.ratio_is_free else ''
    workers = f'{config.num_workers} worker{"s" * (config.num_workers > 1)}'
    title = f'{experiment.title}{ratio}: {config.model} on {config.dataset}, {workers}'
    tests = [record for record in log.records if measure.key('x') in record]
    last = tests[-1] if tests else {}
    final = {name: value for name, value in last.items() if name.startswith(_SPLITS)}
    # The training loss is that of the records that end in the last epoch, or in as many steps as lie between
    # evaluations if these are fewer.
    last_part = steps_done - min(experiment.steps_per_epoch, experiment.steps_per_evaluation)
    losses = [each for each in _losses(log) if each[0] > last_part]
    result = {
        'title': title,
        'points': list(experiment.method.points),
        'answers': experiment.answers,
        'measure': {'split': measure.split, 'metric': measure.metric.name},
        'status': 'diverged' if diverged else 'finished',
        'diverged': {'step': diverged.step, 'worker': diverged.worker} if diverged else None,
        'metrics': final
        | {
            'train_loss': _mean(losses),
            'steps': steps_done,
            'skipped': sum(record.get('skipped', 0) for record in log.records),
            'seconds': log.last('seconds'),
        },
        'communication': {
            'num_params': sent.num_params,
            'message_size': sent.message_size,
            'true_ratio': sent.true_ratio,
            'visits_per_block': steps_done / sent.true_ratio,
            'bytes_per_step': sent.bytes_per_step,
            'dense_bytes_per_step': sent.dense_bytes_per_step,
            'megabytes_sent': sent.megabytes_sent(steps_done, log.records),
            'megabytes_dense': steps_done * sent.dense_bytes_per_step / 1e6,
        },
        'speed': {'step_seconds': _step_seconds(experiment, log), 'exchange_seconds': exchange},
        'data': dict(experiment.dataset.about),
        'sample': sample,
        'curve': _curve(log, measure),
        'diagnostics': [record for record in log.records if 'variance' in record],
        'config': json.loads(config.to_json()),
        'environment': _environment(experiment.workers.devices),
    }
    write_json(run / 'result.json', result)
    return result


def read(run: Path) -> dict[str, Any] | None:
    """The result of a run that finished or diverged; None if it is missing or incomplete."""
    try:
        result = json.loads((run / 'result.json').read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) else None


def finished(run: Path, steps: int) -> dict[str, Any] | None:
    """The result of a run that finished after so many steps; None if there is none."""
    result = read(run)
    ended = result and (result.get('status'), result.get('metrics', {}).get('steps')) == ('finished', steps)
    return result if ended else None


def is_outdated(result: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a configuration asks for another evaluation than that of a result."""
    before = result.get('config', {})
    return any(before.get(key, KEYS[key].default) != config[key] for key in _EVALUATION)


def _step_seconds(experiment: Experiment, log: MetricLog) -> float | None:
    """The median over the training records; None if no record has a speed."""
    dataset = experiment.dataset
    name = f'{dataset.unit}_per_second'
    speeds = [record[name] for record in log.records if name in record]
    units = experiment.config.batch_size * dataset.units_per_example
    return units / statistics.median(speeds) if speeds else None


def _curve(log: MetricLog, measure: Measure) -> list[dict[str, Any]]:
    """The records of evaluations, each with the mean training loss since the previous one."""
    curve: list[dict[str, Any]] = []
    since, losses = [], iter(_losses(log))
    for record in log.records:
        if 'loss' in record:
            since.append(next(losses))
        if measure.key('x') in record:
            again = curve and curve[-1]['step'] == record['step']  # with other keys of evaluation
            loss = curve.pop()['train_loss'] if again else _mean(since)
            curve.append(record | {'train_loss': loss})
            since = []
    return curve


def _losses(log: MetricLog) -> list[tuple[int, float, int]]:
    """Of each training record: its step, its loss, and of how many steps this is the mean."""
    found = [record for record in log.records if 'learning_rate' in record]
    before = [0, *(record['step'] for record in found)]
    return [
        (record['step'], record['loss'], record['step'] - last - record.get('skipped', 0))
        for record, last in zip(found, before, strict=False)
        if 'loss' in record
    ]


def _mean(losses: list[tuple[int, float, int]]) -> float | None:
    total = sum(steps for _, _, steps in losses)
    return sum(loss * steps for _, loss, steps in losses) / total if total else None


def _environment(devices: list[jax.Device]) -> dict[str, Any]:
    packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')
    device = devices[0]
    return {
        'python': platform.python_version(),
        'def_jax': def_jax.__version__,
        'packages': {name: version for name in packages if (version := _version(name))},
        'device': f'{device.device_kind} ({device.platform})',
        'num_devices': len(devices),
        'num_processes': jax.process_count(),
        'commit': _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # TFDS, which is an extra
        return None


def _commit() -> str | None:
    """The commit of the source tree, plus '+' if it has local changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(Path(def_jax.__file__).parent), *arguments]
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        git('ls-files', '--error-unmatch', '__init__.py')  # installed into a repository, it is not of that
        return git('rev-parse', 'HEAD') + '+' * bool(git('status', '--porcelain', '--untracked-files=no'))
    except (OSError, subprocess.CalledProcessError):
        return None
