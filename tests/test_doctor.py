import types

import pytest
from jax import lax

from simclr_cifar import config as config_lib
from simclr_cifar import doctor, parallel


def small(**fields):
    config = config_lib.defaults()
    config.update({'dataset': 'digits', 'channels': (8, 8), 'batches_per_epoch': 2, 'groups_per_batch': 8} | fields)
    return config


def examine(capsys, config, workdir, data_dir=None):
    """Returns the verdict and what was found: name to (mark, line)."""
    well = doctor.examine(config, data_dir, None, workdir)
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return well, {name: (mark, found) for mark, name, found in lines}


def test_a_fit_machine(capsys, tmp_path):
    well, found = examine(capsys, small(), tmp_path / 'runs' / 'new')
    assert well
    assert list(found) == ['versions', 'devices', 'data', 'config', 'workdir', 'memory', 'replicas', 'bfloat16']
    assert {mark for mark, _ in found.values()} == {'ok'}
    assert found['devices'][1] == '8 cpu'
    assert 'digits: 1,442 train, 355 test' in found['data'][1]
    assert 'on 1 and 8 devices the loss is' in found['replicas'][1]
    assert list(tmp_path.iterdir()) == []


def test_fewer_devices_than_there_are_is_told(capsys, tmp_path):
    _, found = examine(capsys, small(groups_per_batch=6), tmp_path)
    assert found['config'] == ('ok', 'batches of 6 groups use 6 of 8 devices; a multiple of 8 would use all')


@pytest.mark.parametrize(
    ('name', 'said', 'fields', 'workdir', 'data_dir'),
    [
        ('data', 'no such folder', {'dataset': 'cifar10'}, 'run', '/nowhere'),
        ('config', 'unknown encoder', {'encoder': 'vit'}, 'run', None),
        ('workdir', 'cannot be written', {}, 'file/run', None),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(capsys, tmp_path, name, said, fields, workdir, data_dir):
    (tmp_path / 'file').touch()
    well, found = examine(capsys, small(**fields), tmp_path / workdir, data_dir)
    assert not well
    assert [each for each, (mark, _) in found.items() if mark == 'no'] == [name]
    assert said in found[name][1]
    assert 'memory' not in found


def test_versions_are_those_required(capsys, tmp_path, monkeypatch):
    (tmp_path / 'requirements.txt').write_text('# Bounds.\njax>=99\nnumpy>=2  # there\nno-such-package>=1\n')
    monkeypatch.setattr(doctor, '_REQUIREMENTS', tmp_path / 'requirements.txt')
    _, found = examine(capsys, small(), tmp_path)
    mark, line = found['versions']
    assert mark == 'no'
    assert 'not >=99; no-such-package is not installed' in line
    assert 'numpy' not in line


def test_a_gradient_that_is_summed_where_its_mean_is_meant_is_found(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(lax, 'pmean', lax.psum)
    well, found = examine(capsys, small(), tmp_path)
    assert not well
    assert found['replicas'][0] == 'no'
    assert found['memory'][0] == 'ok'


def test_a_device_that_fails_is_told_not_thrown(capsys, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('INTERNAL: the driver\nis too old')

    monkeypatch.setattr(doctor.step, 'compile_epoch', fail)
    well, found = examine(capsys, small(), tmp_path)
    assert not well
    assert found['memory'] == ('no', 'RuntimeError: INTERNAL: the driver is too old')


def test_memory_that_is_not_there_is_missed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel.psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=1000))
    well, found = examine(capsys, small(), tmp_path)
    assert not well
    assert 'lower --config.groups_per_batch' in found['memory'][1]
