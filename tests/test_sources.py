"""Where images come from: reading, downloading, the cache, the digits."""

import io
import pathlib
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import CLASS_NAMES, class_images
from PIL import Image

from simclr_cifar import data, sources
from simclr_cifar.config import InputError


@pytest.fixture
def data_dir(small_cifar10, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(small_cifar10, tmp_path / 'tfds')


def version_folder(data_dir):
    return data_dir / 'cifar10' / '3.0.2'


def expected_split(split):
    """The images and labels of conftest's archive, in its order."""
    seeds = range(5) if split == 'train' else [5]
    labels = [np.random.default_rng(seed).permutation(np.arange(100) % 10) for seed in seeds]
    images = [class_images(part, seed) for part, seed in zip(labels, seeds, strict=True)]
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_what_is_downloaded_is_what_is_read(small_cifar10, cache_dir, split):
    dataset = data.load('cifar10', split, small_cifar10, cache_dir)
    images, labels = expected_split(split)
    assert dataset.class_names == CLASS_NAMES
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
    # TFDS shuffles as it prepares.
    ours = sorted((label, image.tobytes()) for label, image in zip(dataset.labels, dataset.images, strict=True))
    assert ours == sorted((label, image.tobytes()) for label, image in zip(labels, images, strict=True))


def test_tfds_itself_reads_what_was_prepared(small_cifar10, cache_dir):
    source = tfds.data_source(
        'cifar10', split='test', data_dir=small_cifar10, builder_kwargs={'file_format': 'array_record'}
    )
    dataset = data.load('cifar10', 'test', small_cifar10, cache_dir)
    np.testing.assert_array_equal(np.stack([example['image'] for example in source]), dataset.images)


def test_a_missing_dataset_is_downloaded_to_tfds_s_default(cifar10_server, cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sources, 'CIFAR10_URL', cifar10_server)
    assert len(data.load('cifar10', 'test', None, cache_dir).labels) == 100
    assert version_folder(tmp_path / 'tensorflow_datasets').is_dir()


def test_the_archive_is_checked_against_tfds_s_checksum(cifar10_server, tmp_path, monkeypatch):
    checksums = tfds.core.download.checksums
    official = checksums.get_all_url_infos()[sources.CIFAR10_URL]
    monkeypatch.setattr(checksums, 'get_all_url_infos', lambda: {cifar10_server: official})
    monkeypatch.setattr(sources, 'CIFAR10_URL', cifar10_server)
    with pytest.raises(sources.DatasetNotFound, match='could not be downloaded'):
        sources.prepare_cifar10(tmp_path)
    assert not version_folder(tmp_path).exists()


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/cifar-10-binary.tar.gz', 'http://no-such-host.invalid/c.tar.gz'])
def test_without_a_network_the_ways_out_are_named_at_once(url, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sources, 'CIFAR10_URL', url)
    started = time.monotonic()
    with pytest.raises(sources.DatasetNotFound, match=r'--data_dir or TFDS_DATA_DIR.*--config\.dataset=digits'):
        data.load('cifar10', 'train')
    assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []


def make_empty(data_dir):
    shutil.rmtree(data_dir)
    data_dir.mkdir()


def make_half_prepared(data_dir):
    version_folder(data_dir).rename(data_dir / 'cifar10' / '3.0.2.incompleteABCDEF_cifar10')


def remove_info(data_dir):
    (version_folder(data_dir) / 'dataset_info.json').unlink()


def train_shard(data_dir):
    return next(version_folder(data_dir).glob('cifar10-train.array_record*'))


def truncate(data_dir):
    shard = train_shard(data_dir)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def empty_shard(data_dir):
    train_shard(data_dir).write_bytes(b'')


def remove_shard(data_dir):
    train_shard(data_dir).unlink()


def overwrite(data_dir):
    shard = train_shard(data_dir)
    shard.write_bytes(bytes(shard.stat().st_size))


def spoil_info(data_dir):
    (version_folder(data_dir) / 'dataset_info.json').write_text('{')


@pytest.mark.parametrize(
    ('spoil', 'said'),
    [
        (shutil.rmtree, 'there is no such folder'),
        (make_empty, 'holds no cifar10'),
        (make_half_prepared, 'half-prepared'),
        (remove_info, 'half-prepared'),
        (truncate, 'damaged or truncated'),
        (empty_shard, 'damaged or truncated'),
        (remove_shard, 'damaged or truncated'),
        (overwrite, 'damaged or truncated'),
        (spoil_info, 'damaged or truncated'),
    ],
)
@pytest.mark.parametrize('cached', [False, True])
def test_a_data_dir_that_is_not_whole_is_refused(data_dir, cache_dir, spoil, said, cached):
    if cached:
        data.load('cifar10', 'train', data_dir, cache_dir)
    spoil(data_dir)
    with pytest.raises(InputError, match=said) as raised:
        data.load('cifar10', 'train', data_dir, cache_dir)
    assert str(data_dir) in str(raised.value)


def test_the_environment_names_the_data_dir(small_cifar10, cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(small_cifar10))
    assert len(data.load('cifar10', 'test', None, cache_dir).labels) == 100
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'nowhere'))
    with pytest.raises(sources.DatasetNotFound, match=r'^TFDS_DATA_DIR='):
        data.load('cifar10', 'test', None, cache_dir)


def test_tfrecord_without_tensorflow_says_what_to_do(data_dir, cache_dir):
    info = version_folder(data_dir) / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    with pytest.raises(InputError, match='pip install tensorflow-cpu'):
        data.load('cifar10', 'train', data_dir, cache_dir)


