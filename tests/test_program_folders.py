"""Folders among a person's images that are no data: runs, studies, indexes, caches, empty ones, what others leave."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import search_folders
from image_files import encoded, write
from programs import ROOT

from simclr_cifar import config as config_lib
from simclr_cifar import data, files, folders, stored
from simclr_cifar.config import InputError
from simclr_cifar.search import Index, pictures


@pytest.fixture
def pets(tmp_path):
    """Two classes of three images."""
    for number in range(3):
        for name in ('cat', 'dog'):
            write(tmp_path / 'pets' / name / f'{number}.png', encoded(colour=(number, 0, 0)))
    return tmp_path / 'pets'


def make_run(folder, **fields):
    config = stored.to_json(config_lib.defaults())
    files.write_json(folder / 'config.json', {'fingerprint': '01234567', 'config': config} | fields)
    write(folder / 'figures' / 'curve.png', encoded())


def make_study(folder):
    config = stored.to_json(config_lib.study_defaults())
    files.write_json(folder / 'config.json', {'fingerprint': '01234567', 'config': config})
    make_run(folder / 'c4' / 'seed_0')


def make_damaged_run(folder):
    make_run(folder)
    (folder / 'config.json').write_text('{')
    (folder / 'history.csv').write_text(','.join(files.HISTORY_FIELDS))
    (folder / 'checkpoints').mkdir()


def make_index(folder):
    search_folders.make_folder(folder.parent.parent / '.others')
    Index.build(folder, search_folders.make_encoder(), folder.parent.parent / '.others')
    write(folder / 'picture.png', encoded())


def make_unfinished_index(folder):
    write(folder / '.next.sqlite', b'')
    write(folder / 'picture.png', encoded())


def make_cache(folder):
    write(folder.parent.parent / '.more' / 'a' / 'a.png', encoded())
    data.load(f'folder:{folder.parent.parent / ".more"}', 'train', None, folder)
    write(folder / 'compiled' / '0123' / 'program', b'x')


def make_junk(folder):
    write(folder / '__MACOSX' / '._cat' / '.0.png', encoded())
    write(folder / '__MACOSX' / '0.png', encoded())


PROGRAMS = [
    (make_run, 'a run'),
    (make_study, 'a study'),
    (make_damaged_run, 'a run'),
    (lambda folder: make_run(folder / 'c4'), 'a folder of what this program writes (a run)'),
    (make_index, 'an index'),
    (make_unfinished_index, 'an index'),
    (make_cache, 'a folder of what this program writes (decoded images)'),
]


@pytest.mark.parametrize(('make', 'said'), PROGRAMS)
def test_what_this_program_writes_is_no_class(make, said, pets, cache_dir, capfd):
    make(pets / 'runs')
    capfd.readouterr()
    dataset = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert dataset.class_names == ('cat', 'dog')
    assert len(dataset.labels) == 6
    assert capfd.readouterr().err == f"Left out: 'runs': {said}\n"


@pytest.mark.parametrize(('make', 'said'), PROGRAMS)
def test_what_this_program_writes_holds_no_pictures(make, said, pets, cache_dir, capfd):
    make(pets / 'cat' / 'runs')
    dataset = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert np.bincount(dataset.labels).tolist() == [3, 3]
    assert f"Left out: 'cat/runs': {said}" in capfd.readouterr().err.splitlines()
    found, left_out = pictures.find([pets])
    assert len(found) == 6
    assert left_out == [f"'cat/runs': {said}"]


def test_the_second_start_decodes_nothing_again(pets, cache_dir):
    first = data.load(f'folder:{pets}', 'train', None, cache_dir)
    make_run(pets / 'runs' / 'c4')
    again = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert first.description == again.description == "Images in 'pets'."
    assert len(list(cache_dir.iterdir())) == 1


def test_a_folder_that_is_given_is_looked_into_whatever_it_is(pets, cache_dir):
    make_run(pets / 'runs')
    assert len(data.load(f'folder:{pets / "runs" / "figures"}', 'train', None, cache_dir).labels) == 1
    assert len(data.load(f'images:{pets / "runs"}', 'train', None, cache_dir).labels) == 1


@pytest.mark.parametrize('name', ['config.json', 'manifest.json', 'history.csv'])
@pytest.mark.parametrize('content', ['', '{', '[]', '{"config": 1, "kind": []}', json.dumps({'config': {}})])
def test_a_class_with_files_of_such_names_is_one(name, content, pets, cache_dir):
    (pets / 'cat' / name).write_text(content)
    (pets / 'cat' / 'no suffix').write_bytes(encoded())
    dataset = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert np.bincount(dataset.labels).tolist() == [4, 3]


def test_a_class_that_somebody_trained_in_is_one(pets, cache_dir):
    for path in (pets / 'cat').iterdir():
        path.rename(path.with_suffix(''))  # No name says that these are images.
    make_run(pets / 'cat' / 'run')
    write(pets / 'dog' / 'indoors' / '3.png', encoded())
    make_run(pets / 'dog' / 'run')
    dataset = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert np.bincount(dataset.labels).tolist() == [3, 4]


def test_folders_without_files_and_those_left_behind_are_no_classes(pets, cache_dir, capfd):
    make_junk(pets)
    (pets / 'bird').mkdir()
    (pets / 'fish' / 'red').mkdir(parents=True)
    write(pets / 'goat' / '.hidden.png', encoded())
    write(pets / '.hidden' / '0.png', encoded())
    write(pets / 'System Volume Information' / 'a.png', encoded())
    dataset = data.load(f'folder:{pets}', 'train', None, cache_dir)
    assert dataset.class_names == ('cat', 'dog')
    behind = 'a folder that another program left behind'
    assert sorted(capfd.readouterr().err.splitlines()) == [
        f"Left out: 'System Volume Information': {behind}",
        f"Left out: '__MACOSX': {behind}",
        *(f"Left out: '{name}': a folder without files" for name in ('bird', 'fish', 'goat')),
    ]


def test_images_beside_such_folders_are_of_no_class(tmp_path, cache_dir, capfd):
    for number in range(3):
        write(tmp_path / 'photos' / f'{number}.png', encoded())
    make_junk(tmp_path / 'photos')
    (tmp_path / 'photos' / 'new').mkdir()
    make_run(tmp_path / 'photos' / 'runs' / 'c4')
    dataset = data.load(f'folder:{tmp_path / "photos"}', 'train', None, cache_dir)
    assert (dataset.class_names, len(dataset.labels)) == (('photos',), 3)
    told = [line.split("'")[1] for line in capfd.readouterr().err.splitlines()]
    assert sorted(told) == ['__MACOSX', 'new', 'runs']


def test_images_beside_a_folder_without_images_are_refused_with_a_remedy(tmp_path, cache_dir):
    write(tmp_path / 'photos' / '0.png', encoded())
    write(tmp_path / 'photos' / 'notes' / 'notes.txt', b'cats')
    with pytest.raises(InputError, match=r'none of its 2 files .*; give a folder') as raised:
        data.load(f'folder:{tmp_path / "photos"}', 'train', None, cache_dir)
    (remedy,) = re.findall(r'--config\.dataset=(images:\S+)', str(raised.value))
    assert len(data.load(remedy, 'train', None, cache_dir).labels) == 1


def test_an_empty_test_folder_is_no_test_split(tmp_path, cache_dir, capfd):
    for number in range(10):
        for name in ('cat', 'dog'):
            write(tmp_path / 'pets' / 'train' / name / f'{number}.png', encoded(colour=(number, 0, 0)))
    (tmp_path / 'pets' / 'test' / 'cat').mkdir(parents=True)
    config = config_lib.defaults()
    config.dataset = f'folder:{tmp_path / "pets"}'
    splits = data.load_splits(config, None, cache_dir)
    assert [np.bincount(splits[split].labels).tolist() for split in ('train', 'test')] == [[8, 8], [2, 2]]
    assert "Left out: 'test': a folder without files" in capfd.readouterr().err
    write(tmp_path / 'pets' / 'val' / 'dog' / '0.png', encoded())
    assert len(data.load(config.dataset, 'test', None, cache_dir).labels) == 1


def test_paths_of_datasets_are_the_same_from_everywhere(tmp_path, monkeypatch):
    (tmp_path / 'elsewhere' / 'inner').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere' / 'inner')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    for given, expected in (
        ('folder:.', f'folder:{tmp_path}'),
        ('folder:pets', f'folder:{tmp_path}/pets'),
        ('images:./pets//', f'images:{tmp_path}/pets'),
        ('folder:~/pets', f'folder:{tmp_path}/home/pets'),
        ('folder:link', f'folder:{tmp_path}/link'),
        ('folder:link/../pets', f'folder:{tmp_path}/elsewhere/pets'),
        ('folder:/a:b', 'folder:/a:b'),
        *((name, name) for name in ('folder:', 'images:', 'cifar10', 'imagenette/160px', 'digits')),
    ):
        assert folders.absolute(given) == expected
        assert folders.absolute(expected) == expected


def test_a_run_s_relative_path_is_found_from_everywhere(pets, tmp_path, monkeypatch):
    run = pets / 'runs' / 'c10-1a2b3c4d'
    monkeypatch.chdir('/')
    assert folders.absolute_of_run('folder:.', run) == f'folder:{pets}'
    assert folders.absolute_of_run('folder:cat', run / 'c4' / 'seed_0') == f'folder:{pets}/cat'
    assert folders.absolute_of_run('cifar10', run) == 'cifar10'
    assert folders.absolute_of_run(f'images:{tmp_path}', run) == f'images:{tmp_path}'
    # Not started there: as from where one is.
    assert folders.absolute_of_run('folder:gone', run) == 'folder:/gone'
    monkeypatch.chdir(tmp_path)
    assert folders.absolute_of_run('folder:pets', tmp_path / 'run') == f'folder:{pets}'
    assert folders.absolute_of_run('folder:pets', 'runs/c10') == f'folder:{pets}'


def test_a_run_among_its_own_images_goes_on(pets, tmp_path):
    for number in range(3, 20):
        for name in ('cat', 'dog'):
            write(pets / name / f'{number}.png', encoded(colour=(10 * number, 0, 0)))
    write(pets / 'wolf' / '0.png', encoded())
    tiny = {'image_size': 16, 'num_epochs': 1, 'batches_per_epoch': 2, 'milestones': '()', 'channels': '8,8'}
    flags = [f'--config.{name}={value}' for name, value in ({'dataset': 'folder:.'} | tiny).items()]
    for _ in range(2):
        ran = subprocess.run(
            [
                sys.executable,
                '-m',
                'simclr_cifar.main',
                f'--config={ROOT}/configs/c10.py',
                *flags,
                '--classes=cat,dog',
                '--cache_dir=kept',
            ],
            cwd=pets,
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert 'test/precision_at_10' in ran.stdout
    (run,) = (pets / 'runs').iterdir()
    assert json.loads((run / 'config.json').read_text())['images'] == {'train': 32, 'test': 8}
    assert "'runs': a folder of what this program writes (a run)" in ran.stderr
    assert "'kept': a folder of what this program writes (decoded images)" in ran.stderr
    assert "fewer than 2 test images: 'wolf' (0)" in ran.stderr
