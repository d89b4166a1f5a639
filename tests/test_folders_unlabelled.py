"""Folders of images without classes: those that have none, and those whose classes are left out."""

import pytest
from image_files import encoded, write

from simclr_cifar import config as config_lib
from simclr_cifar import data
from simclr_cifar.config import InputError


def test_a_folder_without_classes(tmp_path, cache_dir, capfd, monkeypatch):
    for number in range(10):
        write(tmp_path / 'pets' / f'{number}.png', encoded(colour=(number, 0, 0)))
    write(tmp_path / 'pets' / 'notes.txt', b'cats')
    monkeypatch.chdir(tmp_path / 'pets')
    for name in (f'folder:{tmp_path / "pets"}', 'folder:.'):
        dataset = data.load(name, 'train', None, cache_dir)
        assert (dataset.class_names, dataset.has_classes) == (('pets',), False)
        assert dataset.labels.tolist() == [0] * 10
        assert dataset.images[:, 0, 0, 0].tolist() == list(range(10))
        assert capfd.readouterr().err.startswith("Left out: 'notes.txt'")
    config = config_lib.defaults()
    config.dataset = 'folder:.'
    with pytest.raises(InputError, match=r"folder:\.: .* 2 classes, .* one, 'pets'; .* sub-folders; .*pairs=views"):
        data.load_splits(config, None, cache_dir)
    config.pairs = 'views'
    splits = data.load_splits(config, None, cache_dir)
    assert [len(splits[split].labels) for split in ('train', 'test')] == [8, 2]


def test_classes_of_a_folder_can_be_left_out(tmp_path, cache_dir, capfd):
    for number, where in enumerate(['2023', '2024/june', '2024', '.']):
        write(tmp_path / 'photos' / where / f'{number}.png', encoded(colour=(number, 0, 0)))
    dataset = data.load(f'images:{tmp_path / "photos"}', 'train', None, cache_dir)
    assert (dataset.class_names, dataset.labels.tolist()) == (('photos',), [0] * 4)
    assert sorted(dataset.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert config_lib.title(f'images:{tmp_path / "photos"}') == 'photos'
    by_class = data.load(f'folder:{tmp_path / "photos"}', 'train', None, cache_dir)
    assert by_class.class_names == ('2023', '2024')
    assert "'3.png': in the sub-folder of no class" in capfd.readouterr().err


@pytest.mark.parametrize(('labelled', 'other'), [('train', 'test'), ('test', 'train')])
def test_classes_in_one_split_only_are_refused(tmp_path, cache_dir, labelled, other):
    for number in range(5):
        write(tmp_path / 'pets' / labelled / 'cat' / f'{number}.png', encoded(colour=(number, 0, 0)))
        write(tmp_path / 'pets' / other / f'{number}.png', encoded(colour=(number, 0, 0)))
    with pytest.raises(InputError, match=rf'pets/{other} has no sub-folders of classes, .*=images:/.*pets$'):
        data.load(f'folder:{tmp_path / "pets"}', other, None, cache_dir)
    data.load(f'images:{tmp_path / "pets"}', other, None, cache_dir)


def test_a_folder_s_class_is_named_as_the_link_to_it(tmp_path, cache_dir):
    for number in range(3):
        write(tmp_path / 'pets' / f'{number}.png', encoded())
    (tmp_path / 'link').symlink_to(tmp_path / 'pets')
    names = [data.load(f'folder:{tmp_path}/{name}', 'train', None, cache_dir).class_names for name in ('link', 'pets/')]
    assert names == [('link',), ('pets',)]


def test_a_folder_without_classes_may_have_a_test_split(tmp_path, cache_dir):
    for number in range(5):
        write(tmp_path / 'pets' / 'train' / f'{number}.png', encoded(colour=(number, 0, 0)))
        write(tmp_path / 'pets' / 'test' / f'{number}.png', encoded(colour=(100, 0, 0)))
    found = [data.load(f'folder:{tmp_path / "pets"}', split, None, cache_dir) for split in ('train', 'test')]
    assert [dataset.images[4, 0, 0, 0] for dataset in found] == [4, 100]
    assert [dataset.class_names for dataset in found] == [('pets',)] * 2
