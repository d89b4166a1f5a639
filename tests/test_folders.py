"""Folders of images by class: what decodes, what is left out, and that neither stops the rest."""

import contextlib
import os
import pathlib
import resource

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import RED, animated, bomb, encoded, grey_16_bits, palette, write

from simclr_cifar import beginning, data, files, pictures, processes, reevaluate
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images, an outsider, and much else."""
    root = tmp_path / 'pets'
    for number in range(6):
        write(root / 'cat' / f'{number}.png', encoded(colour=(number, 0, 0)))
        write(root / 'dog' / 'indoors' / f'{number}.jpg', encoded('JPEG', colour=(200, 200, 10 * number)))
    write(root / 'cat' / '.hidden.png', encoded())
    write(root / 'loose.png', encoded())
    write(root / '.loose.png', encoded())
    write(root / '.git' / 'a.png', encoded())
    write(root / 'cat' / 'empty.png', b'')
    write(root / 'cat' / 'notes.txt', b'cats')
    write(root / 'dog' / 'bomb.png', bomb())
    write(tmp_path / 'secret.png', encoded())
    (root / 'cat' / 'link.png').symlink_to(tmp_path / 'secret.png')
    (root / 'cat' / 'away').symlink_to(tmp_path)
    (root / 'cats').symlink_to(tmp_path)
    (root / 'cat' / 'nowhere.png').symlink_to(root / 'gone.png')
    os.mkfifo(root / 'dog' / 'pipe.png')
    return root


LEFT_OUT = [
    'cat/away',
    'cat/empty.png',
    'cat/link.png',
    'cat/notes.txt',
    'cat/nowhere.png',
    'cats',
    'dog/bomb.png',
    'dog/pipe.png',
    'loose.png',
]


def test_a_folder_by_class(folder, cache_dir, capfd):
    for _ in range(2):  # Decoded, and from the cache.
        dataset = data.load(f'folder:{folder}', 'train', None, cache_dir)
        assert dataset.class_names == ('cat', 'dog')
        assert dataset.labels.tolist() == [0] * 6 + [1] * 6
        assert dataset.images.shape == (12, 10, 12, 3)
        assert dataset.images[:6, 0, 0, 0].tolist() == list(range(6))
        assert dataset.description == "Images in 'pets'. Files left out: 9."
        told = capfd.readouterr().err.splitlines()
        assert sorted(line.split("'")[1] for line in told) == LEFT_OUT
        assert all(line.startswith('Left out: ') for line in told)
    assert data.load(f'folder:{folder}', 'test', None, cache_dir) is None


def test_what_changes_in_a_folder_is_seen(folder, cache_dir):
    name = f'folder:{folder}'
    data.load(name, 'train', None, cache_dir)
    write(folder / 'cat' / '3.png', encoded(colour=(99, 0, 0)))
    assert data.load(name, 'train', None, cache_dir).images[3, 0, 0, 0] == 99
    (folder / 'cat' / '0.png').unlink()
    assert len(data.load(name, 'train', None, cache_dir).labels) == 11
    (folder / 'dog').rename(folder / 'wolf')
    assert data.load(name, 'train', None, cache_dir).class_names == ('cat', 'wolf')


def test_a_run_does_not_go_on_with_other_images(folder, cache_dir, tmp_path):
    config, run = config_lib.defaults(), files.RunFolder(tmp_path / 'run')
    config.update(dataset=f'folder:{folder}', test_fraction=0.4)
    run.path.mkdir()
    for _ in range(2):
        beginning.begin(run, 'pets', config, data.load_splits(config, None, cache_dir))
    write(folder / 'cat' / 'more.png', encoded())
    write(folder / 'cat' / 'and more.png', encoded())
    with pytest.raises(InputError, match=r"is of other images .*'train': 8.*now .*'train': 9"):
        beginning.begin(run, 'pets', config, data.load_splits(config, None, cache_dir))


def test_a_checkpoint_is_not_evaluated_on_other_images(folder, cache_dir, tmp_path):
    config, run = config_lib.defaults(), files.RunFolder(tmp_path / 'run')
    config.update(dataset=f'folder:{folder}', test_fraction=0.4)
    beginning.begin(run, 'pets', config, data.load_splits(config, None, cache_dir))
    files.write_arrays(run.weights, {'epoch': np.array(3)})
    (folder / 'cat').rename(folder / 'zebra')
    with pytest.raises(
        InputError, match=r"is of other images \(class_names: \['cat', 'dog'\], now \['dog', 'zebra'\]\)"
    ):
        reevaluate.reevaluate(run, config, None, None, cache_dir)


def test_processes_have_the_same_images(folder, cache_dir, monkeypatch):
    config = config_lib.defaults()
    config.update(dataset=f'folder:{folder}', test_fraction=0.4)
    splits = data.load_splits(config, None, cache_dir)
    told = []
    monkeypatch.setattr(processes, 'agree', lambda value: told.append(value) or value)
    beginning.require_same_everywhere(splits)
    monkeypatch.setattr(processes, 'agree', lambda value: told[0])
    beginning.require_same_everywhere(splits)
    write(folder / 'cat' / '0.png', encoded(colour=(1, 2, 3)))
    with pytest.raises(InputError, match='the processes do not read the same images'):
        beginning.require_same_everywhere(data.load_splits(config, None, cache_dir))


def test_folders_of_the_same_name_size_and_time_are_two(tmp_path, cache_dir):
    for number, where in enumerate(('one', 'other')):
        path = tmp_path / where / 'pets' / 'cat' / 'a.bmp'
        write(path, encoded('BMP', colour=(number, 0, 0)))
        os.utime(path, (1, 1))
        dataset = data.load(f'folder:{path.parents[1]}', 'train', None, cache_dir)
        assert dataset.images[0, 0, 0, 0] == number


def test_a_class_that_is_a_link_out_in_one_split_stays_outside(tmp_path, cache_dir):
    root = tmp_path / 'pets'
    write(tmp_path / 'outside' / 'a.png', encoded())
    for name in ('train/cat', 'test/cat', 'test/dog'):
        write(root / name / 'a.png', encoded())
    (root / 'train' / 'dog').symlink_to(tmp_path / 'outside')
    assert data.load(f'folder:{root}', 'train', None, cache_dir).labels.tolist() == [0]


def test_a_loop_of_links_is_left_out_and_a_pit_refused(tmp_path, cache_dir):
    root = tmp_path / 'pets'
    write(root / 'cat' / 'a.png', encoded())
    (root / 'cat' / 'l1').symlink_to('l2')
    (root / 'cat' / 'l2').symlink_to('l1')
    assert len(data.load(f'folder:{root}', 'train', None, cache_dir).labels) == 1
    deep = root / 'cat'
    for _ in range(400):
        deep = deep / 'deeper'
    deep.mkdir(parents=True)
    with contextlib.suppress(InputError):  # In one line where Python walks by recursion.
        assert len(data.load(f'folder:{root}', 'train', None, cache_dir).labels) == 1


def test_a_file_that_may_not_be_read_is_no_broken_image(folder, cache_dir, monkeypatch):
    opened = pathlib.Path.open

    def refuse(path, *arguments, **named):
        if path.name == '3.png':
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, 'open', refuse)
        with pytest.raises(InputError, match=r"'cat/3\.png' cannot be read \(Permission denied\)"):
            data.load(f'folder:{folder}', 'train', None, cache_dir)
    assert len(data.load(f'folder:{folder}', 'train', None, cache_dir).labels) == 12


def test_large_pictures_are_kept_small():
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 200, 3), np.uint8)
    assert pictures.small(images).shape == (2, 96, 64, 3)
    np.testing.assert_allclose(pictures.small(images).mean(), images.mean(), atol=1)
    np.testing.assert_array_equal(pictures.small(images[:, :96, :50]), images[:, :96, :50])


def test_a_folder_s_own_test_split_or_a_fifth(tmp_path, cache_dir):
    for number in range(10):
        for name in ('cat', 'dog'):
            write(tmp_path / 'own' / 'train' / name / f'{number}.png', encoded(colour=(number, 0, 0)))
            write(tmp_path / 'none' / name / f'{number}.png', encoded(colour=(number, 0, 0)))
    for number in range(3):
        for name in ('dog', 'cat'):
            write(tmp_path / 'own' / 'val' / name / f'{number}.png', encoded(colour=(100 + number, 0, 0)))
    (tmp_path / 'own' / 'train' / 'bird').mkdir()
    config = config_lib.defaults()
    config.dataset, config.classes = f'folder:{tmp_path / "own"}', 'cat,dog'
    splits = data.load_splits(config, None, cache_dir)
    assert [len(splits[split].labels) for split in ('train', 'test')] == [20, 6]
    assert splits['test'].images[:][:, 0, 0, 0].min() == 100
    config.dataset = f'folder:{tmp_path / "none"}'
    splits = data.load_splits(config, None, cache_dir)
    assert [np.bincount(splits[split].labels).tolist() for split in ('train', 'test')] == [[8, 8], [2, 2]]
    assert splits['test'].description.endswith('Of the training images 20% stand in for the test images.')


@pytest.mark.parametrize(
    ('make', 'said'),
    [
        (lambda root: None, 'there is no such folder'),
        (lambda root: root.mkdir(), 'none of its 0 files is an image .*; give a folder of images'),
        (lambda root: (root / 'train').mkdir(parents=True), 'none of its 0 files is an image'),
        (lambda root: write(root / 'a\nb' / 'a.png', encoded()), r"'a\\nb' is a name that cannot be printed"),
        (lambda root: write(root / 'a.png', b'no'), r"none of its 1 files is an image .*as 'a\.png': is none"),
        (lambda root: (root / 'cat').mkdir(parents=True), 'none of its 0 files is an image'),
        (
            lambda root: write(root / 'cat' / 'a.png', b'no'),
            r"none of its 1 files is an image .*as 'cat/a\.png': is none",
        ),
        (
            lambda root: [write(root / 'cat' / f'{side}.png', encoded(size=(side, 9))) for side in (8, 9)],
            r'the images differ in size \(cat/8\.png is 8x9, cat/9\.png is 9x9\); .*--config\.image_size=64',
        ),
    ],
)
def test_a_folder_that_is_none_is_refused(make, said, tmp_path, cache_dir):
    make(tmp_path / 'pets')
    with pytest.raises(InputError, match=said) as raised:
        data.load(f'folder:{tmp_path / "pets"}', 'train', None, cache_dir)
    assert '\n' not in str(raised.value)
    assert list(cache_dir.glob('*')) == []


def test_a_folder_is_to_be_named(cache_dir):
    with pytest.raises(InputError, match='folder:: there is no such folder'):
        data.load('folder:', 'train', None, cache_dir)


whole = st.one_of(
    st.binary(max_size=200),
    st.builds(
        encoded,
        format=st.sampled_from(['PNG', 'JPEG', 'BMP', 'TIFF', 'GIF', 'WEBP']),
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    ),
    st.builds(grey_16_bits, st.integers(0, 2**16 - 1)),
    st.builds(bomb, st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
    st.sampled_from(
        [animated(), palette(), encoded(mode='RGBA', colour=(*RED, 9)), encoded('TIFF', mode='F', colour=1.0)]
    ),
)


@st.composite
def damaged(draw):
    """The content of a file, as it is, cut off, or with some bytes changed."""
    content = bytearray(draw(whole))
    for position in draw(st.lists(st.integers(0, 300), max_size=5)):
        if position < len(content):
            content[position] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.one_of(st.none(), st.integers(0, 300)))])


names = st.text(st.characters(exclude_characters='/\0', exclude_categories=['Cs']), min_size=1, max_size=12)


@settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(contents=st.dictionaries(st.tuples(st.sampled_from(['cat', 'dog', 'a,b']), names), damaged(), max_size=6))
def test_no_folder_stops_the_program(contents, tmp_path_factory, capfd):
    root, cache = (tmp_path_factory.mktemp(name) for name in ('folder', 'cache'))
    for (class_name, name), content in contents.items():
        if name not in ('.', '..'):
            write(root / class_name / name, content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        dataset = data.load(f'folder:{root}', 'train', None, cache, 16)
    except InputError as error:
        assert '\n' not in str(error)
    else:
        kept = len(dataset.labels)
        told = capfd.readouterr().err.splitlines()
        left_out = sum(not line.endswith(': a folder without files') for line in told)
        assert kept + left_out == sum(not name.startswith('.') for _, name in contents)
        assert dataset.images.shape == (kept, 16, 16, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
