"""What the trainer's tests share: a tiny configuration, steps that are compiled once, one recorded run.

Compiling is what these tests would spend their time on, so runs of one configuration share their steps.
"""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import matplotlib.figure
import ml_collections
import numpy as np
import optax
import PIL.Image
import pytest
import rich.console

from configs import digits
from def_jax.trainer import experiment, loop, metrics, models, steps
from def_jax.trainer.checkpointing import checkpoints
from def_jax.trainer.data import augmentation, order
from def_jax.trainer.models import vgg
from def_jax.trainer.state import TrainState

NUM_WORKERS = 4
STEPS_PER_EPOCH = 5
NUM_STEPS = 20
# Neither divides the other, so that records of training and of tests coincide at some steps only.
TINY = {
    'num_workers': NUM_WORKERS,
    'train_examples': 200,
    'batch_size': 40,
    'num_epochs': NUM_STEPS // STEPS_PER_EPOCH,
    'eval_every_epochs': 1,
    'log_every_steps': 3,
    'ratio': 8,
    'weight_decay': 0.05,  # large enough to see where it is taken
}
NUM_PARAMS = 72 + 8 + 8 + 80 + 10  # of the network below: convolution, batch normalisation, dense layer
MESSAGE_SIZE = 9 + 1 + 1 + 10 + 1  # an eighth of every tensor, at least one element
_tiny_vgg = functools.partial(vgg.VGG, stages=((8,),))
_OUTPUT_KEYS = {
    *('diagnostics_every', 'eval_every_epochs', 'log_every_steps', 'keep_checkpoints'),
    *('recalibrate_batches', 'check_replicas_every', 'validation_examples', 'evaluate_on'),
    *('test_examples', 'evaluate_train_examples'),
}
_RELEVANT_KEYS = {
    'init': (
        *('model', 'method', 'detach'),
        *('num_workers', 'inside', 'workers_per_device', 'shards_per_worker', 'seed'),
    ),
    'test_sums': ('num_workers', 'inside', 'workers_per_device', 'shards_per_worker'),
}


def tiny_config(data_dir: Path, **changes) -> ml_collections.ConfigDict:
    config = digits.get_config()
    averages = {'average_every': 2} if changes.get('method') == 'saef' else {}
    config.update(TINY | averages | {'data_dir': str(data_dir)} | changes)
    return config


class CountedStep:
    """A train step, and how often it has been traced: whenever it is, it makes one augmentation."""

    def __init__(self, step):
        self._step, self.lower, self.traces = step, step.lower, 0

    def __call__(self, *args):
        augment = mock.Mock(wraps=augmentation.augment)
        with mock.patch.object(augmentation, 'augment', augment):
            result = self._step(*args)
        self.traces += augment.call_count
        return result


_make_steps, _steps, _parts = experiment.Experiment.steps.func, {}, {}


def shared_steps(run: experiment.Experiment) -> steps.Steps:
    """The steps of an experiment: those of an earlier one, as far as its settings are the same."""
    settings = run.config.to_dict()
    key = _key(settings, settings.keys() - _OUTPUT_KEYS)
    if key not in _steps:
        made = _steps[key] = _make_steps(run)
        state = jax.eval_shape(run.optimizer.init, run.abstract_variables['params'])
        for name, relevant in _RELEVANT_KEYS.items():
            # What decides on the optimizer's state, such as the momentum, is not listed: the state is itself.
            part = name + _key(settings, relevant) + str(run.is_per_worker) + str(state)
            made.__dict__[name] = _parts.setdefault(part, getattr(made, name))
        made.__dict__['train'] = CountedStep(made.train)
    return _steps[key]


def _key(settings, names):
    return json.dumps({name: settings[name] for name in names}, sort_keys=True)


@contextlib.contextmanager
def changed_train_step(change):
    """Runs train with `change(train_step)`; call it inside `tiny_network`."""

    def steps_of(run):
        changed = copy.copy(shared_steps(run))
        changed.__dict__['train'] = change(changed.train)
        return changed

    with mock.patch.object(experiment.Experiment, 'steps', property(steps_of)):
        yield


def unpainted(figure, file, dpi):
    """`Figure.savefig` without painting, which takes more time than the steps of a small run."""
    del figure, dpi
    PIL.Image.new('RGB', (1, 1)).save(file, 'png')


@contextlib.contextmanager
def tiny_network(tmp_path_factory):
    """A small network stands in for vgg_digits, and runs share their steps. Yields the data's folder."""
    data_dir = tmp_path_factory.getbasetemp() / 'trainer_data'
    with (
        mock.patch.object(matplotlib.figure.Figure, 'savefig', unpainted),
        mock.patch.dict(models.MODELS, vgg_digits=_tiny_vgg),
        mock.patch.object(experiment.Experiment, 'steps', property(shared_steps)),
    ):
        yield data_dir


def train(config, folder) -> dict[str, Any]:
    return printed(config, folder)[0]


def printed(config, folder) -> tuple[dict[str, Any], str]:
    """The result of a run, and what it printed."""
    console = rich.console.Console(file=io.StringIO(), width=300)
    return loop.train_and_evaluate(config, folder, console), console.file.getvalue()


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """An uninterrupted run and its state, on every device, after 0, 1, ... steps."""

    folder: Path
    config: ml_collections.ConfigDict
    experiment: experiment.Experiment
    result: dict[str, Any]
    states: list[TrainState]  # of lists of arrays, one a device
    losses: list[np.ndarray]  # [K], at steps 1, 2, ...


