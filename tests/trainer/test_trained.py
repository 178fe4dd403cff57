"""After training: the model leaves its run, a run goes on for longer, another split is evaluated."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import training_fixtures as fixtures

import def_jax.trainer
from def_jax.trainer import elastic_run, experiment, loop, trained
from def_jax.trainer.data import augmentation
from def_jax.trainer.models import vgg

PAGE = Path(__file__).parents[2] / 'docs/how_to/trained_models.md'


def loss_of(variables, model, split, spec):
    images = augmentation.standardise(split.arrays['image'], spec)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    return float(optax.softmax_cross_entropy_with_integer_labels(logits, split.arrays['label']).mean())


@pytest.mark.parametrize('point', ['x', 'y'])
def test_a_loaded_model_is_the_one_that_the_run_evaluated(recorded, point):
    variables, model = def_jax.trainer.load(recorded.folder, point)
    dataset = recorded.experiment.dataset
    found = loss_of(variables, model, dataset.test, dataset.spec)
    assert found == pytest.approx(recorded.result['metrics'][f'test_loss_{point}'], rel=1e-5)
    last = fixtures.gathered(recorded.states[-1])
    params = last.params if point == 'x' else jax.tree.map(np.add, last.params, mean(fixtures.residual(last)))
    expected = {'params': params, 'batch_stats': mean(last.batch_stats)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), variables, expected)


def mean(stacked):
    return jax.tree.map(lambda x: x.mean(0), stacked)


def test_the_file_alone_says_what_it_is(recorded):
    with safetensors.safe_open(recorded.folder / 'y.safetensors', framework='np') as file:
        assert file.get_tensor('params/Conv_0/kernel').shape == (3, 3, 1, 8)
        metadata = file.metadata()
    assert (metadata['point'], metadata['step']) == ('y', str(fixtures.NUM_STEPS))
    assert json.loads(metadata['config']) == json.loads(recorded.experiment.config.to_json())
    assert json.loads(metadata['data'])['mean'] == list(recorded.experiment.dataset.spec.mean)


def test_arrays_keep_layout_and_type(recorded, tmp_path):
    """Of a transposed array safetensors would write the memory as it lies."""
    params = {'w': np.arange(6, dtype=np.float32).reshape(2, 3).T, 'b': np.ones((), jnp.bfloat16)}
    params['mlp/~/linear_0'] = {
        'w': np.ones(2, np.float32),
        '100 %2F': np.zeros(1, np.float32),
    }  # as Haiku has them
    trained.write(tmp_path, recorded.experiment, {'x': {'params': params, 'batch_stats': {}}})
    variables, _ = def_jax.trainer.load(tmp_path, 'x')
    fixtures.assert_same_bits(variables, {'params': params})


def test_the_description_of_the_data_is_json(recorded, tmp_path):
    spec = dataclasses.replace(recorded.experiment.dataset.spec, mean=np.ones(1), flip=np.False_)
    dataset = dataclasses.replace(recorded.experiment.dataset, spec=spec)
    trained.write(
        tmp_path, dataclasses.replace(recorded.experiment, dataset=dataset), {'x': {'w': np.ones(1)}}
    )
    with safetensors.safe_open(tmp_path / 'x.safetensors', framework='np') as file:
        data = json.loads(file.metadata()['data'])
    assert (data['mean'], data['flip']) == ([1.0], False)


def test_the_model_of_an_earlier_end_says_so(recorded, tmp_path):
    shutil.copytree(recorded.folder, tmp_path / 'run')
    (tmp_path / 'run' / 'checkpoints' / '99').mkdir()
    with pytest.warns(UserWarning, match=r'y.safetensors is of step \d+, and the run has gone on to 99\.'):
        def_jax.trainer.load(tmp_path / 'run', 'y')


def test_what_cannot_be_loaded_is_refused(recorded, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'holds no trained model\. A run writes its model when it ends'
    ):
        def_jax.trainer.load(tmp_path)
    whole = (recorded.folder / 'x.safetensors').read_bytes()
    (tmp_path / 'x.safetensors').write_bytes(whole[:-7])
    with fixtures.refused("point='y' must be one of x, which the run in"):
        def_jax.trainer.load(tmp_path)
    with fixtures.refused('x.safetensors cannot be read'):
        def_jax.trainer.load(tmp_path, 'x')
    for place in (whole.index(b'learning_rate') + 17, len(whole) - 7):  # of the metadata; of an array
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / 'x.safetensors').write_bytes(changed)
        with fixtures.refused('x.safetensors was changed or damaged'):
            def_jax.trainer.load(tmp_path, 'x')
    safetensors.numpy.save_file({'w': np.ones(1)}, tmp_path / 'x.safetensors')  # without metadata
    with fixtures.refused('x.safetensors was changed or damaged'):
        def_jax.trainer.load(tmp_path, 'x')


def test_a_full_disk_leaves_no_half_file_and_the_run_unfinished(recorded, tmp_path, small_files):
    points = {'x': def_jax.trainer.load(recorded.folder, 'x')[0]}
    with (
        small_files(100),
        fixtures.refused('x.safetensors cannot be written .* free some space, then run the same'),
    ):
        trained.write(tmp_path, recorded.experiment, jax.device_get(points))
    assert not list(tmp_path.iterdir())


def test_elastic_runs_have_the_same_model(recorded):
    last = fixtures.gathered(recorded.states[-1])
    found = elastic_run.variables(recorded.experiment, last)
    for point in ('x', 'y'):
        expected, _ = def_jax.trainer.load(recorded.folder, point)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found[point], expected
        )


# --- A run goes on for longer ---


def test_a_run_that_has_ended_goes_on_with_more_epochs_and_says_at_which_rate(recorded, data_dir, tmp_path):
    short = fixtures.tiny_config(data_dir, num_epochs=3)
    fixtures.train(short, tmp_path)
    result, text = fixtures.printed(fixtures.tiny_config(data_dir), tmp_path)
    length = f'steps: 15 in all before, {fixtures.NUM_STEPS} now; the schedule is now that of the new length'
    assert f'{length}: learning rate 0.001 before, 0.001 now' in text and 'resuming at step 15' in text
    assert (result['metrics']['steps'], result['config']['num_epochs']) == (fixtures.NUM_STEPS, 4)
    assert [point['step'] for point in result['curve']] == [5, 10, 15, 20]
    with safetensors.safe_open(tmp_path / 'y.safetensors', framework='np') as file:
        assert file.metadata()['step'] == str(fixtures.NUM_STEPS)
    with fixtures.refused('num_epochs: 4 there, 3 here'):  # it cannot be taken back
        fixtures.train(short, tmp_path)
    found = loop.evaluate_only(short, tmp_path, 'test')  # as long as the run is, whatever the key says
    assert found['test_loss_y'] == pytest.approx(result['metrics']['test_loss_y'], rel=1e-5)


# --- Another split ---


def test_every_split_of_a_run_can_be_evaluated_on_other_devices(recorded, data_dir):
    before = fixtures.contents(recorded.folder)
    config = fixtures.tiny_config(data_dir, workers_per_device=2, keep_checkpoints=1)  # the run keeps two
    found = loop.evaluate_only(config, recorded.folder, 'test')
    for key in ('test_loss_x', 'test_loss_y', 'test_accuracy_y'):
        assert found[key] == pytest.approx(recorded.result['metrics'][key], rel=1e-5)
    found = loop.evaluate_only(config, recorded.folder, 'train')
    variables, model = def_jax.trainer.load(recorded.folder, 'y')
    dataset = recorded.experiment.dataset
    expected = loss_of(variables, model, dataset.train, dataset.spec)
    assert found['train_loss_y'] == pytest.approx(expected, rel=1e-5)
    with fixtures.refused('needs a validation split'):
        loop.evaluate_only(config, recorded.folder, 'validation')
    with fixtures.refused('seed: 0 there, 1 here'):
        loop.evaluate_only(fixtures.tiny_config(data_dir, seed=1), recorded.folder, 'test')
    assert fixtures.contents(recorded.folder) == before


def test_a_folder_without_a_run_or_a_checkpoint_is_not_evaluated(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir)
    with fixtures.refused('holds no run'):
        loop.evaluate_only(config, tmp_path / 'nowhere', 'test')
    assert not (tmp_path / 'nowhere').exists()
    loop.workdir.claim(tmp_path / 'run', experiment.build(config).config)
    with fixtures.refused('has no checkpoint yet'):
        loop.evaluate_only(config, tmp_path / 'run', 'test')


def test_a_choice_on_validation_is_followed_by_the_test(data_dir, tmp_path):
    """The records of both stay, and the result is that of the split that was asked for last."""
    held_out = {'validation_examples': 100, 'num_epochs': 1}
    fixtures.train(fixtures.tiny_config(data_dir, evaluate_on='validation', **held_out), tmp_path)
    result = fixtures.train(fixtures.tiny_config(data_dir, evaluate_on='test', **held_out), tmp_path)
    assert result['measure']['split'] == 'test' and 'test_loss_y' in result['metrics']
    records = fixtures.records(tmp_path)
    assert [[key for key in r if key.endswith('_loss_y')] for r in records if 'loss' not in r] == [
        ['validation_loss_y'],
        ['test_loss_y'],
    ]


def timeless(figures):
    return {name: value for name, value in figures.items() if name != 'seconds'}


def test_a_run_killed_before_its_result_is_evaluated_with_the_keys_of_the_next_start(
    data_dir, recorded, tmp_path, monkeypatch
):
    """Its last evaluation is on record, with those of before, and a second kill precedes the next."""
    config = fixtures.tiny_config(data_dir, test_examples=50)
    finished, killed = (shutil.copytree(recorded.folder, tmp_path / name) for name in ('finished', 'killed'))
    (killed / 'result.json').unlink()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='killed'):
        patch.setattr(loop, 'evaluate', mock.Mock(side_effect=RuntimeError('killed')))
        fixtures.train(config, killed)
    expected, found = (fixtures.train(config, folder) for folder in (finished, killed))
    assert [*map(timeless, found['curve'])] == [*map(timeless, expected['curve'])]
    assert timeless(found['metrics']) == timeless(expected['metrics']) != timeless(recorded.result['metrics'])


def test_with_other_keys_of_evaluation_a_finished_run_is_evaluated_again(data_dir, tmp_path):
    """It reports what a new run with these keys does, and so does a third start, which changes nothing."""

    first = fixtures.train(fixtures.tiny_config(data_dir, num_epochs=2), tmp_path / 'run')
    for count, changes in enumerate(
        ({'test_examples': 50}, {'recalibrate_batches': 1}, {'evaluate_train_examples': 50}), start=2
    ):
        config = fixtures.tiny_config(data_dir, num_epochs=2, **changes)
        again, other = (fixtures.train(config, tmp_path / name) for name in ('run', *changes))
        assert timeless(again['metrics']) == timeless(other['metrics']) != timeless(first['metrics'])
        assert timeless(again['curve'][-1]) == timeless(other['curve'][-1])
        assert [point['step'] for point in again['curve']] == [5, 10]
        models = [def_jax.trainer.load(tmp_path / name)[0] for name in ('run', *changes)]
        fixtures.assert_same_bits(*models)
        records = fixtures.records(tmp_path / 'run')
        assert sum('test_loss_x' in r and r['step'] == 10 for r in records) == count
        assert fixtures.train(config, tmp_path / 'run') == again
        assert fixtures.records(tmp_path / 'run') == records


# --- The page ---


def test_the_pages_program_runs_in_an_ordinary_process(recorded, tmp_path, environment):
    """As a stranger would run it, in a folder that has the run alone and on one device."""
    (program,) = re.findall(r'```py\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (folder := tmp_path / 'runs/digits').mkdir(parents=True)
    init = functools.partial(vgg.vgg_digits(num_classes=10).init, train=False)
    variables = jax.jit(init)(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    trained.write(folder, recorded.experiment, {'y': jax.device_get(variables)})
    command = [sys.executable, '-c', program]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert re.search(r'\[\d( \d)*\]', process.stdout)


def test_the_end_of_a_run_says_how_to_load_it(recorded, data_dir):
    with mock.patch.object(loop.results, 'read', return_value=recorded.result):
        _, text = fixtures.printed(recorded.config, recorded.folder)
    assert (
        f"the trained model: variables, model = def_jax.trainer.load('{recorded.folder}', point='y')" in text
    )
