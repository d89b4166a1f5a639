"""The study: what it trains, what its tables say, and going on after an interruption."""

import csv
import json
import shutil
import statistics

import numpy as np
import pytest
from conftest import CLASS_NAMES, assert_holds_everything_itself

from simclr_cifar import checkpoint, duplicates, files, findings, stored, study
from simclr_cifar import config as config_lib

SEEDS = (0, 1)
SUBSETS = {'c4': 4, 'c3-truck-cat-ship': 'truck,cat,ship'}


def make_config(**fields):
    config = config_lib.study_defaults()
    config.update(
        {
            'channels': (8,),
            'embedding_dim': 4,
            'num_epochs': 4,
            'batches_per_epoch': 8,
            'milestones': (2, 4),
            'checkpoint_every_epochs': 1,
            'subsets': tuple(SUBSETS.values()),
            'num_seeds': len(SEEDS),
        }
        | fields
    )
    config_lib.validate(config)
    return config


def start(path, data_dir, cache_dir, **fields):
    config, folder = make_config(**fields), files.StudyFolder(path)
    with folder.locked():
        study.run_study('made', config, study.plan(config, data_dir, cache_dir), folder, data_dir, cache_dir)
    return folder


@pytest.fixture(scope='module')
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def finished(small_cifar10, cache_dir, tmp_path_factory):
    """A finished study in which test images 1 and 7 of each subset were found among the training images."""
    with pytest.MonkeyPatch.context() as patch:
        found = duplicates.Duplicates(np.array([1, 7]), np.array([3, 4]), np.array([0.99, 0.98], np.float32))
        patch.setattr(duplicates, 'near_duplicates', lambda *_: found)
        return start(tmp_path_factory.mktemp('study') / 'study', small_cifar10, cache_dir)


def read_metrics(folder, subset, seed, epoch):
    return json.loads((folder.path / subset / f'seed_{seed}' / 'eval' / str(epoch) / 'metrics.json').read_text())


def row_of(text, title, first):
    """The cells of a Markdown table's row."""
    lines = text[text.index(f'## {title}') :].splitlines()
    line = next(line for line in lines if line.startswith(f'| {first} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_every_subset_and_seed_is_a_run_of_its_own(finished):
    for subset, classes in (('c4', CLASS_NAMES[:4]), ('c3-truck-cat-ship', ('truck', 'cat', 'ship'))):
        for seed in SEEDS:
            run = finished.run(subset, seed)
            described = json.loads(run.config.read_text())
            assert described['class_names'] == list(classes)
            assert described['config']['seed'] == seed
            stored.from_json(described['config'])
            assert checkpoint.saved_epochs(run.checkpoints)[-1] == 4
            assert run.report.exists()
    histories = {(subset, seed): finished.run(subset, seed).history.read_text() for subset in SUBSETS for seed in SEEDS}
    assert len(set(histories.values())) == 4


@pytest.mark.parametrize(
    ('title', 'name', 'digits', 'scale'),
    [('Held-out loss (nats)', 'pair_loss', 4, 1), ('Held-out accuracy (%)', 'pair_accuracy', 2, 100)],
)
def test_held_out_tables_are_means_and_deviations_of_the_seeds(finished, title, name, digits, scale):
    cells = row_of(finished.text.read_text(), title, 4)
    for cell, epoch in zip(cells[1:], (2, 4), strict=True):
        values = [scale * read_metrics(finished, 'c4', seed, epoch)[f'validation/{name}'] for seed in SEEDS]
        assert cell == f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


def test_training_tables_are_of_the_epoch_s_batches(finished):
    histories = [finished.run('c3-truck-cat-ship', seed).read_history() for seed in SEEDS]
    for title, name, digits, scale in (
        ('Training loss (nats)', 'loss', 4, 1),
        ('Training accuracy (%)', 'accuracy', 2, 100),
    ):
        cells = row_of(finished.text.read_text(), title, 3)
        for cell, epoch in zip(cells[1:], (2, 4), strict=True):
            values = [scale * history[epoch - 1][name] for history in histories]
            assert cell == f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


def test_the_course_report_stands_beside_its_own_subsets(small_cifar10, cache_dir, tmp_path):
    fields = {'subsets': (4,), 'num_seeds': 1, 'num_epochs': 15, 'milestones': (15,), 'batches_per_epoch': 1}
    folder = start(tmp_path / 'study', small_cifar10, cache_dir, **fields)
    text = folder.text.read_text()
    assert row_of(text, 'Training loss (nats)', 4)[1].endswith(' (0.9200)')
    assert row_of(text, 'Held-out accuracy (%)', 4)[1].endswith(' (59.25)')
    assert '±' not in text


def test_the_table_file_has_a_row_for_each_seed_and_milestone(finished):
    with finished.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['subset'], row['seed'], row['epoch']) for row in rows] == [
        (subset, str(seed), str(epoch)) for subset in SUBSETS for seed in SEEDS for epoch in (2, 4)
    ]
    for row in rows:
        figures = read_metrics(finished, row['subset'], row['seed'], row['epoch'])
        for name, value in figures.items():
            assert float(row[name]) == value
        final = json.loads(finished.run(row['subset'], row['seed']).metrics.read_text())
        assert row['chosen'] == str(int(final['epoch'] == int(row['epoch'])))


