"""`--config.elastic=True`: a process of train.py dies and returns, and the run goes on."""

import dataclasses
import functools
import json
import os
import re
import signal
import sys
import threading

import jax
import numpy as np
import pytest
import training_fixtures as fixtures
from faults import processes

from def_jax.mesh.ownership import each
from def_jax.tools.launch import Launcher
from def_jax.trainer import elastic, experiment, loop
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.data.order import train_positions
from def_jax.trainer.launch import interruption

# The survivor waits for the other, however fast the steps are; fewer go on in tests/test_elastic.py.
FLAGS = [
    *('--config=configs/digits.py', '--config.elastic=True', '--config.num_workers=2'),
    *('--config.min_workers=2', '--config.workers_per_device=1', '--config.batch_size=96'),
    *('--config.num_steps=120', '--config.eval_every_steps=40', '--config.log_every_steps=5'),
    '--config.ratio=16',
]


# The launcher shares a process with JAX only here.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.slow
@pytest.mark.parametrize(('who', 'flags'), [(1, []), (1, ['--config.shards_per_worker=2']), (0, [])])
def test_a_process_dies_and_returns_and_the_run_goes_on(environment, tmp_path, monkeypatch, who, flags):
    """Process 1 while it trains, with one or more devices; process 0 while it writes a checkpoint."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(processes.ROOT)
    run, said = tmp_path / 'run', []
    command = [sys.executable, 'train.py', *FLAGS, *flags, f'--workdir={run}']
    launcher = Launcher(command, 2, log=str(tmp_path / 'log'), say=said.append)

    over = threading.Event()

    def kill():  # in a thread, which looks at every moment: a checkpoint is soon written
        while not (processes.is_writing(run, 0) if who == 0 else processes.log_size(run)):
            if over.wait(0.001):
                return
        said.append('killed')
        os.kill(launcher.pid(who), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    try:
        code = launcher.run(lambda: killer.ident or killer.start())
    finally:
        over.set()
        killer.join()
    assert code == 0, (tmp_path / 'log-0.log').read_text()[-2000:]
    log = (tmp_path / 'log-0.log').read_text()
    assert f'process {who} died' in said[1]
    if who == 0:
        assert 'all are started again' in said[1]
    else:
        # It is back before the others know that it died, or joins them later.
        assert re.search(
            r'process 1 died, 2 -> (2 workers|1 workers(?s:.*)process 1 joined, 1 -> 2 workers)', log
        )
        assert re.search(r'process 1 died, .*; y loses a residual of norm', log)
        assert 'process 1 joined' in log
    records = processes.records(run)
    assert [r['step'] for r in records if 'loss' in r] == list(range(5, 121, 5))
    tests = [(r['step'], r['workers']) for r in records if 'test_loss_x' in r]
    assert tests == [(40, 2), (80, 2), (120, 2)]
    result = json.loads((run / 'result.json').read_text())
    assert result['status'] == 'finished' and result['metrics']['test_accuracy_x'] > 0.6
    assert processes.final_state(run)['step'] == 120


def test_the_first_state_is_that_of_any_run(recorded):
    first = elastic.first_state(recorded.experiment.steps)
    fixtures.assert_same_bits(fixtures.gathered(recorded.states[0]), first)
    layout = dataclasses.replace(recorded.experiment.layout, whole=True)
    assert layout.shape_of(first) == layout.shape == (fixtures.NUM_WORKERS,)
    two = each(lambda own, x: np.asarray(x)[:2] if own else x, layout.is_per_worker, first)
    assert layout.shape_of(two) == (2,)


@pytest.mark.usefixtures('live_devices')
def test_workers_of_several_devices_train_and_are_evaluated_like_those_of_one(data_dir):
    """Elastic workers of one process."""
    plain = {'optimizer': 'sgd', 'optimizer_options': {}, 'learning_rate': 0.1, 'schedule': 'drops'}
    plain |= {'outer': '', 'outer_options': {}, 'ratio': 1, 'batch_size': 8, 'num_workers': 2}
    found = []
    for shards in (1, 2):  # blocks are cut from shards, so that both do the same where all is sent
        run = experiment.build(
            fixtures.tiny_config(data_dir, elastic=True, shards_per_worker=shards, **plain)
        )
        workers = elastic.ElasticWorkers(
            run, elastic.first_state(run.steps), lambda line: None, interruption.Watch()
        )
        losses = [workers.train()['loss'] for _ in range(2)]
        found.append((losses, workers.evaluate(), workers.state().params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *found)


def test_the_place_in_an_epoch_does_not_move_with_the_number_of_workers():
    """Of 12 examples a step, 4 workers take all, and 5 take 10, in one part or in two."""
    split = Arrays({'label': np.arange(100)})
    for accumulate, counts in ((1, (4, 5, 4)), (2, (5, 5, 5))):
        config = {'seed': 3, 'batch_size': 12, 'accumulate': accumulate, 'shards_per_worker': 1}
        batches = elastic._Batches(split, config, interruption.Watch())
        for step, count in enumerate([count for count in counts for _ in range(6)]):  # into the third epoch
            taken = batches(step, list(range(count)), count)['label']
            expected = train_positions(100, seed=3, step=step, batch_size=12, num_workers=1)[1][0]
            np.testing.assert_array_equal(taken, expected[: 12 // count * count])


def test_a_run_of_one_process_says_that_elastic_needs_several(data_dir, tmp_path):
    with pytest.raises(ValueError, match='needs several processes'):
        loop.train_and_evaluate(fixtures.tiny_config(data_dir, elastic=True), tmp_path / 'run')
