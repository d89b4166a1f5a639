"""Paths of flags: a leading '~' is the person's home, and an address is no path."""

import os
import shutil
import subprocess
import sys

import pytest
from test_main import DIGITS, ROOT, assert_refused, run

from simclr_cifar import commands


def test_a_leading_tilde_is_home_in_every_flag(tmp_path):
    home = {'HOME': str(tmp_path)}
    shutil.copy(ROOT / 'configs' / 'smoke.py', tmp_path / 'mine.py')
    flags = [flag.replace('configs/smoke.py', '~/mine.py') for flag in DIGITS]
    result = run(*flags, '--workdir=~/run', '--cache_dir=~/cache', environment=home)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'run' / 'report.html').exists()
    assert (tmp_path / 'cache' / 'compiled').exists()
    assert not (ROOT / '~').exists()
    result = run('--mode=eval', '--workdir', '~/run', environment=home)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('path', ['gs://bucket/run', 's3://bucket', 'hdfs://host:1/x', 'file:///tmp/x', 'GS://b'])
def test_an_address_is_no_path(path):
    with pytest.raises(commands.NotLocal, match='mount the bucket'):
        commands.local_path(path)


@pytest.mark.parametrize(
    'command',
    [
        ['search', 'query', '--index=gs://b/i', '--image=a.png'],
        ['search', 'build', '--index=i', '--images=s3://b/pictures'],
        ['search', 'build', '--index=i', '--images=p', '--checkpoint=gs://b/run'],
        ['export', '--checkpoint=gs://b/run', '--to=x'],
        ['export', '--checkpoint=weights/fast', '--to=gs://b/x'],
    ],
)
def test_the_other_programs_refuse_addresses(command, tmp_path):
    line = [sys.executable, '-m', f'simclr_cifar.{command[0]}', *command[1:]]
    result = subprocess.run(
        line, cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True
    )
    assert_refused(result, 'is an address')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('path', ['runs/c10', '/tmp/a:b', 'a//b', 'c:\\x', '-', '.', 'a~b', '1://x'])
def test_other_paths_stay_as_they_are(path):
    assert commands.local_path(path) == path


def test_home_that_is_not_known_leaves_the_tilde(monkeypatch):
    assert commands.local_path('~nobody-of-this-name/x') == '~nobody-of-this-name/x'
    monkeypatch.setenv('HOME', '/home/a')
    assert commands.local_path('~/x') == os.path.join('/home/a', 'x')
