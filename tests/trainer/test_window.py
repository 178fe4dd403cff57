"""What a training record says of its steps: the rate that they were made at, and how fast they were."""

import contextlib
import itertools
import signal
import types

import jax
import numpy as np
import optax
import pytest
import training_fixtures as fixtures
from test_metrics import events_of

from def_jax.trainer import experiment, loop, metrics, window
from def_jax.trainer.checkpointing.checkpoints import Checkpoints

TIMED = 40.0  # images a second: a batch


@pytest.mark.parametrize('overlap', [False, True])
def test_the_recorded_rate_is_that_of_the_schedule_which_a_skipped_step_does_not_move(
    data_dir, tmp_path, overlap
):
    """It drops after 10 and 15 steps that count; with `overlap`, the other workers' steps do."""
    config = fixtures.tiny_config(data_dir, skip_nonfinite=True, overlap=overlap, log_every_steps=1)
    with fixtures.poisoned_batch(step=7, worker=2):
        with fixtures.signalled(signal.SIGTERM, 9), contextlib.suppress(loop.InterruptedRunError):
            fixtures.train(config, tmp_path / 'run')
        fixtures.train(config, tmp_path / 'run')
    found = [r['learning_rate'] for r in fixtures.records(tmp_path / 'run') if 'learning_rate' in r]
    first, count = (10, 20) if overlap else (11, 19)
    rates = [0.1] * first + [0.01] * 5 + [0.001] * (15 - first)
    assert found == pytest.approx(rates)
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    assert {*np.ravel(optax.tree.get(state.opt_state, 'count')).tolist()} == {count}


@pytest.mark.parametrize('computed', ['while the step is called', 'later'])
def test_compilation_evaluations_and_diagnostics_do_not_count_as_time_of_steps(
    data_dir, tmp_path, monkeypatch, computed
):
    """Simulated devices may compute before a step returns: a record before an evaluation took no time."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(window, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(target, name, seconds):
        function, durations = getattr(target, name), iter(seconds)

        def timed(*args, **kwargs):
            clock.now += next(durations)
            return function(*args, **kwargs)

        monkeypatch.setattr(target, name, timed)

    step = (window.Window, 'add') if computed == 'later' else (loop.FixedWorkers, 'train')
    takes(*step, itertools.chain([100], itertools.repeat(1)))
    for name in ('evaluate', 'diagnose', 'check_replicas'):
        takes(loop.FixedWorkers, name, itertools.repeat(30))
    for name in ('save', 'wait'):
        takes(Checkpoints, name, itertools.repeat(20))
    make = experiment.parts.make_schedule

    def compiled_once(config, num_steps):
        schedule, durations = make(config, num_steps), iter([10])

        def timed(step):
            clock.now += 0 if isinstance(step, jax.core.Tracer) else next(durations, 0)
            return schedule(step)

        return timed

    monkeypatch.setattr(experiment.parts, 'make_schedule', compiled_once)
    often = {'log_every_steps': 4, 'check_replicas_every': 3, 'diagnostics_every': 3}
    config = fixtures.tiny_config(data_dir, num_epochs=2, **often)
    _, screen = fixtures.printed(config, tmp_path / 'run')
    training = [r for r in metrics.read(tmp_path / 'run' / 'metrics.jsonl') if 'loss' in r]
    assert [(r['step'], r['images_per_second']) for r in training] == [(n, TIMED) for n in (4, 5, 8, 10)]
    assert 'lr 0.1  40 images/s  ' in screen
    (events,) = (tmp_path / 'run' / 'tensorboard').iterdir()
    shown = [v.simple_value for e in events_of(events) for v in e.summary.value if 'per_second' in v.tag]
    assert shown == [TIMED] * 4


def test_a_record_of_the_first_step_alone_has_no_speed(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, num_epochs=1, log_every_steps=1)
    _, screen = fixtures.printed(config, tmp_path / 'run')
    training = [r for r in metrics.read(tmp_path / 'run' / 'metrics.jsonl') if 'loss' in r]
    assert [r['step'] for r in training if 'images_per_second' not in r] == [1]
    assert 'lr 0.1  88 bytes sent' in screen


def test_a_loss_that_is_not_finite_names_the_worker_of_its_device(data_dir, tmp_path):
    """Workers of two devices have two losses each."""
    run = experiment.build(fixtures.tiny_config(data_dir, num_workers=2, inside=2))
    with contextlib.closing(metrics.MetricLog(tmp_path, 0, None)) as log:
        opened = window.Window(run, log, 0)
        opened.add({'loss': np.array([1, 1, np.nan, 1], np.float32)})
        opened.mark_due(1)
        with pytest.raises(loop.DivergedError, match='the loss of worker 1 is nan'):
            opened.flush()
