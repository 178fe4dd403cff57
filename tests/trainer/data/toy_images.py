"""A data set of images that TFDS really prepares, as JPEG files of many sizes."""

import functools

import numpy as np
import tensorflow_datasets as tfds

NUM_EXAMPLES = 23
NAME = 'toy_imagenet'


class ToyImagenet(tfds.core.GeneratorBasedBuilder):
    """The label says which example it is, and so does the brightness."""

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
        return {name: self._generate_examples() for name in ('train', 'validation', 'test')}

    def _generate_examples(self):
        for number in range(NUM_EXAMPLES):
            height, width = 16 + number, 40 - number
            ramp = np.linspace(10 * number, 10 * number + 6, width)  # so that crops of one image differ
            image = np.broadcast_to(ramp.round().astype(np.uint8)[None, :, None], (height, width, 3))
            yield number, {'image': np.array(image), 'label': number, 'file_name': f'file {number}'}


@functools.cache
def prepared(folder, file_format='array_record'):
    """TFDS's folder with the data set, in a folder of the tests."""
    tfds.builder(NAME, data_dir=folder / file_format, file_format=file_format).download_and_prepare()
    return folder / file_format