def test_the_verdict_is_each_run_s_own(finished):
    text = finished.text.read_text()
    table = text[text.index('## Verdicts') :].splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in table if line.startswith(('| 4', '| 3'))]
    finals = [json.loads(finished.run(subset, seed).metrics.read_text()) for subset in SUBSETS for seed in SEEDS]
    for row, final in zip(rows, finals, strict=False):
        assert row[3] == str(final['overfitting/peak_epoch'])
        assert row[2] == ('overfitting' if final['overfitting/fall_low'] > 0 else 'no overfitting seen')
    seen = sum(final['overfitting/seen'] for final in finals)
    assert (f'Seen in {seen} of 4 runs' if seen else 'No overfitting seen: in none of the 4 runs') in text


def test_figures_without_duplicates_leave_their_queries_out(finished):
    cells = row_of(finished.text.read_text(), 'Near-duplicates of training images', 4)
    assert cells[1:3] == ['2', '5.00']
    for name, place in (('precision_at_10', 3), ('pair_accuracy', 5), ('knn_accuracy_k200', 7)):
        whole, without = [], []
        for seed in SEEDS:
            run = finished.run('c4', seed)
            epoch = json.loads(run.metrics.read_text())['epoch']
            queries = run.read_arrays(epoch, 'test')
            values, labels = queries[name].astype(float), queries['label']
            kept = [index for index in range(len(values)) if index not in (1, 7)]
            by_class = [[values[index] for index in kept if labels[index] == label] for label in range(4)]
            whole.append(100 * read_metrics(finished, 'c4', seed, epoch)[f'test/{name}'])
            mean = statistics.mean(map(statistics.mean, by_class)) if name == 'pair_accuracy' else np.mean(values[kept])
            without.append(100 * float(mean))
        for cell, expected in zip(cells[place : place + 2], (whole, without), strict=True):
            assert cell == f'{statistics.mean(expected):.2f} ± {statistics.stdev(expected):.2f}'


def test_class_changes_are_differences_of_the_diagonals(finished):
    subset = findings.Subset('c4', finished, list(SEEDS))
    (_, cells) = next((row[0], row[1:]) for row in findings.class_changes(subset).rows if row[0] == 'bird')
    changes = []
    for seed in SEEDS:
        shares = []
        for epoch in (2, 4):
            with (finished.run('c4', seed).evaluation(epoch) / 'confusion.csv').open() as file:
                for row in csv.DictReader(file):
                    kind = (row['split'], row['kind'], row['class'], row['other_class'])
                    if kind == ('validation', 'neighbours', 'bird', 'bird'):
                        shares.append(float(row['row_percent']))
        changes.append(shares[1] - shares[0])
    assert cells == [f'{statistics.mean(changes):+.1f} ± {statistics.stdev(changes):.1f}']


def test_the_milestones_of_the_lowest_held_out_loss_are_told(finished):
    told = []
    for subset, count in (('c4', 4), ('c3-truck-cat-ship', 3)):
        lowest = []
        for seed in SEEDS:
            losses = [read_metrics(finished, subset, seed, epoch)['validation/pair_loss'] for epoch in (2, 4)]
            lowest.append('2' if losses[0] <= losses[1] else '4')
        told.append(f'{count} classes: {", ".join(lowest)}')
    assert f'held-out loss is lowest, seed by seed: {"; ".join(told)}.' in finished.text.read_text()


def test_a_subset_s_unseen_classes_are_scored(finished):
    cells = row_of(finished.text.read_text(), 'Classes never seen', 4)
    values = []
    for seed in SEEDS:
        final = json.loads(finished.run('c4', seed).metrics.read_text())
        values.append(100 * final['unseen/precision_at_10'])
        assert {'no_match/auroc', 'no_match/precision', 'no_match/recall', 'all/precision_at_10'} <= final.keys()
    assert cells[2] == f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'