@functools.cache
def recorded_run(data_dir: Path) -> RecordedRun:
    """The run of `tiny_config`, made once; call it inside `tiny_network`."""
    states, losses, config = [], [], tiny_config(data_dir)
    folder = data_dir.parent / 'recorded_run'

    def recording(step):
        def recorded(state, batch):
            if not states:
                states.append(shards(state))  # before its memory is taken over
            state, step_metrics = step(state, batch)
            states.append(shards(state))
            losses.append(np.array(step_metrics['loss']))
            return state, step_metrics

        return recorded

    with changed_train_step(recording):
        result = train(config, folder)
    return RecordedRun(folder, config, experiment.build(config), result, states, losses)


def shards(state):
    """A tree like `state` that holds, in place of every array, its parts on the devices, in their order."""

    def of(leaf):
        return [np.array(s.data) for s in sorted(leaf.addressable_shards, key=lambda s: s.device.id)]

    return jax.tree.map(of, state)


def gathered(state):
    """The state of a `RecordedRun` on the host: [K, ...] where workers differ, else one copy."""
    own = ('inner', 'residual', 'worker', 'left_out', 'batch_stats')

    def one(path, parts):
        differs = any(getattr(entry, 'name', None) in own for entry in path)
        return np.concatenate(parts) if differs else parts[0]

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=lambda node: isinstance(node, list))


def save(folder: Path, recorded: RecordedRun, *numbers: int) -> None:
    """Adds the checkpoints of some steps of the recorded run to a folder."""
    with checkpoints.Checkpoints(folder, recorded.experiment) as manager:
        for step in numbers:
            manager.save(placed(gathered(recorded.states[step]), recorded.experiment))


def contents(folder: Path) -> dict[Path, bytes]:
    """The files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def restored(folder: Path, run: experiment.Experiment) -> TrainState:
    """The newest checkpoint of a run."""
    with checkpoints.Checkpoints(folder, run) as manager:
        return manager.restore(run.steps.init())


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures that measure time."""
    timeless = metrics.read(folder / 'metrics.jsonl')
    return [
        {k: v for k, v in r.items() if k != 'seconds' and not k.endswith('_per_second')} for r in timeless
    ]


def assert_same_bits(actual, expected):
    """Trees of arrays are equal bit for bit, also where they are NaN or zero."""
    actual, structure = jax.tree_util.tree_flatten_with_path(actual)
    expected, expected_structure = jax.tree_util.tree_flatten_with_path(expected)
    assert structure == expected_structure
    for (path, a), (_, b) in zip(actual, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        same = (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
        assert same, f'{jax.tree_util.keystr(path)} differs'


def assert_restored(folder: Path, recorded: RecordedRun, step: int) -> None:
    """The newest checkpoint of a folder holds the state of the recorded run at a step, bit for bit."""
    assert_same_bits(shards(restored(folder, recorded.experiment)), recorded.states[step])


@contextlib.contextmanager
def refused(message: str):
    """The block raises a ValueError of one line that matches."""
    with pytest.raises(ValueError, match=message) as error:
        yield error
    assert '\n' not in str(error.value)


def placed(state, run: experiment.Experiment) -> TrainState:
    """A state of host arrays on the devices of an experiment, as its train step takes it."""
    like = run.steps.init()

    def place(host, leaf):
        return jax.device_put(np.reshape(host, leaf.shape), leaf.sharding)

    return jax.tree.map(place, state, like)


def with_changed_copy(x, device, change):
    """An array of which one device's copy, or part, is changed."""
    copies = [shard.data for shard in sorted(x.addressable_shards, key=lambda s: s.device.id)]
    copies[device] = jax.device_put(change(np.array(copies[device])), copies[device].device)
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)


def residual(state):
    """The residual of every worker, a tree of arrays [K, ...]."""
    return optax.tree.get(state.opt_state, 'residual')


class Killed(BaseException):
    """Stands for what ends a process: no handler of the trainer may catch it."""


@contextlib.contextmanager
def killed(target, name, *, when):
    """The call number `when` of a function, from 0, raises `Killed`; the block must be ended by it."""
    function, calls = getattr(target, name), iter(range(when + 1))

    def kill_or_call(*args, **kwargs):
        if next(calls) == when:
            raise Killed
        return function(*args, **kwargs)

    with mock.patch.object(target, name, kill_or_call):
        try:
            yield
        except Killed:
            return
    raise AssertionError(f'{name} was called {when} times at most')


@contextlib.contextmanager
def poisoned_batch(step, worker):
    """An impossible label in one worker's batch: its loss, and nothing else, becomes NaN."""
    train_batch = order.train_batch

    def poisoned(*args, **kwargs):
        batch = train_batch(*args, **kwargs)
        if kwargs['step'] == step:
            batch['label'][worker] = 99
        return batch

    with mock.patch.object(order, 'train_batch', poisoned):
        yield


@contextlib.contextmanager
def poisoned_state(step, poison):
    """The state is replaced by `poison(state)` after so many steps."""

    def poisoning(train_step):
        def poisoned(state, batch):
            state, metrics = train_step(state, batch)
            return (poison(state) if int(state.step) == step else state), metrics

        return poisoned

    with changed_train_step(poisoning):
        yield


def poisoned_params(state):
    """The state with parameters that are NaN."""
    nan = jax.tree.map(lambda x: jax.device_put(np.full_like(x, np.nan), x.sharding), state.params)
    return state.replace(params=nan)


def signalled(number, step):
    """The signal arrives after so many steps."""
    return poisoned_state(step, lambda state: signal.raise_signal(number) or state)
