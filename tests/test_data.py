"""Datasets: reading, downloading, the cache, subsets, splits."""

import pathlib
import shutil
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import CLASS_NAMES, class_images

from simclr_cifar import config as config_lib
from simclr_cifar import data, sources
from simclr_cifar.config import InputError


@pytest.fixture
def data_dir(small_cifar10, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(small_cifar10, tmp_path / 'tfds')


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / 'cache'


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
    for spoilt in (b'', (folder / 'images.npy').read_bytes()[:-1]):
        (folder / 'images.npy').write_bytes(spoilt)
        np.testing.assert_array_equal(data.load('cifar10', 'train', data_dir, cache_dir).images, expected)
    assert len(decoded) == 3

    # Another copy of the dataset, at the same place and of the same size.
    info = version_folder(data_dir) / 'dataset_info.json'
    info.write_text(info.read_text().replace('CIFAR-10', 'CIFAR-1O'))
    assert 'CIFAR-1O' in data.load('cifar10', 'train', data_dir, cache_dir).description
    assert len(decoded) == 4


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


def test_unknown_datasets_are_refused():
    with pytest.raises(InputError, match='there are cifar10, digits'):
        data.load('cifar11', 'train')


@pytest.fixture
def ten_classes():
    labels = np.random.default_rng(0).permutation(np.arange(10).repeat(7)).astype(np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (70, 2, 2, 3)).astype(np.uint8)
    return data.Dataset('cifar10', images, labels, CLASS_NAMES, 'Each image is filled with its label.')


@pytest.mark.parametrize('classes', ['truck,cat,ship', 'ship, airplane', 'bird,automobile,airplane'])
def test_any_classes_in_any_order(ten_classes, classes):
    subset = data.select(ten_classes, classes)
    names = [name.strip() for name in classes.split(',')]
    assert subset.class_names == tuple(names)
    assert len(subset.labels) == 7 * len(names)
    for image, label in zip(subset.images, subset.labels, strict=True):
        assert CLASS_NAMES[image[0, 0, 0]] == names[label]


def test_the_first_so_many_classes(ten_classes):
    subset = data.select(ten_classes, num_classes=4)
    assert subset.class_names == ('airplane', 'automobile', 'bird', 'cat')
    np.testing.assert_array_equal(subset.images[:, 0, 0, 0], subset.labels)


def test_all_classes_are_not_copied(ten_classes):
    assert data.select(ten_classes).images is ten_classes.images
    assert data.select(ten_classes, num_classes=10).labels.tolist() == ten_classes.labels.tolist()


@pytest.mark.parametrize(
    ('classes', 'num_classes', 'said'),
    [
        ('cat,lion', 0, "no class 'lion'; it has airplane"),
        ('cat,cat', 0, "'cat' is named twice"),
        ('cat', 0, 'at least 2'),
        ('', 1, 'at least 2'),
        ('', 11, 'only 10 classes'),
        ('cat,dog', 4, 'one of the two'),
        ('cat,,dog', 0, "no class ''"),
    ],
)
def test_bad_classes_are_refused(ten_classes, classes, num_classes, said):
    with pytest.raises(InputError, match=said):
        data.select(ten_classes, classes, num_classes)


def test_the_part_carved_off_is_stratified_disjoint_and_fixed(ten_classes):
    rest, held_out = data.carve(ten_classes, 0.3, seed=1)
    assert np.bincount(held_out.labels).tolist() == [2] * 10
    assert np.bincount(rest.labels).tolist() == [5] * 10

    numbered = data.Dataset(
        'n', np.arange(70).astype(np.uint8).reshape(-1, 1, 1, 1), ten_classes.labels, CLASS_NAMES, ''
    )
    (rest, held_out), (_, again), (_, other) = (data.carve(numbered, 0.3, seed) for seed in (1, 1, 2))
    ids = [set(part.images.ravel().tolist()) for part in (rest, held_out, again, other)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 70
    assert ids[1] == ids[2] != ids[3]


def test_a_class_with_one_image_is_refused(ten_classes):
    few = ten_classes.take(np.flatnonzero((ten_classes.labels != 3) | (np.cumsum(ten_classes.labels == 3) == 1)))
    with pytest.raises(InputError, match=r"the class 'cat' has 1 train image"):
        data.require_pairs(few, 'train')


def test_splits_of_a_config(small_cifar10, cache_dir):
    config = config_lib.defaults()
    config.update(classes='truck,cat', validation_fraction=0.1)
    splits = data.load_splits(config, small_cifar10, cache_dir)
    assert {name: len(split.labels) for name, split in splits.items()} == {
        **{'train': 90, 'test': 20, 'validation': 10},
        **{'train_sample': 10, 'unseen': 80},
    }
    np.testing.assert_array_equal(np.bincount(splits['train_sample'].labels), [5, 5])
    trained = {image.tobytes() for image in splits['train'].images}
    assert {image.tobytes() for image in splits['train_sample'].images} <= trained
    assert not {image.tobytes() for image in splits['validation'].images} & trained
    assert splits['unseen'].class_names == ('airplane', 'automobile', 'bird', 'deer', 'dog', 'frog', 'horse', 'ship')
    np.testing.assert_array_equal(np.bincount(splits['unseen'].labels), [10] * 8)
    seen = [split.class_names for name, split in splits.items() if name != 'unseen']
    assert set(seen) == {('truck', 'cat')}
    config.validation_fraction = 0.02
    with pytest.raises(InputError, match='validation image'):
        data.load_splits(config, small_cifar10, cache_dir)


def test_a_class_has_the_same_validation_images_in_every_subset_and_seed(small_cifar10, cache_dir):
    def cats(**fields):
        config = config_lib.defaults()
        config.update({'validation_fraction': 0.1} | fields)
        validation = data.load_splits(config, small_cifar10, cache_dir)['validation']
        return validation.images[validation.labels == validation.class_names.index('cat')]

    expected = cats()
    np.testing.assert_array_equal(cats(classes='truck,cat'), expected)
    np.testing.assert_array_equal(cats(num_classes=4, seed=5), expected)
    assert not np.array_equal(cats(split_seed=1), expected)