def test_the_cache_is_used_and_rebuilt_when_it_does_not_match(data_dir, cache_dir, monkeypatch):
    decoded = []
    decode = sources._decode
    monkeypatch.setattr(sources, '_decode', lambda *arguments: decoded.append(1) or decode(*arguments))
    first = data.load('cifar10', 'train', data_dir, cache_dir)
    again = data.load('cifar10', 'train', data_dir, cache_dir)
    assert len(decoded) == 1
    assert isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(first.images, again.images)
    expected = np.array(first.images)
    del first, again  # No file is mapped while it is cut off.

    (folder,) = cache_dir.iterdir()
    content = (folder / 'images.raw').read_bytes()
    flipped = content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]
    for spoilt in (b'', content[:-1], flipped):
        (folder / 'images.raw').write_bytes(spoilt)
        np.testing.assert_array_equal(data.load('cifar10', 'train', data_dir, cache_dir).images, expected)
    about = (folder / 'about.json').read_text()
    for spoilt in ('', '[]', about.replace('airplane', 'airplanf'), about.replace('class_names', 'clasz_names')):
        (folder / 'about.json').write_text(spoilt)
        assert data.load('cifar10', 'train', data_dir, cache_dir).class_names == CLASS_NAMES
    assert len(decoded) == 8

    # Another copy of the dataset, at the same place and of the same size.
    info = version_folder(data_dir) / 'dataset_info.json'
    info.write_text(info.read_text().replace('CIFAR-10', 'CIFAR-1O'))
    assert 'CIFAR-1O' in data.load('cifar10', 'train', data_dir, cache_dir).description
    assert len(decoded) == 9


def test_a_cache_is_whole_or_absent(data_dir, cache_dir, monkeypatch):
    save = np.save

    def fail_at_labels(path, array):
        if pathlib.Path(path).name == 'labels.npy':
            raise OSError(28, 'No space left on device')
        save(path, array)

    monkeypatch.setattr(np, 'save', fail_at_labels)
    assert len(data.load('cifar10', 'train', data_dir, cache_dir).labels) == 500
    assert list(cache_dir.iterdir()) == []


def test_the_embedded_digits():
    train, test = (data.load('digits', split) for split in ('train', 'test'))
    assert train.images.shape[1:] == test.images.shape[1:] == (32, 32, 3)
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    assert np.bincount(test.labels).min() >= 34
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A data_dir with another dataset of TFDS's, of grey images of several sizes, with a 'validation' split."""

    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Squares."""

        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(None, None, 1)),
                'label': tfds.features.ClassLabel(names=['dark', 'light']),
            }
            return tfds.core.DatasetInfo(
                builder=self, description='Squares.', features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(12), 'validation': self._generate_examples(6)}

        def _generate_examples(self, count):
            for number in range(count):
                encoded = io.BytesIO()
                Image.new('L', (20 + number, 16), [50, 200][number % 2]).save(encoded, 'png')
                encoded.seek(0)
                yield number, {'image': encoded, 'label': number % 2}

    root = tmp_path_factory.mktemp('shapes')
    Shapes(data_dir=root, file_format='array_record').download_and_prepare()
    return root


def test_any_prepared_dataset_is_read_at_one_size(shapes, cache_dir):
    with pytest.raises(
        InputError, match=r'--config\.image_size=0: the images differ in size .*--config\.image_size=64'
    ):
        data.load('shapes', 'train', shapes, cache_dir)
    for split, count in (('train', 12), ('test', 6)):
        for _ in range(2):  # Decoded, and from the cache.
            dataset = data.load('shapes', split, shapes, cache_dir, 8)
            assert dataset.images.shape == (count, 8, 8, 3)
            assert dataset.class_names == ('dark', 'light')
            expected = np.where(dataset.labels == 0, 50, 200)
            np.testing.assert_array_equal(dataset.images, np.ones((1, 8, 8, 3), int) * expected[:, None, None, None])
    assert data.load('shapes', 'test', shapes, cache_dir, 9).images.shape == (6, 9, 9, 3)


def test_what_is_no_dataset_of_images_and_labels_is_refused(shapes, cache_dir, tmp_path):
    root = shutil.copytree(shapes, tmp_path / 'copy')
    features = root / 'shapes' / '1.0.0' / 'features.json'
    features.write_text(features.read_text().replace('"label"', '"kind"'))
    with pytest.raises(InputError, match='has image, kind, not image and label'):
        data.load('shapes', 'train', root, cache_dir, 8)
    info = features.with_name('dataset_info.json')
    info.write_text(info.read_text().replace('"train"', '"training"'))
    with pytest.raises(InputError, match='has no train split but training, validation'):
        data.load('shapes', 'train', root, cache_dir, 8)


def test_a_dataset_of_several_kinds_asks_for_one(shapes, cache_dir, tmp_path):
    shutil.copytree(shapes / 'shapes', tmp_path / 'shapes' / 'small')
    with pytest.raises(InputError, match=r'comes in several kinds; give one of shapes/small$'):
        data.load('shapes', 'train', tmp_path, cache_dir, 8)
    assert len(data.load('shapes/small', 'train', tmp_path, cache_dir, 8).labels) == 12


@pytest.mark.parametrize(
    'name', ['', 'cifar11', '../cifar10', 'cifar10/..', 'cifar10/../..', '/tmp', 'Folder:x', 'a b']
)
def test_unknown_datasets_are_refused(name, small_cifar10, cache_dir):
    with pytest.raises(InputError, match='there are cifar10, digits, folder:PATH, images:PATH and') as raised:
        data.load(name, 'train', small_cifar10, cache_dir)
    assert not isinstance(raised.value, sources.DatasetNotFound)
