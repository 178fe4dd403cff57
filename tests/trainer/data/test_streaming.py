"""Streaming: images and labels of real files, at ImageNet's size; crops; errors. Batches: test_splits.py."""

import dataclasses
import functools
import io
import itertools

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from def_jax.trainer.data import streaming
from def_jax.trainer.data.catalogue import DATASETS

NUM_EXAMPLES = 23
TOY = 'toy_imagenet', 8  # its name and the size of images
IMAGENET = DATASETS['imagenet2012']


class ToyImagenet(tfds.core.GeneratorBasedBuilder):
    """JPEG files of many sizes; the label says which example it is, and so does the brightness."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(num_classes=NUM_EXAMPLES),
            'file_name': tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return {'train': self._generate_examples(), 'validation': self._generate_examples()}

    def _generate_examples(self):
        for number in range(NUM_EXAMPLES):
            height, width = 16 + number, 40 - number
            ramp = np.linspace(10 * number, 10 * number + 6, width)  # so that crops of one image differ
            image = np.broadcast_to(ramp.round().astype(np.uint8)[None, :, None], (height, width, 3))
            yield number, {'image': np.array(image), 'label': number, 'file_name': str(number)}


def prepare(data_dir, file_format):
    tfds.builder(TOY[0], data_dir=data_dir, file_format=file_format).download_and_prepare()
    return data_dir


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    return toy_train_split(tmp_path_factory.getbasetemp())


@functools.cache
def toy_train_split(folder):
    return streaming.open_dataset(*TOY, prepare(folder / 'array_record', 'array_record'))[0]


def batches(split, count, **changes):
    arguments = {'seed': 3, 'first_step': 0, 'batch_size': 6, 'num_workers': 3} | changes
    return list(itertools.islice(split.train_batches(**arguments), count))


def test_a_batch_holds_the_images_of_its_labels(train):
    for batch in batches(train, 3):
        assert (batch['image'].shape, batch['image'].dtype) == ((3, 2, 8, 8, 3), np.uint8)
        assert (batch['label'].shape, batch['label'].dtype) == ((3, 2), np.int32)
        np.testing.assert_array_equal((batch['image'].mean(axis=(2, 3, 4)) + 2) // 10, batch['label'])


def test_crops_differ_by_seed_and_epoch(train):
    def images(**changes):
        (batch,) = batches(train, 1, batch_size=NUM_EXAMPLES, num_workers=1, **changes)
        return batch['image'][0, np.argsort(batch['label'][0])]

    first = images()
    for other in (images(first_step=1), images(seed=4)):
        assert not np.array_equal(first, other)


@pytest.mark.parametrize('shape', [(300, 400), (100, 90)])
def test_center_crop_equals_pil(shape):
    rng = np.random.default_rng(0)
    smooth = PIL.Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(shape[::-1])
    file = io.BytesIO()
    smooth.save(file, 'jpeg', quality=95)
    image = PIL.Image.open(file)
    height, width = (256 * side // min(shape) for side in shape)
    top, left = (height - 224) // 2, (width - 224) // 2
    resized = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), int)

    cropped = streaming._center_crop(tf.constant(file.getvalue()), None, 224).numpy()

    assert (cropped.shape, cropped.dtype) == ((224, 224, 3), np.uint8)
    assert abs(cropped - expected).mean() < 0.5
    assert abs(cropped - expected).max() <= 6


def torchvision_box(uniform, height, width):
    """Top, left, height and width, as torchvision's RandomResizedCrop makes them of ten pairs of numbers and
    two more; the first pair that fits counts."""
    for share, shape in zip(uniform[:10], uniform[10:20], strict=True):
        area = height * width * (0.08 + share * (1 - 0.08))
        ratio = np.exp(np.log(3 / 4) + shape * (np.log(4 / 3) - np.log(3 / 4)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform[20] * (height - h + 1)), int(uniform[21] * (width - w + 1)), h, w
    raise AssertionError('none fits')


@pytest.mark.parametrize(('height', 'width'), [(300, 400), (100, 64)])
def test_random_boxes_are_torchvisions(height, width, monkeypatch):
    draws = np.random.default_rng(0).uniform(size=(40, 22)).astype(np.float32)
    draws[:2, :10], draws[2:5, 10:20] = [[0], [0.5]], [[0], [0.5], [0.999]]
    draws[5:8, :5] = 0.999  # almost the whole area: mostly, a later pair is taken
    for uniform in draws:
        monkeypatch.setattr(tf.random, 'stateless_uniform', lambda *_, u=uniform, **options: tf.constant(u))
        box = streaming._random_box(tf.constant(height), tf.constant(width), tf.constant([0, 1], tf.int64))
        assert tuple(box.numpy()) == torchvision_box(uniform, height, width)


@pytest.mark.parametrize(
    ('height', 'width', 'box'), [(10, 400, (0, 193, 10, 13)), (400, 10, (193, 0, 13, 10))]
)
def test_of_narrow_images_the_centre_is_taken(height, width, box):
    # 8 % of the area do not fit with any of the ratios.
    made = streaming._random_box(tf.constant(height), tf.constant(width), tf.constant([0, 1], tf.int64))
    assert np.abs(made.numpy() - box).max() <= 1


class Mocked(list):
    """Examples of TFDS's mock, several of which can be asked for at once, as of ArrayRecord files."""

    def __getitems__(self, positions):
        return [self[position] for position in positions]


def test_imagenet_at_its_size():
    with tfds.testing.mock_data(num_examples=5), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.core.DatasetBuilder, 'is_prepared', lambda self: True)
        train, test = (
            dataclasses.replace(split, records=Mocked(split.records[i] for i in range(len(split.records))))
            for split in streaming.open_dataset('imagenet2012', 224)
        )
        assert len(train) == len(test) == 5
        trained = batches(train, 1, batch_size=4, num_workers=2)
        tested = list(test.test_batches(batch_size=4, num_workers=2))

    for batch in trained + tested:
        assert (batch['image'].shape, batch['image'].dtype) == ((2, 2, 224, 224, 3), np.uint8)
        assert batch['label'].max() < IMAGENET.num_classes
    assert IMAGENET.crop_padding == 0 and IMAGENET.flip  # the crop is already made


def test_data_sets_that_are_absent_or_can_be_read_in_order_only(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        streaming.open_dataset('imagenet2012', 224, tmp_path)
    message = str(error.value)
    assert message.startswith(f"Data set 'imagenet2012' is not in {tmp_path}/imagenet2012/5.")
    for part in ('DIR/downloads/manual', 'tfds build imagenet2012 --data_dir=DIR --file_format=array_record'):
        assert part in message
    prepare(tmp_path, 'tfrecord')
    with pytest.raises(ValueError, match=r'must be ArrayRecord files, .* `tfds convert_format'):
        streaming.open_dataset(*TOY, tmp_path)
