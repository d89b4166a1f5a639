"""Runs of older versions: what they are resumed, evaluated and refused for."""

import json
import pathlib
import runpy
import shutil

import ml_collections
import numpy as np
import pytest
from test_checkpoint import make_state
from test_main import ROOT, assert_refused, run, snapshot

from simclr_cifar import checkpoint, stored, trained
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder

FORMAT_1 = pathlib.Path(__file__).parent / 'format_1'
FLAGS = (
    *('--config=configs/c4.py', '--config.channels=(8,16,32)', '--config.batches_per_epoch=20'),
    *('--config.milestones=(1,2,3)', '--config.num_epochs=3', '--config.checkpoint_every_epochs=1'),
)
# Of commit 52f6d6f; a default folder is named by them.
FINGERPRINTS = {
    **{'c4': 'e28c67de', 'c7': '0dd0a091', 'c10': '3284442b', 'study': '45b23bc7', 'smoke': 'bc0c56a4'},
    **{'c4_best': 'b82da405', 'c7_best': '1798c591', 'c10_best': 'f5e0ecf5', 'fast': '8efd31d7'},
    **{'simclr_r18': 'c7010c9b', 'simclr_r18_1000': 'a2338f52', 'supcon_r18': 'fe8d38f3'},
}


@pytest.fixture
def older(tmp_path):
    """From a name in format_1/ to a copy of that run."""
    return lambda name: pathlib.Path(shutil.copytree(FORMAT_1 / name, tmp_path / name))


@pytest.fixture
def images(small_cifar10, tmp_path):
    return f'--data_dir={small_cifar10}', f'--cache_dir={tmp_path / "cache"}'


@pytest.mark.parametrize('name', FINGERPRINTS)
def test_default_folders_are_still_found(name):
    config = runpy.run_path(str(ROOT / 'configs' / f'{name}.py'))['get_config']()
    assert stored.fingerprint(config) == FINGERPRINTS[name]


def test_a_run_of_format_1_is_resumed(older, images):
    workdir = older('c4')
    before = (workdir / 'history.csv').read_text()
    result = run(*FLAGS, *images, f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    assert f'Going on from epoch 1 of 3 in {workdir}' in result.stdout
    assert (workdir / 'history.csv').read_text().startswith(before)
    losses = [row['loss'] for row in RunFolder(workdir).read_history()]
    np.testing.assert_allclose(losses[1:], [0.60698, 0.27976], atol=1e-3)


def test_a_run_of_format_1_is_evaluated_and_used(older, images):
    workdir = older('c4')
    recorded = RunFolder(workdir).evaluations()[1]
    shutil.rmtree(workdir / 'eval')
    result = run('--mode=eval', *images, f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    found = RunFolder(workdir).evaluations()[1]
    for name in ('test/precision_at_10', 'test/pair_accuracy'):
        assert found[name] == pytest.approx(recorded[name], abs=0.02)
    assert trained.load(RunFolder(workdir)).epoch == 1


def test_a_run_whose_schedule_changed_is_evaluated_and_not_resumed(older, images):
    workdir = older('cosine')
    before = snapshot(workdir)
    result = run(*FLAGS, '--config.schedule=cosine', *images, f'--workdir={workdir}')
    assert_refused(result, str(workdir), 'schedules end at the last step', 'another folder', '52f6d6f')
    assert {name: content for name, content in snapshot(workdir).items() if name.name != '.lock'} == before
    result = run('--mode=eval', *images, f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    assert 'test/precision_at_10' in result.stdout


def test_a_run_whose_crops_changed_is_not_resumed(older, images):
    result = run(*FLAGS, '--config.augmentation=random_resized_crop', *images, f'--workdir={older("crops")}')
    assert_refused(result, 'random_resized_crop draws', 'another folder')


def test_a_resnet_of_format_1_is_refused_for_everything(older, images):
    workdir = older('resnet')
    for flags in (
        ['--mode=eval', f'--workdir={workdir}'],
        [
            *(f'--workdir={workdir}', '--config=configs/c4.py', '--config.encoder=resnet18'),
            *('--config.num_epochs=1', '--config.batches_per_epoch=1', '--config.milestones=(1,)'),
        ],
    ):
        (workdir / 'metrics.json').unlink(missing_ok=True)  # Which would make the second one finished.
        assert_refused(run(*flags, *images), 'pad strided convolutions at both edges', 'anew')
    with pytest.raises(InputError, match='both edges'):
        trained.load(RunFolder(workdir, '--checkpoint'))


@pytest.mark.parametrize('found', [3, 0, 'two', None, 2.0])
def test_a_format_that_is_not_known_is_refused(older, found):
    run_folder = RunFolder(older('c4'))
    described = run_folder.read_json(run_folder.config) | {'format': found}
    run_folder.config.write_text(json.dumps(described))
    with pytest.raises(InputError, match='update simclr_cifar'):
        trained.load(run_folder)


@pytest.mark.parametrize('name', ['image_size', 'resident', 'label_smoothing', 'with_replacement'])
def test_a_missing_field_has_its_default(tmp_path, name):
    config = config_lib.defaults()
    fields = stored.to_json(config)
    del fields[name]
    assert stored.from_json(fields) == config
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps({'config': fields}))
    stored.require_same(folder, config)
    changed = config_lib.defaults()
    changed.update(seed=1)
    with pytest.raises(InputError, match='seed was 0 and is 1'):
        stored.require_same(folder, changed)


def test_a_field_that_came_later_leaves_fingerprints_as_they_are(monkeypatch):
    before, defaults = stored.fingerprint(config_lib.defaults()), config_lib.study_defaults()
    monkeypatch.setattr(stored, 'ADDED', ('new',))
    monkeypatch.setattr(
        config_lib, 'study_defaults', lambda: ml_collections.ConfigDict({**dict(defaults.items()), 'new': 3})
    )
    prints = [
        stored.fingerprint(ml_collections.ConfigDict({**dict(config_lib.defaults().items()), 'new': value}))
        for value in (3, 4)
    ]
    assert prints[0] == before
    assert prints[1] != before


def test_one_table_renames_fields_and_what_checkpoints_hold(monkeypatch, tmp_path):
    before = stored.fingerprint(config_lib.defaults())
    state, directory = make_state(), tmp_path / 'checkpoints'
    with checkpoint.Saver(directory, 1, []) as saver:
        saver.save(1, state)
    monkeypatch.setattr(stored, 'RENAMED', {'old_seed': 'seed', 'kernel': 'weight'})
    fields = stored.to_json(config_lib.defaults())
    fields['old_seed'] = fields.pop('seed')
    assert stored.from_json(fields) == config_lib.defaults()
    # That version's fingerprint had the old name in it.
    assert stored.fingerprint(config_lib.defaults()) != before
    # A version that calls kernels weights reads the checkpoint, and this one's state does not fit what it reads.
    with pytest.raises(InputError, match='kernel is absent'):
        checkpoint.restore(directory, 1, state)
