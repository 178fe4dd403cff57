"""A folder of images, a subfolder per class: generated files, found in a fixed order."""

import io
import os
import shutil

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import training_fixtures as fixtures

from def_jax.trainer.data import image_folder

COLORS = {'blue': (10, 20, 200), 'green': (10, 180, 30), 'red': (220, 20, 10)}
SIZES = [(8, 8), (12, 8), (8, 16), (20, 20)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """24 training and 9 test images of three colours, with a grey frame that the crop removes."""
    root = tmp_path_factory.mktemp('images')
    for split, count in (('train', 8), ('test', 3)):
        for label, color in COLORS.items():
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                height, width = SIZES[number % len(SIZES)]
                pixels = np.full((height, width, 3), 128, np.uint8)
                side = min(height, width)
                top, left = (height - side) // 2, (width - side) // 2
                pixels[top : top + side, left : left + side] = np.array(color) + number
                PIL.Image.fromarray(pixels).save(root / split / label / f'{number}.png')
    return root


@pytest.fixture(scope='module')
def dataset(folder):
    return image_folder.open_image_folder(folder, 8)


def test_every_image_is_there_resized_and_cropped(dataset):
    for split, count in ((dataset.train, 8), (dataset.test, 3)):
        assert split.arrays['image'].shape == (3 * count, 8, 8, 3)
        assert split.arrays['image'].dtype == np.uint8 and split.arrays['label'].dtype == np.int32
        found = set()
        for image, label in zip(split.arrays['image'], split.arrays['label'], strict=True):
            assert len(np.unique(image.reshape(-1, 3), axis=0)) == 1  # the frame is gone
            number = int(image[0, 0, 0]) - list(COLORS.values())[label][0]
            np.testing.assert_array_equal(image[0, 0], np.array(list(COLORS.values())[label]) + number)
            found.add((int(label), number))
        assert len(found) == 3 * count


def test_the_order_is_fixed_and_mixes_the_classes(folder, dataset):
    again = image_folder.open_image_folder(folder, 8)
    np.testing.assert_array_equal(dataset.train.arrays['image'], again.train.arrays['image'])
    held_out = dataset.limited(validation_examples=8).validation
    assert set(held_out.arrays['label']) == {0, 1, 2}


def test_the_description_is_measured_on_the_training_images(dataset):
    pixels = dataset.train.arrays['image'] / 255
    np.testing.assert_allclose(dataset.spec.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.spec.std, pixels.std((0, 1, 2)))
    assert dataset.spec.num_classes == 3 and dataset.spec.image_shape == (8, 8, 3)
    assert dataset.model_options == {'num_classes': 3}


def test_files_that_are_no_images_and_classes_that_are_not_trained_on_are_refused(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / 'images')
    (root / 'train' / 'empty').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    (root / 'train' / 'red').rename(tmp_path / 'elsewhere' / 'red')
    (root / 'train' / 'red').symlink_to(tmp_path / 'elsewhere' / 'red')
    odd = root / 'train' / 'red' / os.fsdecode(b'caf\xe9.PNG')
    shutil.copy(root / 'train' / 'red' / '0.png', odd)
    dataset = image_folder.open_image_folder(root, 8)
    assert dataset.spec.num_classes == 3 and len(dataset.train) == 25  # links are followed
    content = odd.read_bytes()
    PIL.Image.new('I;16', (8, 8), 999).save(deep := io.BytesIO(), 'PNG')  # would be all white
    header = content[:20] + b'xxxx' + content[24:]
    for damaged in (content[:-30], content[:40], b'', header, deep.getvalue()):
        odd.write_bytes(damaged)
        with fixtures.refused(r"'.*/red/caf\\udce9.PNG' cannot be read as an image"):
            image_folder.open_image_folder(root, 8)
    odd.unlink()
    (root / 'test' / 'blue').rename(root / 'test' / 'Blue')
    with fixtures.refused('/Blue/.*is of a class that train lacks, which has blue, green, red'):
        image_folder.open_image_folder(root, 8)


def test_images_of_other_formats_are_read_hidden_ones_are_not_and_others_are_said(
    folder, tmp_path, monkeypatch
):
    lines, root = [], shutil.copytree(folder, tmp_path / 'images')
    monkeypatch.setattr(image_folder.logging, 'warning', lambda text, *args: lines.append(text % args))
    for suffix in ('.webp', '.bmp', '.GIF', '.tiff'):
        PIL.Image.new('RGB', (8, 8), COLORS['red']).save(root / 'train' / 'red' / f'more{suffix}')
    shutil.copytree(root / 'train' / 'red', root / 'train' / '.ipynb_checkpoints')
    (root / 'train' / 'blue' / '._0.png').write_bytes(b'of macOS')
    dataset = image_folder.open_image_folder(root, 8)
    assert dataset.spec.num_classes == 3 and len(dataset.train) == 28 and not lines
    for name in ('labels.csv', 'photo.heic'):
        (root / 'train' / 'blue' / name).touch()
    assert len(image_folder.open_image_folder(root, 8).train) == 28
    (line,) = lines
    assert line.startswith(f'2 of the entries in {root}/train/CLASS/ are left out, e.g. {root}/train/blue/l')


def test_photos_stand_as_their_orientation_says(folder, tmp_path):
    """As every viewer shows them: cameras store a portrait lying, with a note that it is."""
    root = shutil.copytree(folder, tmp_path / 'images')
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    for name, turns, orientation in (('stored upright', 0, 1), ('stored lying', 1, 6)):
        image, exif = PIL.Image.fromarray(np.rot90(upright, turns)), PIL.Image.Exif()
        exif[PIL.ExifTags.Base.Orientation] = orientation
        image.save(root / 'train' / 'red' / f'{name}.png', exif=exif)
    images = image_folder.open_image_folder(root, 8).train.arrays['image']
    assert sum((image == upright).all() for image in images) == 2


def test_a_single_class_is_refused(folder, tmp_path):
    """Nothing could be learned, and the accuracy would be 100 %."""
    root = tmp_path / 'images'
    for split in ('train', 'test'):
        shutil.copytree(folder / split / 'red', root / split / 'all')
    with fixtures.refused(r"train' has one class alone, 'all'.*one folder per class"):
        image_folder.open_image_folder(root, 8)


def test_images_without_a_class_are_refused_and_folders_that_are_no_split_are_said(
    folder, tmp_path, monkeypatch
):
    lines, root = [], shutil.copytree(folder, tmp_path / 'images')
    monkeypatch.setattr(image_folder.logging, 'warning', lambda text, *args: lines.append(text % args))
    shutil.copytree(root / 'test', root / 'val')
    (root / 'train' / 'README.txt').touch()
    assert image_folder.open_image_folder(root, 8).validation is None
    assert lines == [f'val of {root} left out: its splits are the folders train, validation and test']
    shutil.copy(root / 'train' / 'red' / '0.png', root / 'test' / 'stray.PNG')
    with fixtures.refused(r"test/stray.PNG' lies in no folder of a class. Move it into one"):
        image_folder.open_image_folder(root, 8)


def test_a_pipe_is_refused_and_not_waited_for(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / 'images')
    os.mkfifo(root / 'train' / 'red' / 'pipe.png')
    with fixtures.refused(r"pipe.png' cannot be read as an image \(it is not a regular file\)"):
        image_folder.open_image_folder(root, 8)


@pytest.mark.parametrize(
    ('path', 'size', 'message'),
    [
        ('', 0, r'image_size=0 must be an integer in \[1, '),
        ('missing', 8, "folder='.*missing' is not a folder"),
        ('train', 8, r"folder='.*train' needs image files, such as JPEG, in train/CLASS/"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(folder, path, size, message):
    with fixtures.refused(message):
        image_folder.open_image_folder(folder / path, size)
