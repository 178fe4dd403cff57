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

WITHOUT_TENSORFLOW = """
import sys
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
assert 'tensorflow' not in sys.modules
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
    with mock.patch.object(image_folder, 'prepared_builder') as builder:
        builder.return_value.info.features = {'text': None}
        with fixtures.refused('must have the features image and label, but has'):
            image_folder.open_tfds_images('text', folder)


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


@pytest.mark.parametrize(
    ('cause', 'cure'),
    [
        (ConnectionError('no route to host'), '(ConnectionError: no route to host). Without a network'),
        (ModuleNotFoundError('None', name='tensorflow'), "Run pip install 'def_jax[tensorflow]'."),
    ],
)
def test_absent_data_set(tmp_path, monkeypatch, cause, cure):
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', mock.Mock(side_effect=cause))
    with pytest.raises(FileNotFoundError) as error:
        in_memory.load_dataset('cifar10', tmp_path)
    message = str(error.value)
    assert message.startswith(f"Data set 'cifar10' is not in {tmp_path}/cifar10/3.")
    for part in (cure, 'tfds build cifar10 --data_dir=DIR', 'TFDS_DATA_DIR', '--config.data_dir'):
        assert part in message
    assert error.value.__cause__ is cause


def test_images_without_tensorflow_are_not_downloaded_in_vain(tmp_path, monkeypatch):
    download = mock.Mock(side_effect=AssertionError)
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', download)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'tensorflow' else find(name)
    )
    with pytest.raises(
        FileNotFoundError, match=r"with TensorFlow\)\. Run pip install 'def_jax\[tensorflow\]'"
    ):
        in_memory.load_dataset('cifar10', tmp_path)
    assert not download.called


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
