"""The files of an index: a directory that always holds one that is whole, while the next is being made.

manifest.json names and checks the files of the present state: embeddings-<number>.npy, float32 [N, D], and
pictures-<number>.sqlite, whose row r is of embedding r; graph-<number>.faiss where there is one. What is embedded for
the next state waits in .next.sqlite, so that a build that was stopped goes on; the manifest, replaced at once, makes
the next the present one.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import re
import sqlite3
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from simclr_cifar import file_systems, files
from simclr_cifar.config import InputError
from simclr_cifar.search.approximate import Approximate

KIND, FORMAT = 'index of simclr_cifar.search', 1
NEXT = '.next.sqlite'
_FLAG = '--index'
_PIECE = 2**24  # bytes that are checked at a time
_OURS = re.compile(r'\.?(embeddings-\d+\.npy|pictures-\d+\.sqlite|graph-\d+\.faiss)')


class State(NamedTuple):
    """What an index holds: its manifest, embeddings, float32 [N, D], memory-mapped, database, and graph or None."""

    manifest: dict
    embeddings: np.ndarray
    database: sqlite3.Connection
    graph: Approximate | None


def manifest_path(path: pathlib.Path) -> pathlib.Path:
    """Returns where an index's manifest is."""
    return path / 'manifest.json'


def open_state(path: pathlib.Path) -> State:
    """Opens the index in a directory as it is now, checked; another process may be about to make it another.

    Raises:
      InputError: there is none, or a file of it is missing or was changed.
    """
    while True:
        manifest = _read_manifest(path)
        try:
            return _open_files(path, manifest)
        except Exception as error:  # Of as many kinds as there are files.
            if _read_manifest(path)['number'] == manifest['number']:
                what = ' '.join(str(error).split())
                raise InputError(f'{_FLAG}={path}: is damaged ({what}); delete it and build it again') from error


def _open_files(path: pathlib.Path, manifest: dict) -> State:
    names = {kind: path / file['name'] for kind, file in manifest['files'].items()}
    for kind, file in manifest['files'].items():
        if checksum(names[kind]) != file['checksum']:
            raise ValueError(f'{file["name"]} was changed')
    database = connect(names['pictures'], read_only=True)
    try:
        database.execute('SELECT count(*) FROM pictures').fetchone()  # Before that it is not open.
        embeddings = _mapped(names['embeddings'], manifest['shape'])
        graph = Approximate(names['graph'], manifest['graph']['width']) if 'graph' in names else None
    except BaseException:
        database.close()
        raise
    return State(manifest, embeddings, database, graph)


def _mapped(file: pathlib.Path, shape: list[int]) -> np.ndarray:
    # np.load parses the header by Python's own parser, in which threads of Python 3.11 disturb each other.
    offset = file.stat().st_size - np.dtype(np.float32).itemsize * math.prod(shape)
    return np.memmap(file, np.float32, 'r', offset, tuple(shape))


def _read_manifest(path: pathlib.Path) -> dict:
    try:
        manifest = json.loads(manifest_path(path).read_bytes())
        kind, version, told = manifest['kind'], manifest['format'], manifest.pop('checksum')
    except FileNotFoundError:
        unfinished = (path / NEXT).exists()
        what = 'a build that was not finished; run it again, it goes on' if unfinished else 'no index; build one first'
        raise InputError(f'{_FLAG}={path}: holds {what}') from None
    except OSError as error:
        raise InputError(f'{_FLAG}={path}: cannot be read ({error.strerror}); give an index') from error
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = version = told = None
    if kind != KIND or version != FORMAT or told != _checksum(manifest):
        raise InputError(
            f'{_FLAG}={path}: its manifest.json is damaged, or of something else; if it is an index, delete it and '
            'build it again, else give another directory'
        )
    return manifest


def write_manifest(path: pathlib.Path, manifest: dict) -> None:
    """Makes the files that a manifest names the present ones."""
    manifest = {'kind': KIND, 'format': FORMAT, **manifest}
    files.write_json(manifest_path(path), manifest | {'checksum': _checksum(manifest)})


def _checksum(manifest: dict) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def checksum(path: pathlib.Path) -> str:
    """Returns a file's length and CRC-32: against accidents, and faster than a cryptographic one."""
    length = checked = 0
    with path.open('rb') as file:
        while piece := file.read(_PIECE):
            length, checked = length + len(piece), zlib.crc32(piece, checked)
    return f'{length} {checked:08x}'


def connect(path: pathlib.Path, read_only: bool = False) -> sqlite3.Connection:
    """Opens a database. A read-only one is never written by anyone, and threads may share it."""
    mode = 'mode=ro&immutable=1' if read_only else 'mode=rwc'
    if not read_only and file_systems.without_locks(path.parent):
        mode += '&nolock=1'  # SQLite would say that the database is locked.
    address = f'file:{urllib.parse.quote(os.fsencode(path.absolute()))}?{mode}'
    if not read_only:
        return sqlite3.connect(address, uri=True)
    # No statement is kept for reuse: from Python 3.12 on threads take one from each other, and each gets what the other
    # asked for (https://github.com/python/cpython/issues/118172).
    return sqlite3.connect(address, uri=True, check_same_thread=False, cached_statements=0)


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """Holds an index's directory, made where it is missing, for this process alone.

    Raises:
      InputError: it holds other things, another process holds it, or it cannot be written or has no room left, now or
        in the block, which leaves the index as it was.
    """
    with contextlib.suppress(OSError):  # Told below.
        names = {entry.name for entry in path.iterdir()} - {'.lock'}
        if names and not names & {manifest_path(path).name, NEXT}:
            raise InputError(f'{_FLAG}={path}: holds other things than an index; give a directory of its own')
    try:
        with files.Folder(path, _FLAG).locked():
            yield
    except (OSError, sqlite3.OperationalError) as error:
        full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or 'is full' in str(error)
        what = 'the disk is full; free some space' if full else f'cannot be written ({error}); see to it'
        raise InputError(
            f'{_FLAG}={path}: {what}, and run the same command again; the index is as it was, and what was embedded is '
            'kept'
        ) from error


def remove_others(path: pathlib.Path, names: set[str]) -> None:
    """Deletes the files of states that are past; a process that has them open goes on with them."""
    for file in path.iterdir():
        if file.name not in names and (file.name == NEXT or _OURS.fullmatch(file.name)):
            with contextlib.suppress(OSError):  # The next time.
                file.unlink()
