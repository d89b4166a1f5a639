"""Paths of data sets, from any directory: stored whole, and read where an earlier version stored what was given."""

import json
import os
import subprocess

import pytest
from image_files import encoded, write
from test_main import ROOT, command

from simclr_cifar import stored

TINY = {'image_size': 16, 'num_epochs': 1, 'batches_per_epoch': 2, 'milestones': '()', 'channels': '8,8'}


def run(*flags, cwd):
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    return subprocess.run(command(*flags), cwd=cwd, env=environment, capture_output=True, text=True)


def train(dataset, cwd, **fields):
    flags = [f'--config.{name}={value}' for name, value in (TINY | {'dataset': dataset} | fields).items()]
    return run(f'--config={ROOT}/configs/c10.py', *flags, cwd=cwd)


@pytest.fixture
def pets(tmp_path):
    """Two classes of ten images."""
    for number in range(10):
        for name in ('cat', 'dog'):
            write(tmp_path / 'pets' / name / f'{number}.png', encoded(colour=(9 * number, 0, 0)))
    return tmp_path / 'pets'


@pytest.mark.parametrize('before', [None, 'folder:.'])
def test_a_run_on_a_relative_folder_is_evaluated_and_goes_on_from_elsewhere(before, pets, tmp_path):
    assert train('folder:.', pets).returncode == 0
    (workdir,) = (pets / 'runs').iterdir()
    described = json.loads((workdir / 'config.json').read_text())
    assert described['config']['dataset'] == f'folder:{pets}'
    if before:  # As earlier versions did, which named the folder by it, too.
        described['config']['dataset'] = before
        config = stored.from_json(described['config'])
        (workdir / 'config.json').write_text(json.dumps(described))
        workdir = workdir.rename(workdir.with_name(f'c10-.-{stored.fingerprint(config)}'))
    for dataset, cwd, flags in (
        ('folder:.', pets, []),
        ('folder:pets/', tmp_path, [f'--workdir={workdir}']),
        (f'folder:{pets}', tmp_path, [f'--workdir={workdir}']),
    ):
        all_flags = [f'--config.{name}={value}' for name, value in (TINY | {'dataset': dataset}).items()]
        ran = run(f'--config={ROOT}/configs/c10.py', *all_flags, *flags, cwd=cwd)
        assert ran.returncode == 0, ran.stderr
        assert 'test/precision_at_10' in ran.stdout
    ran = run('--mode=eval', f'--workdir={workdir}', cwd='/')
    assert ran.returncode == 0, ran.stderr
    assert list((pets / 'runs').iterdir()) == [workdir]
    assert not (tmp_path / 'runs').exists()
