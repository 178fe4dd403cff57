"""Runs side by side have the numbers of the trainer, and no run trains on what it is judged by."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text.corpus import Corpus
from def_jax.trainer.data.text.windows import Windows, dataset_of_windows
from def_jax.trainer.launch.interruption import InterruptedRunError
from experiments import lanes, methods, problems, trained
from experiments.spec import Spec

SHORT = {'width': 16, 'steps': 30}
DEF_Q = Spec('digits', 'def_q', 0.05, 3, SHORT, {'ratio': 64, 'bits': 2}, 'validation')
SGD = Spec('digits', 'sgd', 0.1, 3, SHORT | {'workers': 2})
TEXT = Spec('text', 'def_q', 0.01, 3, {'size': '33k', 'steps': 20}, {'ratio': 64, 'bits': 2})
_CONVOLUTIONS = {
    'name': 'digits',
    'num_workers': 2,
    'num_epochs': 2,
    'eval_every_epochs': 2,
    'recalibrate_batches': 2,
}
IN_SEQUENCE = Spec('paper', 'def', 0.05, 3, _CONVOLUTIONS | {'sequential_workers': True}, {'ratio': 8})


def few_windows(**where):
    """The text, of which an evaluation takes a part."""
    config = problems.text(**where)
    config.test_examples = 256
    return config


@pytest.mark.slow
@pytest.mark.parametrize('spec', [DEF_Q, SGD, TEXT, IN_SEQUENCE], ids=['def_q', 'sgd', 'text', 'in_sequence'])
def test_a_lane_has_the_numbers_of_the_trainer_which_goes_on_where_it_stopped(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, 'FOLDER', tmp_path)
    monkeypatch.setitem(problems.PROBLEMS, 'text', problems.Problem(few_windows, 'loss', 1))
    *_, lane = lanes.run([dataclasses.replace(spec, rate=0.02, seed=1), spec], {})
    if spec == DEF_Q:  # interruptions are the trainer's, whatever the run
        with fixtures.signalled(15, 7), pytest.raises(InterruptedRunError, match='after step 7'):
            next(trained.run([spec], {}))
        assert len([*tmp_path.iterdir()]) == 1
    (expected,) = trained.run([spec], {})
    assert not [*tmp_path.iterdir()]
    names = {
        name for name in expected.metrics if not name.endswith('_running')
    }  # which lanes do not evaluate
    assert lane.metrics.keys() == names and len(names) >= 4
    for name in names:
        assert lane.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-4, abs=1e-5), name
    np.testing.assert_allclose(lane.course, expected.course, rtol=1e-3)
    assert lane.course != lanes.PARTS * (lane.course[0],)


def test_a_seed_draws_its_own_blocks_and_batches():
    specs = [Spec('digits', 'def', 0.1, seed, SHORT, {'ratio': 8.0}) for seed in (0, 1)]
    programs = lanes._lanes(specs[0])
    states = [jax.tree.leaves(programs.first(spec).opt_state) for spec in specs]
    differ = [not np.array_equal(*leaves) for leaves in zip(*states, strict=True)]
    assert sum(differ) == 1  # the key of the blocks
    batches = lanes._batches(programs.experiment, [0, 1], range(2))['label']
    assert batches.shape == (2, 2, 8, 8) and not np.array_equal(*batches)


def test_a_run_that_diverges_has_a_record_and_spoils_no_other():
    specs = [Spec('digits', 'sgd', rate, 0, SHORT) for rate in (1e30, 0.1)]
    diverged, other = lanes.run(specs, {})
    assert diverged.metrics['test_loss_x'] is None and diverged.course[-1] is None
    assert other.metrics['test_loss_x'] > 0


def test_runs_side_by_side_differ_in_rate_and_seed_alone():
    with pytest.raises(ValueError, match='must differ in rate and seed alone'):
        next(lanes.run([Spec('digits', 'sgd', 0.1, 0), Spec('digits', 'def', 0.1, 0)], {}))
    with pytest.raises(ValueError, match="'saef' evaluates the model of one worker: use --executor=trainer"):
        next(lanes.run([Spec('digits', 'saef', 0.1, 0)], {}))


# --- No run trains on what it is judged by ---

CIFAR10 = Path(os.environ.get('TFDS_DATA_DIR', ''), 'cifar10')


def _dataset(problem, **where):
    return experiment.build(methods.configured(Spec(problem, 'sgd', 0.1, 0, where))).dataset


HAS_CIFAR10 = pytest.mark.skipif(not CIFAR10.exists(), reason='needs CIFAR-10, prepared in TFDS_DATA_DIR')
REDUCED = pytest.param('cifar10_reduced', [10_000, 5_000, 10_000], marks=HAS_CIFAR10)


@pytest.mark.parametrize(('problem', 'sizes'), [('digits', [800, 200, 797]), REDUCED])
def test_images_are_divided_once(problem, sizes):
    dataset = _dataset(problem)
    problems.check_disjoint(dataset)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == sizes


def test_the_text_is_divided_by_file():
    dataset = _dataset('text')
    problems.check_disjoint(dataset)
    train, *others = (len(each.corpus) for each in (dataset.train, dataset.validation, dataset.test))
    assert 0.7 < train / (train + sum(others)) < 0.9


@pytest.mark.parametrize('split', ['validation', 'test'])
def test_a_planted_image_is_found(monkeypatch, split):
    divide = Dataset.limited

    def leaking(self, **sizes):
        divided = divide(self, **sizes)
        last = len(divided.train)
        there = {'validation': self.train.part(last - 1, last + 199), 'test': self.train.part(0, 1)}[split]
        return dataclasses.replace(divided, **{split: there})

    monkeypatch.setattr(Dataset, 'limited', leaking)
    lanes._made.clear()
    with pytest.raises(ValueError, match=f'1 of the examples of the {split} split are also in the training'):
        next(lanes.run([Spec('digits', 'sgd', 0.1, 0, SHORT)], {}))


def test_a_planted_document_is_found():
    def windows(*documents):
        text = np.frombuffer(b''.join(documents), np.uint8)
        return Windows(Corpus(text, np.cumsum([len(each) for each in documents])), 4)

    train, other = windows(b'import os', b'x = 1'), windows(b'y = 2')
    problems.check_disjoint(dataset_of_windows('', [train, other, windows(b'z = 3')]))
    with pytest.raises(ValueError, match='1 of the examples of the test split'):
        problems.check_disjoint(dataset_of_windows('', [train, other, windows(b'z = 3', b'x = 1')]))
