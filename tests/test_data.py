"""Datasets: subsets by name and splits."""

import numpy as np
import pytest
from conftest import CLASS_NAMES

from simclr_cifar import config as config_lib
from simclr_cifar import data
from simclr_cifar.config import InputError


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
    np.testing.assert_array_equal(subset.images[:][:, 0, 0, 0], subset.labels)


def test_all_classes(ten_classes):
    for subset in (data.select(ten_classes), data.select(ten_classes, num_classes=10)):
        np.testing.assert_array_equal(subset.images, ten_classes.images)
        np.testing.assert_array_equal(subset.labels, ten_classes.labels)


def test_rows_are_read_when_they_are_indexed(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (50, 4, 3, 2), np.uint8)
    np.save(tmp_path / 'values.npy', values)
    stored = np.load(tmp_path / 'values.npy', mmap_mode='r+')
    first, second = np.random.default_rng(1).permutation(50)[:30], np.array([5, 29, 5, 0])
    rows = data.Rows(data.Rows(stored, first), second)
    expected = values[first][second]
    assert (rows.shape, rows.dtype, rows.nbytes, len(rows)) == ((4, 4, 3, 2), np.uint8, expected.nbytes, 4)
    for key in (0, -1, slice(1, 3), slice(None), np.array([3, 3, 1]), np.array([True, False, True, False])):
        np.testing.assert_array_equal(rows[key], expected[key])
    np.testing.assert_array_equal(np.asarray(rows), expected)
    np.testing.assert_array_equal(list(rows), list(expected))
    stored[first[5]] = 7
    assert np.all(rows[0] == 7)


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
    ids = [set(part.images[:].ravel().tolist()) for part in (rest, held_out, again, other)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 70
    assert ids[1] == ids[2] != ids[3]


def test_a_class_with_one_image_is_refused(ten_classes):
    few = ten_classes.take(np.flatnonzero((ten_classes.labels != 3) | (np.cumsum(ten_classes.labels == 3) == 1)))
    with pytest.raises(InputError, match=r"the class 'cat' has 1 train image"):
        data.require_pairs(few, 'train')


@pytest.mark.parametrize(
    ('pairs', 'groups', 'fits'),
    [
        *(('class', 15, True), ('class', 16, False), ('class_views', 30, True), ('class_views', 31, False)),
        *(('views', 96, True), ('views', 97, False)),
    ],
)
def test_an_epoch_without_replacement_needs_its_images(pairs, groups, fits):
    labels = np.repeat([0, 1, 2], [60, 70, 62]).astype(np.int32)
    dataset = data.Dataset('cifar10', np.zeros((192, 1, 1, 3), np.uint8), labels, ('cat', 'dog', 'ship'), '')
    config = config_lib.defaults()
    config.update(pairs=pairs, groups_per_batch=groups, batches_per_epoch=2, with_replacement=False)
    if fits:
        data.require_images(dataset, config)
    else:
        where = '192 in all' if pairs == 'views' else "60 of 'cat'"
        with pytest.raises(config_lib.InputError, match=rf'--config\.groups_per_batch={groups}: .* {where}'):
            data.require_images(dataset, config)


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


def test_training_images_stand_in_for_test_images_that_are_not_read(small_cifar10, cache_dir, monkeypatch):
    config = config_lib.defaults()
    config.update(classes='truck,cat', validation_fraction=0.1, test_fraction=0.2)
    own = data.load('cifar10', 'train', small_cifar10, cache_dir)
    load = data.load

    def load_training(name, split, *where):
        assert split == 'train'
        return load(name, split, *where)

    monkeypatch.setattr(data, 'load', load_training)
    splits = data.load_splits(config, small_cifar10, cache_dir)
    assert {name: len(split.labels) for name, split in splits.items()} == {
        **{'train': 72, 'validation': 8, 'train_sample': 8},
        **{'test': 20, 'unseen': 80},
    }
    images = [image.tobytes() for name in ('train', 'validation', 'test', 'unseen') for image in splits[name].images]
    assert len(set(images)) == len(images)
    assert set(images) <= {image.tobytes() for image in own.images}
    assert splits['train'].description.endswith('Of the training images 20% stand in for the test images.')


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
