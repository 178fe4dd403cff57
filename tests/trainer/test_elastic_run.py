"""`--config.elastic=True` in one process; of those that die, see test_faults.py."""

import dataclasses
import functools

import jax
import ml_collections
import numpy as np
import pytest
import rich.console
import training_fixtures as fixtures

import def_jax
from def_jax.state.ownership import each
from def_jax.tools import launcher
from def_jax.trainer import elastic_run, experiment, loop
from def_jax.trainer.checkpointing import regrouping, workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.data.order import train_positions
from def_jax.trainer.launch import interruption
from def_jax.trainer.launch.exits import EndedError, ExitCode, LostProcessError


def test_the_first_state_is_that_of_any_run(recorded):
    first = elastic_run.first_state(recorded.experiment.steps)
    fixtures.assert_same_bits(fixtures.gathered(recorded.states[0]), first)
    config = ml_collections.FrozenConfigDict({'elastic': True})
    run = dataclasses.replace(recorded.experiment, config=config)
    assert regrouping.shape_of(run, first) == run.workers.shape == (fixtures.NUM_WORKERS,)
    two = each(lambda own, x: np.asarray(x)[:2] if own else x, run.is_per_worker, first)
    assert regrouping.shape_of(run, two) == (2,)


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
        workers = elastic_run.ElasticWorkers(
            run, elastic_run.first_state(run.steps), lambda line: None, interruption.Watch()
        )
        losses = [workers.train()['loss'] for _ in range(2)]
        found.append((losses, workers.evaluate(), workers.state().params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), *found)


def test_the_place_in_an_epoch_does_not_move_with_the_number_of_workers():
    """Of 12 examples a step, 4 workers take all, and 5 take 10, in one part or in two."""
    split = Arrays({'label': np.arange(100)})
    for accumulate, counts in ((1, (4, 5, 4)), (2, (5, 5, 5))):
        config = {'seed': 3, 'batch_size': 12, 'accumulate': accumulate, 'shards_per_worker': 1}
        batch = functools.partial(elastic_run._batch, split, config, interruption.Watch())
        for step, count in enumerate([count for count in counts for _ in range(6)]):  # into the third epoch
            taken = batch(step, list(range(count)), count)['label']
            expected = train_positions(100, seed=3, step=step, batch_size=12, num_workers=1)[1][0]
            np.testing.assert_array_equal(taken, expected[: 12 // count * count])


@pytest.mark.usefixtures('live_devices')
def test_too_few_workers_save_what_they_have(data_dir, tmp_path, monkeypatch):
    """With the losses since the last record, for the run that goes on."""
    config = fixtures.tiny_config(data_dir, elastic=True, workers_per_device=1, log_every_steps=5)
    run, folder = experiment.build(config), workdir.claim(tmp_path / 'run', config)
    team_run, steps = def_jax.elastic.Team.run, iter(range(7))

    def ended(*args):
        if next(steps, None) is None:
            raise def_jax.elastic.TooFewError('2 workers after step 7')
        return team_run(*args)

    monkeypatch.setattr(def_jax.elastic.Team, 'run', ended)
    with Checkpoints(folder, run) as checkpoints, pytest.raises(LostProcessError, match='after step 7'):
        console = rich.console.Console(quiet=True)
        loop._Run(run, folder, checkpoints, console, interruption.Watch()).train_and_evaluate()
    assert max(checkpoints.steps()) == 7
    *_, last = fixtures.records(folder)
    assert last['step'] == 7 and len(last['pending']) == 2


@pytest.mark.usefixtures('live_devices')
def test_workers_that_differ_save_nothing_and_are_not_started_again(data_dir, tmp_path, monkeypatch):
    """The code of the error is one that the launcher takes for an end."""
    config = fixtures.tiny_config(data_dir, elastic=True, workers_per_device=1)
    run, folder = experiment.build(config), workdir.claim(tmp_path / 'run', config)
    team_run = def_jax.elastic.Team.run

    def changed(team, *args):
        results = team_run(team, *args)
        kernel = team._state[0]['Dense_0']['kernel']
        team._state[0]['Dense_0']['kernel'] = fixtures.with_changed_copy(
            kernel, device=1, change=lambda copy: copy + 1
        )
        return results

    monkeypatch.setattr(def_jax.elastic.Team, 'run', changed)
    with Checkpoints(folder, run) as checkpoints, pytest.raises(EndedError, match='was not saved') as error:
        console = rich.console.Console(quiet=True)
        loop._Run(run, folder, checkpoints, console, interruption.Watch()).train_and_evaluate()
    assert error.value.exit_code == ExitCode.REPLICAS_DIFFER in launcher._ENDED
    assert not checkpoints.steps()


def test_a_last_step_without_its_evaluation_is_for_fixed_workers(data_dir, tmp_path):
    """Elastic ones cannot evaluate a state that they restored."""
    config = fixtures.tiny_config(data_dir, elastic=True, workers_per_device=1)
    run, folder = experiment.build(config), workdir.claim(tmp_path / 'run', config)
    with Checkpoints(folder, run) as checkpoints:
        first = elastic_run.first_state(run.steps)
        checkpoints.save(dataclasses.replace(first, step=np.int32(run.num_steps)))
        checkpoints.wait()
        with fixtures.refused('not the evaluation after it. Run it once more with --config.elastic=False'):
            loop._Run(run, folder, checkpoints, rich.console.Console(quiet=True), interruption.Watch())
