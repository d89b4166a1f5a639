import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import assert_holds_everything_itself
from PIL import Image

from simclr_cifar import config as config_lib
from simclr_cifar import data, evaluate, files, report, stored

NAMES = ('<script>alert(1)</script>', 'a$b$', 'cat & dog')


@pytest.fixture
def run(tmp_path):
    """A run's files, written without training: 3 oddly named classes, 2 evaluated epochs."""
    run = files.RunFolder(tmp_path / 'run')
    rng = np.random.default_rng(0)
    labels = np.arange(36) % 3
    images = rng.integers(0, 256, (36, 32, 32, 3), np.uint8)
    dataset = data.Dataset('digits', images, labels, NAMES, 'Made of <noise>.')
    files.write_json(
        run.config,
        {
            'name': 'made',
            'fingerprint': '01234567',
            'config': stored.to_json(config_lib.defaults()) | {'dataset': 'digits'},
            'description': dataset.description,
            'class_names': NAMES,
            'unseen_class_names': [],
            'chance_loss': float(np.log(3)),
            'chance_accuracy': 1 / 3,
            'images': {'train': 36, 'test': 36},
            'devices': '1 of 1 cpu',
            'versions': {'jax': '0'},
            'git_commit': 'unknown',
        },
    )
    run.start_history(0)
    for epoch in range(1, 5):
        row = dict.fromkeys(files.HISTORY_FIELDS, 1.0) | {'epoch': epoch, 'step': epoch * 10, 'loss': 1 / epoch}
        run.append_history(row | {'accuracy': 1 - 0.5 / epoch})
    for epoch in (2, 4):
        embeddings = np.eye(3, dtype=np.float32)[labels] + rng.normal(0, 1 / epoch, (36, 3)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        evaluation = evaluate.Evaluation()
        splits = {'test': dataset, 'train': dataset}
        evaluate._evaluate_split(evaluation, 'test', splits, lambda _, embeddings=embeddings: embeddings, 0.2)
        evaluate.save(run, epoch, evaluation, NAMES)
    final = {'epoch': 4, 'last_epoch': 4, 'train/loss': 0.25, 'train/accuracy': 0.875, **evaluation.figures}
    files.write_json(run.metrics, final)
    return run


def test_the_page_holds_everything_itself(run):
    report.write_report(run)
    assert_holds_everything_itself(run.report.read_text())


def test_names_are_text(run):
    report.write_report(run)
    page = run.report.read_text()
    assert '<script>alert' not in page
    assert '&lt;script&gt;alert(1)&lt;/script&gt;' in page
    assert 'Made of &lt;noise&gt;.' in page


def test_the_page_works_in_a_browser(run, look):
    report.write_report(run)
    look(run.report, 'explorer', run, 4)


def test_no_milestone_is_missing_from_the_table(run):
    report.write_report(run)
    page = run.report.read_text()
    figures = run.evaluations()
    for epoch in (2, 4):
        row = re.search(rf'<th scope="row">{epoch}</th>(.*?)</tr>', page).group(1)
        assert f'<td>{1 / epoch:.4f}</td>' in row
        assert f'<td>{100 * figures[epoch]["test/precision_at_10"]:.2f}</td>' in row


def test_figures_of_epochs_that_are_to_be_trained_again_are_left_out(run):
    figures = run.read_json(run.metrics) | {'epoch': 2, 'last_epoch': 2}
    files.write_json(run.metrics, figures)
    run.start_history(2)
    report.write_report(run)
    page = run.report.read_text()
    assert '<th scope="row">2</th>' in page
    assert '<th scope="row">4</th>' not in page


def test_figures_of_weights_that_are_gone_are_marked(run):
    files.write_json(run.evaluation(2) / 'weights.json', {'test': files.UNKNOWN_WEIGHTS})
    report.write_report(run)
    assert 'the weights that epoch 2 was measured with are gone' in run.report.read_text()


def test_every_title_names_the_dataset(run):
    report.write_report(run)
    assert '<title>3 classes of digits</title>' in run.report.read_text()


def test_the_pictures_are_pictures(run):
    report.write_report(run)
    names = sorted(path.name for path in run.figures.iterdir())
    assert names == ['accuracy.png', 'confusion_knn.png', 'confusion_neighbours.png', 'gallery.png', 'loss.png']
    for path in run.figures.iterdir():
        pixels = np.asarray(Image.open(path).convert('RGB'))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, path.name


def test_augmented_images_are_shown_and_damaged_ones_are_named(run):
    assert 'id="augmentation"' not in (report.write_report(run) or run.report.read_text())
    seen = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    files.write_arrays(run.augmentation, {'images': seen})
    report.write_report(run)
    drawn = (run.figures / 'augmentation.png').read_bytes()
    assert 'id="augmentation"' in run.report.read_text()
    assert base64.b64encode(drawn).decode() in run.report.read_text()
    run.augmentation.write_bytes(b'no archive')
    with pytest.raises(config_lib.InputError, match=r'augmentation\.npz is missing or unreadable; delete it'):
        report.write_report(run)


def test_the_confusion_file_is_read_as_it_was_written(run):
    matrices = run.read_confusions(4)
    assert matrices['test', 'neighbours'].sum() == 360
    assert matrices['test', 'knn'].sum() == 36
    np.testing.assert_array_equal(matrices['test', 'knn'].sum(axis=1), 12)


def test_the_course_report_is_shown_beside_its_own_subsets_and_method_only():
    def reference(class_names=report.REFERENCE_CLASSES[4], **fields):
        config = config_lib.defaults().to_dict() | {'dataset': 'cifar10'} | fields
        return report.reference({'config': config, 'class_names': list(class_names)})

    assert reference()[75] == (0.3344, 87.37)
    assert reference(['truck', 'cat', 'ship', 'dog']) == reference(['truck', 'cat']) == {}
    assert reference(dataset='digits') == reference(objective='simplex') == {}
    assert reference(negatives='batch') == reference(pairs='class_views') == {}


def test_a_line_that_a_killed_process_left_unfinished_is_no_row(run):
    with run.history.open('a') as file:
        file.write('5,50,0.2')
    assert [row['epoch'] for row in run.read_history()] == [1, 2, 3, 4]
    report.write_report(run)
    run.start_history(3)
    assert [row['epoch'] for row in run.read_history()] == [1, 2, 3]


def test_no_jax_is_imported(run):
    code = (
        f'import sys; from simclr_cifar import files, report; report.write_report(files.RunFolder({str(run.path)!r}))'
    )
    subprocess.run([sys.executable, '-c', f'{code}; assert "jax" not in sys.modules'], check=True)


def test_an_unfinished_run_is_refused(run):
    run.metrics.unlink()
    with pytest.raises(config_lib.InputError, match=r'metrics\.json is missing'):
        report.write_report(run)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'file.json'
    files.write_json(path, {'a': 1})

    def fail(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
        files.write_json(path, {'a': 2})
    assert json.loads(path.read_text()) == {'a': 1}
    assert [path.name for path in tmp_path.iterdir()] == ['file.json']


def test_a_lock_is_held_by_one_and_dies_with_its_process(tmp_path):
    run = files.RunFolder(tmp_path / 'run')
    code = (
        'import sys, time; from simclr_cifar import files\n'
        f'with files.RunFolder({str(run.path)!r}).locked(): print("held", flush=True); time.sleep(60)'
    )
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'held\n'
        with pytest.raises(config_lib.InputError, match=f'process {holder.pid} on'), run.locked():
            pass
        holder.kill()
        holder.wait()
        with run.locked():
            pass
    shutil.rmtree(run.path)
