"""The launch scripts, with an environment and a python that only note what they are asked."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent

PYTHON = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in *--mode=prepare*) echo "no data"; exit ${PREPARED:-0} ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, tmp_path)
    binaries = tmp_path / '.venv' / 'bin'
    binaries.mkdir(parents=True)
    (tmp_path / '.venv' / '.made').touch()
    (binaries / 'activate').write_text(f'PATH={binaries}:$PATH\n')
    (binaries / 'python').write_text(PYTHON)
    (binaries / 'python').chmod(0o755)
    return tmp_path


def launch(checkout, script, *flags, **environment):
    calls = checkout / 'calls'
    calls.unlink(missing_ok=True)
    environment = os.environ | {'CALLS': str(calls)} | environment
    result = subprocess.run(
        ['bash', checkout / 'launch' / script, *flags], cwd='/', env=environment, capture_output=True, text=True
    )
    return result, calls.read_text().splitlines()


def test_requirements_are_installed_once_and_again_when_they_change(checkout):
    _, calls = launch(checkout, 'test.sh', '-k', 'name')
    installed = [call for call in calls if 'pip install' in call]
    assert [call.split()[-1] for call in installed] == ['requirements.txt', 'requirements-test.txt']
    assert calls[-1] == '-m pytest --numprocesses=2 -k name'
    _, calls = launch(checkout, 'test.sh')
    assert calls == ['-m pytest --numprocesses=2']
    with (checkout / 'requirements-test.txt').open('a') as file:
        file.write('# changed\n')
    _, calls = launch(checkout, 'test.sh')
    assert [call.split()[-1] for call in calls if 'pip install' in call] == ['requirements-test.txt']


def test_the_flags_reach_the_main_program(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', '--config.num_epochs=3', '--classes=cat,dog')
    flags = '-m simclr_cifar.main --config=configs/c10.py --config.num_epochs=3 --classes=cat,dog'
    assert (result.returncode, calls) == (0, [f'{flags} --mode=prepare', flags])
    _, calls = launch(checkout, 'local.sh', '--config=configs/c4.py')
    assert calls[-1] == '-m simclr_cifar.main --config=configs/c4.py'
    _, calls = launch(checkout, 'local.sh', '--mode=study')
    assert calls[-1] == '-m simclr_cifar.main --config=configs/study.py --mode=study'
    _, calls = launch(checkout, 'local.sh', '--mode=eval', '--workdir=runs/x')
    assert calls == ['-m simclr_cifar.main --mode=eval --workdir=runs/x']


def test_only_data_that_cannot_be_had_turns_to_the_digits(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', PREPARED='3')
    assert result.stdout == 'Training on the embedded digits instead of CIFAR-10: no data\n'
    assert calls[-1] == '-m simclr_cifar.main --config=configs/c10.py --config.dataset=digits'
    result, calls = launch(checkout, 'local.sh', PREPARED='2')
    assert (result.returncode, len(calls)) == (2, 1)
    _, calls = launch(checkout, 'local.sh', '--data_dir=/nowhere', PREPARED='3')
    assert calls == ['-m simclr_cifar.main --config=configs/c10.py --data_dir=/nowhere']
