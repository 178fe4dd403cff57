"""Data sets of TFDS, really prepared: read without TensorFlow where their files allow it."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
import training_fixtures as fixtures
from toy_images import NAME, NUM_EXAMPLES, prepared

from def_jax.trainer.data import image_folder, in_memory
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.prepared import examples, prepared_builder
from def_jax.trainer.data.text import catalogue, corpus
from def_jax.trainer.errors import one_line

WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *where):  # TensorFlow is not installed
        return None if name == 'tensorflow' else super().find_spec(name, *where)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from configs import digits
from def_jax.trainer import experiment
from def_jax.trainer.launch import __main__
from def_jax.trainer.data.text import catalogue
from def_jax.trainer.data import image_folder, streaming

data_dir, name = sys.argv[1:]
run = experiment.build(digits.get_config('num_workers=1'))
next(run.train_batches(0))
catalogue.open_stdlib()
assert len(image_folder.open_tfds_images(name, data_dir, image_size=8).train) == 23
train, _ = streaming.open_dataset(name, 8, data_dir)
next(train.train_batches(seed=0, first_step=0, batch_size=4, num_workers=2))
catalogue.open_text(name, data_dir, feature='file_name')
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return prepared(tmp_path_factory.getbasetemp())


def test_nothing_but_files_that_need_it_imports_tensorflow(folder):
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, '-c', WITHOUT_TENSORFLOW, folder, NAME], cwd=root, check=True)


def test_files_of_both_formats_are_read_alike_and_one_needs_tensorflow(folder, tmp_path, monkeypatch):
    in_order = prepared_builder(NAME, prepared(tmp_path, 'tfrecord'))
    at_random = prepared_builder(NAME, folder)
    for split, count in (('train', NUM_EXAMPLES), ('test[2:7]', 5)):
        found, expected = (list(examples(builder, split)) for builder in (at_random, in_order))
        assert len(found) == len(expected) == count
        for one, other in zip(found, expected, strict=True):
            assert one.keys() == other.keys() and one['file_name'] == other['file_name']
            assert one['label'] == other['label']
            # JPEG decoders round differently.
            assert np.abs(one['image'].astype(int) - other['image']).max() <= 1
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    with fixtures.refused(r"files of data set 'toy_imagenet' in .* pip install 'def_jax\[tensorflow\]', or"):
        next(examples(in_order, 'train'))


def test_any_images_of_tfds_by_their_name(folder):
    options = {'image_size': 4, 'train': 'train[:50%]', 'test': 'test[:20%]'}
    dataset = image_folder.open_tfds_images(NAME, folder, **options)
    assert dataset.train.arrays['image'].shape == (12, 4, 4, 3) and len(dataset.test) == 5
    assert dataset.spec.num_classes == NUM_EXAMPLES and dataset.validation is None
    brightness = dataset.train.arrays['image'].mean((1, 2, 3))
    np.testing.assert_array_equal((brightness + 2) // 10, dataset.train.arrays['label'])
    unlabelled = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': np.int64(label)} for label in (0, -1)]
    with (
        mock.patch.object(image_folder, 'examples', return_value=unlabelled),
        fixtures.refused(r"labels of the split 'train' must be in \[0, 22\].* but one is -1"),
    ):
        image_folder.open_tfds_images(NAME, folder, **options)


def test_features_of_other_names_and_integer_labels(monkeypatch):
    features = {
        'picture': tfds.features.Image(),
        'number': tfds.features.Scalar(np.int64),
        'share': tfds.features.Scalar(np.float32),
    }
    found = [{'picture': np.full((4, 4, 1), n, np.uint8), 'number': np.int64(n % 3)} for n in range(6)]
    builder = mock.Mock()
    builder.info.features = features
    monkeypatch.setattr(image_folder, 'prepared_builder', lambda name, data_dir: builder)
    monkeypatch.setattr(image_folder, 'examples', lambda builder, split: found)
    options = {'image_size': 4, 'image': 'picture', 'label': 'number'}
    dataset = image_folder.open_tfds_images('mine', **options)
    assert dataset.spec.num_classes == 3
    images, labels = (dataset.train.arrays[name] for name in ('image', 'label'))
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)
    for changes, message in {
        ('image', 'image'): "image='image' must be a feature .* has .'number', 'picture', 'share'",
        ('label', 'class'): "label='class' must be a feature of the data set, but 'mine' has",
        ('label', 'share'): "label='share' must be a feature of classes or integers, but is float32",
    }.items():
        with fixtures.refused(message):
            image_folder.open_tfds_images('mine', **options | dict([changes]))


def test_any_text_of_tfds_by_its_name_whose_bytes_are_written_once(folder):
    dataset = catalogue.open_text(NAME, folder, feature='file_name', context=4, validation='train[:50%]')
    documents = np.split(dataset.test.corpus.text, dataset.test.corpus.ends)[:-1]
    assert sorted(map(bytes, documents)) == sorted(f'file {n}'.encode() for n in range(NUM_EXAMPLES))
    assert 0 < len(dataset.validation) < len(dataset.train)
    assert dataset.train.corpus.about['documents'] == NUM_EXAMPLES
    with mock.patch.object(corpus, 'write_corpus', side_effect=AssertionError):
        again = catalogue.open_text(NAME, folder, feature='file_name', context=7, validation='train[:50%]')
    assert again.train.context == 7
    with fixtures.refused(r"has no feature 'code'; it has \['file_name', 'image', 'label'\]"):
        catalogue.open_text(NAME, folder, feature='code')


def test_a_class_that_a_data_set_names_is_not_run(folder, tmp_path, monkeypatch):
    """TFDS would import its module; a user who has imported it may use it."""
    (tmp_path / 'code').mkdir()
    code = 'import tensorflow_datasets as tfds\nclass Image(tfds.features.Image):\n    pass\n'
    (tmp_path / 'code' / 'foreign_features.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path / 'code')
    shutil.copytree(Path(folder) / NAME, tmp_path / 'data' / 'mine')
    (features,) = (tmp_path / 'data' / 'mine').rglob('features.json')
    text = features.read_text().replace('tensorflow_datasets.core.features.image_feature', 'foreign_features')
    features.write_text(text)
    for info in (tmp_path / 'data' / 'mine').rglob('dataset_info.json'):
        info.write_text(info.read_text().replace(f'"{NAME}"', '"mine"'))
    with fixtures.refused(r"names the class 'foreign_features.Image', whose module would be"):
        prepared_builder('mine', tmp_path / 'data')
    assert 'foreign_features' not in sys.modules
    import foreign_features

    builder = prepared_builder('mine', tmp_path / 'data')
    assert type(builder.info.features['image']) is foreign_features.Image


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_is_as_tfds_describes_it(name):
    features = tfds.builder(name).info.features
    assert features['image'].shape == DATASETS[name].image_shape
    assert features['label'].num_classes == DATASETS[name].num_classes


def raised_again():
    """As TFDS does: under the same class, without the name, after everything that it was to write."""
    error = ModuleNotFoundError('Failed to encode example:\n' + '[0, 0, 0],\n' * 50 + 'In <Image> with name')
    error.__cause__ = ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')
    return error


@pytest.mark.parametrize(
    ('cause', 'why'),
    [
        (ConnectionError('no route'), 'could not be prepared there (ConnectionError: no route). With'),
        (raised_again(), "run pip install 'def_jax[tensorflow]'. Without a network"),
    ],
)
def test_absent_data_set(tmp_path, monkeypatch, cause, why):
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', mock.Mock(side_effect=cause))
    with pytest.raises(FileNotFoundError) as error:
        in_memory.load_dataset('cifar10', tmp_path)
    message = one_line(error.value)
    assert message.startswith(f"Data set 'cifar10' is not in {tmp_path}/cifar10/3.") and f': {why}' in message
    for part in ('tfds build cifar10 --data_dir=DIR', 'TFDS_DATA_DIR', '--config.data_dir'):
        assert part in message
    assert error.value.__cause__ is cause


def test_tensorflow_is_asked_for_before_images_are_downloaded(tmp_path, monkeypatch):
    find, prepare = importlib.util.find_spec, mock.Mock()
    hidden = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, 'find_spec', hidden)
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', prepare)
    with pytest.raises(FileNotFoundError, match=r"TFDS writes images with .*: run pip install 'def_jax"):
        in_memory.load_dataset('cifar10', tmp_path)
    assert not prepare.called


def test_the_extra_of_data_sets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with fixtures.refused(r"not installed. Run pip install 'def_jax\[tensorflow\]', or 'def_jax\[tfds\]' if"):
        in_memory.load_dataset('cifar10')


def test_a_process_that_loses_the_race_to_prepare_uses_the_winners_files(folder, tmp_path, monkeypatch):
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def lose_the_race(self):  # to another process
        prepare(self)
        raise FileExistsError(self.data_path)

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', lose_the_race)
    found = [each['label'] for each in examples(prepared_builder(NAME, tmp_path), 'train')]
    assert found == [each['label'] for each in examples(prepared_builder(NAME, folder), 'train')]
