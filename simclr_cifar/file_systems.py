"""What file systems differ in: whether they lock, and whether they reserve space; and paths that Orbax misreads."""

import contextlib
import errno
import fcntl
import os
import pathlib
import tempfile
from collections.abc import Iterator


def lock(file) -> str:
    """Locks an open file for this process; returns '' or, if its file system has no locks, the error that says so.

    Raises:
      BlockingIOError: another process holds the lock. No other error means that.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from error
        return error.strerror
    return ''


def without_locks(directory: pathlib.Path) -> str:
    """Returns '' or, if the file system of a directory lacks locks of either kind, the error that says so."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:  # NFS may have those of flock, as `Folder`, and lack those of lockf, which SQLite and TensorStore take.
            for take in (fcntl.flock, fcntl.lockf):
                take(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror
    return ''


def require_space(directory: pathlib.Path, num_bytes: int) -> None:
    """Raises OSError where so much cannot be written: a save that fails in Orbax leaves a traceback for each array.

    Space is reserved only where that can be done: macOS lacks the call, and some file systems refuse it.
    """
    if not hasattr(os, 'posix_fallocate'):
        return
    with tempfile.TemporaryFile(dir=directory) as probe:
        try:
            os.posix_fallocate(probe.fileno(), 0, num_bytes + 2**18)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise


@contextlib.contextmanager
def plain(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives an absolute path of a directory in which Orbax, which looks for files by patterns, finds no pattern."""
    if set('[]*?\\').isdisjoint(str(directory.absolute())):
        yield directory.absolute()
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / 'checkpoints'
        link.symlink_to(directory.absolute())
        yield link
