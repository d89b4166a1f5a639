"""What is no damage: an import that fails, a file that may not be read, a format that is not read, no room to write."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds
from packaging.requirements import Requirement
from packaging.version import Version
from programs import ROOT

from simclr_cifar import data, importing, sources
from simclr_cifar.config import InputError


@pytest.fixture
def data_dir(small_cifar10, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(small_cifar10, tmp_path / 'tfds')


def test_an_import_that_fails_is_told_as_such_in_one_line(small_cifar10, tmp_path):
    package = tmp_path / 'modules' / 'tensorflow_metadata'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text(
        "class VersionError(Exception): pass\nraise VersionError('gencode 6, runtime 5')"
    )
    ran = subprocess.run(
        [
            *(sys.executable, '-m', 'simclr_cifar.main', '--mode=prepare', f'--config={ROOT}/configs/c10.py'),
            *(f'--data_dir={small_cifar10}', f'--cache_dir={tmp_path / "cache"}'),
        ],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(
        'error: --config.dataset=cifar10: tensorflow_metadata cannot be imported (gencode 6, runtime 5)'
    )
    assert 'pip install --upgrade -r requirements.txt' in line
    assert 'damaged' not in line
    assert 'delete' not in line


def broken_modules(folder):
    """Makes modules that do not import: one lacks another, one refuses to run, one asks for the latter."""
    for name, code in (('lacking', 'import no_such_module'), ('refusing', '1 / 0'), ('asking', 'import refusing')):
        (folder / f'{name}.py').write_text(code)


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('no_such_module', 'no_such_module cannot be imported'),
        ('lacking', r"lacking cannot be imported \(No module named 'no_such_module'\)"),
        ('refusing', r'refusing cannot be imported \(division by zero\)'),
        ('asking', r'refusing cannot be imported \(division by zero\)'),
    ],
)
def test_the_module_that_failed_is_named(name, told, tmp_path, monkeypatch):
    broken_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf'^--flag=1: {told}'):
        importing.module(name, '--flag=1')


def test_what_comes_from_no_import_is_not_told_as_one():
    assert importing.failure(ValueError('cut off'), '--flag=1') is None
    assert importing.module('json', '--flag=1').loads('1') == 1


@pytest.mark.parametrize('name', ['no_such_module', 'asking'])
def test_a_reader_that_cannot_be_imported_is_no_damage(name, data_dir, cache_dir, tmp_path, monkeypatch):
    broken_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'as_data_source', lambda *_, **__: __import__(name))
    with pytest.raises(InputError, match='cannot be imported') as raised:
        data.load('cifar10', 'train', data_dir, cache_dir)
    assert 'delete' not in str(raised.value)


@pytest.mark.parametrize('name', ['dataset_info.json', 'cifar10-train.array_record'])
def test_a_file_that_may_not_be_read_is_no_damage(name, data_dir, cache_dir, monkeypatch):
    opened = pathlib.Path.open

    def refuse(path, *arguments, **named):
        if path.name.startswith(name):
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(pathlib.Path, 'open', refuse)
    with pytest.raises(InputError, match=rf'{name}\S* cannot be read \(Permission denied\); see to it') as raised:
        data.load('cifar10', 'train', data_dir, cache_dir)
    assert 'delete' not in str(raised.value)


def test_too_little_memory_is_no_damage(data_dir, cache_dir, monkeypatch):
    def fill(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'as_data_source', fill)
    with pytest.raises(MemoryError):
        data.load('cifar10', 'train', data_dir, cache_dir)


def test_a_format_that_is_not_read_is_no_damage(data_dir, cache_dir):
    info = data_dir / 'cifar10' / '3.0.2' / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'riegeli'))
    with pytest.raises(InputError, match=r'holds riegeli files, .*; prepare the dataset as array_record'):
        data.load('cifar10', 'train', data_dir, cache_dir)


def test_a_folder_that_cannot_be_written_is_told(cifar10_server, cache_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(sources, 'CIFAR10_URL', cifar10_server)
    (tmp_path / 'tensorflow_datasets').write_text('no folder')
    with pytest.raises(InputError, match=r'tensorflow_datasets: cifar10 cannot be written there \(.*with --data_dir'):
        data.load('cifar10', 'train', None, cache_dir)


def test_protobuf_is_bounded_to_what_runs_the_generated_code():
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    (bounds,) = (Requirement(line.partition('#')[0]).specifier for line in lines if line.startswith('protobuf'))
    assert importlib.metadata.version('protobuf') in bounds
    metadata = importlib.metadata.files('tensorflow-metadata')
    generated = next(file for file in metadata if file.name == 'schema_pb2.py').read_text()
    (lowest,) = (Version(bound.version) for bound in bounds if bound.operator == '>=')
    assert lowest >= Version(re.search(r'Protobuf Python Version: (\S+)', generated)[1])