def test_the_page_works_in_a_browser(finished, look):
    for number, subset in enumerate(SUBSETS, 1):
        run = finished.run(subset, 0)
        look(finished.page, f'explorer-{number}', run, json.loads(run.metrics.read_text())['epoch'])


def test_the_page_holds_everything_itself(finished):
    page = finished.page.read_text()
    assert_holds_everything_itself(page)
    assert page.count('class="confusion small"') == 2 * len(SUBSETS)
    for cell in row_of(finished.text.read_text(), 'Held-out loss (nats)', 4)[1:]:
        assert f'<td>{cell}</td>' in page


class Killed(Exception):
    pass


@pytest.mark.parametrize(('subset', 'epoch'), [('c4', 3), ('c3-truck-cat-ship', 1), ('c3-truck-cat-ship', 4)])
def test_a_killed_study_goes_on_where_it_was(finished, small_cifar10, cache_dir, tmp_path, monkeypatch, subset, epoch):
    found = duplicates.Duplicates(np.array([1, 7]), np.array([3, 4]), np.array([0.99, 0.98], np.float32))
    monkeypatch.setattr(duplicates, 'near_duplicates', lambda *_: found)
    save = checkpoint.Saver.save

    def kill(self, number, state):
        if number == epoch and self.directory == tmp_path / 'study' / subset / 'seed_1' / 'checkpoints':
            raise Killed
        save(self, number, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Saver, 'save', kill)
        start(tmp_path / 'study', small_cifar10, cache_dir)
    trained = []
    train = study.train.train

    def record(config, splits, runs):
        trained.append(next(iter(runs.values())).path.parent.name)
        return train(config, splits, runs)

    monkeypatch.setattr(study.train, 'train', record)
    folder = start(tmp_path / 'study', small_cifar10, cache_dir)
    assert trained == (list(SUBSETS) if subset == 'c4' else [subset])
    assert folder.text.read_text() == finished.text.read_text()
    assert folder.table.read_text() == finished.table.read_text()


def test_a_finished_study_is_only_written_again(finished, small_cifar10, cache_dir, monkeypatch, tmp_path):
    finished = files.StudyFolder(shutil.copytree(finished.path, tmp_path / 'study'))
    monkeypatch.setattr(study.train, 'train', None)
    for seed in SEEDS:  # To save space.
        shutil.rmtree(finished.run('c4', seed).checkpoints)
    finished.run('c4', SEEDS[0]).report.unlink()
    before = finished.text.read_text()
    finished.page.unlink()
    start(finished.path, small_cifar10, cache_dir)
    assert finished.text.read_text() == before
    assert finished.page.exists()
    assert finished.run('c4', SEEDS[0]).report.exists()


def test_damaged_near_duplicates_are_one_line(finished, tmp_path):
    folder = files.StudyFolder(shutil.copytree(finished.path, tmp_path / 'study'))
    whole = folder.duplicates('c4').read_bytes()
    folder.duplicates('c4').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(config_lib.InputError, match=r'c4/duplicates\.npz is missing or unreadable; delete it'):
        study.study_report.write_study(folder)


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'subsets': (4, 4)}, r'--config\.subsets.*4 and 4 are the same classes'),
        ({'subsets': (2, 'automobile,airplane')}, r"2 and 'automobile,airplane' are the same classes"),
        ({'subsets': (4, 'truck,car')}, r"--config\.subsets.*no class 'car'"),
        ({'subsets': (11,)}, r'--config\.subsets.*only 10 classes'),
        ({'subsets': (1,)}, r'--config\.subsets.*at least 2 classes'),
        (
            {'subsets': (1,), 'pairs': 'views', 'objective': 'nt_xent', 'augmentation': 'flip'},
            r'--config\.subsets.*a study compares classes',
        ),
        ({'validation_fraction': 0.02}, r"'airplane' has 1 validation image\(s\), a pair needs 2"),
        ({'validation_fraction': 0.005}, r"'airplane' has 0 validation image\(s\)"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(small_cifar10, cache_dir, fields, said):
    with pytest.raises(config_lib.InputError, match=said):
        study.plan(make_config(**fields), small_cifar10, cache_dir)


def test_folders_of_subsets_have_plain_and_different_names(small_cifar10, cache_dir):
    subsets = ('cat,dog', 'dog,cat,deer', 10)
    assert study.plan(make_config(subsets=subsets), small_cifar10, cache_dir) == dict(
        zip(('c2-cat-dog', 'c3-dog-cat-deer', 'c10'), subsets, strict=True)
    )
