"""Classes with few images: the remedy that is named leads to a run; unseen ones that cannot be scored are left out."""

import re
import shlex

import numpy as np
import pytest
from image_files import encoded, write

from simclr_cifar import beginning, data, evaluate, files, parallel, step
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError


def make_folder(root, counts):
    """Makes so many images in each folder, by its name."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write(root / name / f'{number:03}.png', encoded(colour=(9 * number % 256, 30 * label, 99), size=(8, 8)))
    return f'folder:{root}'


def make_config(dataset, **fields):
    config = config_lib.defaults()
    config.update(dataset=dataset, channels=(4,), embedding_dim=2)
    config.update(fields)
    return config


def figures_of(config, splits):
    """The figures of an encoder that has not been trained, as the program computes them after training."""
    state = step.init_state(config, splits['train'].images, 0)
    names = ['train', 'validation', 'test'] if 'validation' in splits else ['test']
    return evaluate.make_evaluate(config, parallel.local_mesh(), splits)(state, names).figures


@pytest.mark.parametrize('few', [{'c': 1}, {'c': 0}, {'c': 5}, {'c': 1, 'd': 5, 'e': 7}])
def test_unseen_classes_without_a_pair_of_test_images_are_left_out(few, tmp_path, cache_dir, capfd):
    config = make_config(make_folder(tmp_path / 'pets', {'a': 10, 'b': 10} | few), classes='a,b')
    splits = data.load_splits(config, None, cache_dir)
    assert sorted(splits) == ['test', 'train']
    expected = ', '.join(f"'{name}' ({round(0.2 * count)})" for name, count in few.items() if count)
    told = capfd.readouterr().err.splitlines()
    if expected:
        assert told[-1] == f'Left out: of the unseen classes, those with fewer than 2 test images: {expected}'
    figures = figures_of(config, splits)
    assert not [name for name in figures if name.startswith(('unseen', 'all', 'no_match'))]
    assert np.all(np.isfinite(list(figures.values())))


def test_unseen_classes_with_a_pair_of_test_images_are_scored(tmp_path, cache_dir):
    counts = {'a': 10, 'b': 10, 'c': 1, 'd': 8, 'e': 30}
    config = make_config(make_folder(tmp_path / 'pets', counts), classes='a,b')
    splits = data.load_splits(config, None, cache_dir)
    assert splits['unseen'].class_names == ('d', 'e')
    assert np.bincount(splits['unseen'].labels).tolist() == [2, 6]
    figures = figures_of(config, splits)
    assert 'unseen/precision_at_10' in figures
    assert np.all(np.isfinite(list(figures.values())))


def test_a_class_that_only_one_split_has_may_be_unseen(tmp_path, cache_dir):
    counts = {'train/a': 4, 'train/b': 4, 'train/c': 4, 'test/a': 2, 'test/b': 2, 'test/d': 2}
    config = make_config(make_folder(tmp_path / 'pets', counts), classes='a,b')
    splits = data.load_splits(config, None, cache_dir)
    assert splits['unseen'].class_names == ('d',)
    assert np.all(np.isfinite(list(figures_of(config, splits).values())))


@pytest.mark.parametrize(
    ('unseen', 'counted', 'fits'), [('cd', 2, True), ('c', 1, True), ('', 0, True), ('cd', 3, False)]
)
def test_a_run_of_before_that_counted_more_unseen_images_goes_on(unseen, counted, fits, tmp_path, cache_dir):
    config = make_config(make_folder(tmp_path / 'pets', {'a': 10, 'b': 10, 'c': 5, 'd': 5, 'e': 10}), classes='a,b')
    splits = data.load_splits(config, None, cache_dir)
    run = files.RunFolder(tmp_path / 'run')
    images = {'train': 16, 'test': 4, 'unseen': counted + 2}
    described = {'class_names': ['a', 'b'], 'unseen_class_names': [*unseen, 'e'], 'images': images}
    files.write_json(run.config, described)
    if fits:
        beginning.require_same_images(run, splits)
    else:
        with pytest.raises(InputError, match='is of other images'):
            beginning.require_same_images(run, splits)


FEW = [
    # Counts, fields of the config, and the remedies, of which there are as many as suggestions.
    ({'a': 30, 'b': 30, 'c': 1}, {}, ['--classes=a,b', '8 images of each class']),
    ({'a': 30, 'b': 30, 'c c': 1, 'd d': 30}, {}, ["'--classes=a,b,d d'", '8 images of each class']),
    ({'a': 30, 'b': 30, 'c': 1}, {'num_classes': 3}, ['--classes=a,b in place of --num_classes=3', '8 images']),
    ({'a': 30, 'b': 30, 'c': 5}, {}, ['--classes=a,b', '--config.test_fraction=0.3', '8 images of each class']),
    (
        {'a': 30, 'b': 30, 'c': 5, 'd': 1},
        {'classes': 'd,c,b,a'},
        ['2 classes have too few', '--classes=b,a', '8 images'],
    ),
    ({'a': 7, 'b': 7}, {}, ['2 classes have too few', '--config.test_fraction=0.25', '8 images of each class']),
    ({'a': 7, 'b': 30}, {}, ['--config.test_fraction=0.25', '8 images of each class']),
    ({'a': 9, 'b': 30}, {'validation_fraction': 0.1}, ['--config.validation_fraction=0.25', '19 images of each class']),
    ({'a': 30, 'b': 1}, {}, ['add to it until there are 8 images of each class']),
    (
        {'train/a': 9, 'train/b': 9, 'train/c': 9, 'test/a': 3, 'test/b': 3},
        {},
        ['--classes=a,b', '--config.test_fraction'],
    ),
    (
        {'train/a': 9, 'train/b': 9, 'train/c': 1, 'test/a': 3, 'test/b': 3, 'test/c': 3},
        {},
        ['--classes=a,b', 'add to it'],
    ),
    ({'a': 30, 'b': 1}, VIEWS := {'pairs': 'views', 'augmentation': 'simclr', 'negatives': 'batch'}, ['--classes=a (']),
    ({'.': 7}, VIEWS, ['--config.test_fraction=0.25', '8 images']),
    ({'a,b': 30, 'b': 30, 'c': 1}, {}, ['leave it out by moving the folder elsewhere', '8 images of each class']),
]


def flags_of(suggestion):
    """The flags that a suggestion names, as a shell reads them: field to value."""
    words = shlex.split(re.sub(r' \(.*| in place of .*', '', suggestion))
    flags = [word.removeprefix('--').removeprefix('config.').split('=') for word in words if word.startswith('--')]
    return {name: value if name == 'classes' else float(value) for name, value in flags}


@pytest.mark.parametrize(('counts', 'fields', 'expected'), FEW)
def test_the_remedies_for_few_images_lead_to_a_run(counts, fields, expected, tmp_path, cache_dir):
    dataset = make_folder(tmp_path / 'pets', counts)
    config = make_config(dataset, **fields)
    with pytest.raises(InputError, match=r"--config\.dataset=folder:\S+: the class '.*' has \d \w+ image") as raised:
        data.load_splits(config, None, cache_dir)
    said = str(raised.value)
    assert '\n' not in said
    assert all(words in said for words in expected), said
    suggestions = said.partition('a pair needs 2; ')[2].split(', or ')
    for suggestion in suggestions:
        if flags := flags_of(suggestion):
            if 'classes' in flags:
                flags['num_classes'] = 0
            fixed = make_config(dataset, **fields | flags)
            splits = data.load_splits(fixed, None, cache_dir)
            assert np.all(np.isfinite(list(figures_of(fixed, splits).values())))
    if needed := re.search(r'until there are (\d+) images', said):
        for number, fits in ((int(needed[1]) - 1, False), (int(needed[1]), True)):
            enough = {name: max(count, number) for name, count in counts.items()}
            more = make_config(make_folder(tmp_path / f'pets {number}', enough), **fields)
            if fits:
                data.load_splits(more, None, cache_dir)
            elif min(enough.values()) == number:
                with pytest.raises(InputError):
                    data.load_splits(more, None, cache_dir)


def test_classes_that_hold_no_image_are_left_out(tmp_path, cache_dir, capfd):
    dataset = make_folder(tmp_path / 'pets', {'a': 10, 'b': 10})
    write(tmp_path / 'pets' / 'notes' / 'notes.txt', b'cats')
    splits = data.load_splits(make_config(dataset), None, cache_dir)
    assert {dataset.class_names for dataset in splits.values()} == {('a', 'b')}
    assert "the class 'notes': none of its images can be read" in capfd.readouterr().err
    assert 'unseen' not in splits
    with pytest.raises(InputError, match="no class 'notes'; it has a, b"):
        data.load_splits(make_config(dataset, classes='a,notes'), None, cache_dir)


def test_one_usable_class_is_told_what_tells_its_images_apart(tmp_path, cache_dir):
    dataset = make_folder(tmp_path / 'pets', {'a': 20, 'empty': 0})
    config = make_config(dataset)
    with pytest.raises(InputError, match=r"contrasting needs at least 2 classes, and there is one, 'a'; ") as raised:
        data.load_splits(config, None, cache_dir)
    flags = dict(re.findall(r'--config\.(\w+)=(\w+)', str(raised.value).partition('simclr_r18.py')[2]))
    assert sorted(flags) == ['augmentation', 'groups_per_batch', 'negatives', 'pairs']
    config = make_config(dataset, **flags | {'groups_per_batch': int(flags['groups_per_batch'])})
    config_lib.validate(config)
    splits = data.load_splits(config, None, cache_dir)
    beginning.require_trainable(config, splits['train'])
    assert 'test/view_accuracy' in figures_of(config, splits)
