"""File systems that lack locks, or cannot reserve space: other systems than Linux, networks, clusters."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from programs import ROOT, finish, losses, started, weights

from simclr_cifar import file_systems, files
from simclr_cifar.config import InputError
from simclr_cifar.search import Index

SMALL = [
    *('--config=configs/smoke.py', '--config.num_epochs=2', '--config.batches_per_epoch=20', '--config.milestones=2,'),
    *('--config.channels=8,8', '--config.checkpoint_every_epochs=1'),
]
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]
# Of Python's calls, SQLite's and TensorStore's alike.
WITHOUT_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int descriptor, int operation) { errno = ENOLCK; return -1; }
static int refused(const char *name, int descriptor, int command, void *argument) {
  if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW) {
    errno = ENOLCK;
    return -1;
  }
  return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(descriptor, command, argument);
}
#define REFUSED(name) int name(int descriptor, int command, ...) { \\
  va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \\
  return refused(#name, descriptor, command, argument); }
REFUSED(fcntl)
REFUSED(fcntl64)
"""
WARNING = (
    'warning: {flag}={path}: the file system has no locks (No locks available), so nothing stops another process from '
    'writing to this folder; start only one at a time'
)


@pytest.fixture(scope='module')
def without_locks(tmp_path_factory):
    """The environment of a process for which no file system has locks."""
    compiler = shutil.which('cc')
    if not compiler or not sys.platform.startswith('linux'):
        pytest.skip('no C compiler, or not Linux')
    folder = tmp_path_factory.mktemp('without_locks')
    (folder / 'locks.c').write_text(WITHOUT_LOCKS)
    library = folder / 'locks.so'
    subprocess.run([compiler, '-shared', '-fPIC', '-o', library, folder / 'locks.c', '-ldl'], check=True)
    return {'LD_PRELOAD': str(library)}


def refuse(monkeypatch, code, *names):
    def take(file, operation):
        raise OSError(code, os.strerror(code))

    for name in names:
        monkeypatch.setattr(fcntl, name, take)


@pytest.mark.parametrize('code', [errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES])
def test_these_errors_mean_that_another_process_holds_the_folder(code, tmp_path, monkeypatch):
    (tmp_path / '.lock').write_text('process 7 on there\n')
    refuse(monkeypatch, code, 'flock')
    with pytest.raises(InputError, match=r'held by another running process \(process 7 on there\)'):
        files.Folder(tmp_path).locked().__enter__()


@pytest.mark.parametrize('code', NO_LOCKS)
def test_no_other_error_does(code, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, code, 'flock')
    with files.Folder(tmp_path).locked():
        (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: --workdir={tmp_path}: the file system has no locks ({os.strerror(code)})')
    assert file_systems.without_locks(tmp_path) == os.strerror(code)


def test_a_folder_has_locks_of_both_kinds_or_lacks_them(tmp_path, monkeypatch):
    assert file_systems.without_locks(tmp_path) == ''
    refuse(monkeypatch, errno.ENOLCK, 'lockf')
    assert file_systems.without_locks(tmp_path) == 'No locks available'
    assert list(tmp_path.iterdir()) == []


def test_training_without_locks_warns_and_ends_as_with_them(without_locks, tmp_path, monkeypatch):
    with started(1, *SMALL, f'--workdir={tmp_path / "with"}') as group:
        assert finish(group)[0][0] == 0
    for name, value in without_locks.items():
        monkeypatch.setenv(name, value)
    with started(1, *SMALL, f'--workdir={tmp_path / "without"}') as group:
        ((status, _, errors),) = finish(group)
    assert (status, errors.splitlines()) == (0, [WARNING.format(flag='--workdir', path=tmp_path / 'without')])
    assert losses(tmp_path / 'without') == losses(tmp_path / 'with')
    expected = weights(tmp_path / 'with')
    assert all((array == expected[name]).all() for name, array in weights(tmp_path / 'without').items())
    assert [path.name for path in (tmp_path / 'without').rglob('*lock*')] == ['.lock']
    with started(1, '--mode=eval', f'--workdir={tmp_path / "without"}') as group:  # Which reads the checkpoint.
        assert finish(group)[0][0] == 0


def test_the_doctor_tells_that_there_are_no_locks(tmp_path, monkeypatch):
    from simclr_cifar import doctor

    assert 'locks' not in doctor._workdir(tmp_path / 'run')
    refuse(monkeypatch, errno.ENOLCK, 'flock')
    assert 'no locks (No locks available): start only one process at a time' in doctor._workdir(tmp_path / 'run')


def test_an_index_is_built_without_locks(without_locks, tmp_path, encoder, folder):
    program = (
        "import sys; sys.path[:0] = ['tests', '.']; import search_folders; from simclr_cifar.search import Index; "
        'Index.build(sys.argv[1], search_folders.make_encoder(), sys.argv[2])'
    )
    environment = os.environ | without_locks
    built = subprocess.run(
        [sys.executable, '-c', program, tmp_path / 'index', folder],
        **{'cwd': ROOT, 'env': environment, 'capture_output': True, 'text': True, 'check': False},
    )
    assert built.stderr.splitlines() == [WARNING.format(flag='--index', path=tmp_path / 'index')]
    assert built.returncode == 0
    expected = Index.build(tmp_path / 'other', encoder, folder)
    np.testing.assert_array_equal(Index.open(tmp_path / 'index', encoder).embeddings, expected.embeddings)


def refuse_to_reserve(code):
    def reserve(descriptor, offset, length):
        raise OSError(code, os.strerror(code))

    return reserve


@pytest.mark.parametrize('code', [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV])
def test_space_is_not_reserved_where_that_cannot_be_done(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'posix_fallocate', refuse_to_reserve(code))
    file_systems.require_space(tmp_path, 100)


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_not_one_where_space_cannot_be_reserved(code, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'posix_fallocate', refuse_to_reserve(code))
    with pytest.raises(OSError, match=os.strerror(code)):
        file_systems.require_space(tmp_path, 100)


# What Linux has and macOS has not; a package that this program needs may ask for one of them, and has its own way then.
LINUX_ALONE = ['posix_fallocate', 'posix_fadvise', 'sched_getaffinity', 'sched_setaffinity', 'copy_file_range']
LINUX_ALONE += ['O_TMPFILE', 'O_DIRECT', 'splice', 'memfd_create', 'pidfd_open', 'eventfd', 'fdatasync', 'getrandom']


def test_training_needs_nothing_that_linux_alone_has(tmp_path):
    removed = f'import os; [delattr(os, name) for name in {LINUX_ALONE} if hasattr(os, name)]'
    with started(1, *SMALL, f'--workdir={tmp_path / "run"}', first=removed) as group:
        ((status, _, errors),) = finish(group)
    assert (status, errors) == (0, '')
    assert (tmp_path / 'run' / 'checkpoints' / '2').is_dir()
