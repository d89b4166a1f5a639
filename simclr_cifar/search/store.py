"""The files of an index: a directory that always holds one that is whole, while the next is being made.

manifest.json names and checks the files of the present one: embeddings-<number>.npy, float32 [N, D], and
pictures-<number>.sqlite, whose row r is of embedding r. What is embedded for the next one waits in .next.sqlite, so
that a build that was stopped goes on; the manifest, replaced at once, makes the next the present one.
"""

import contextlib
import errno
import json
import pathlib
import sqlite3
import urllib.parse
import zlib
from collections.abc import Iterator

from simclr_cifar import files
from simclr_cifar.config import InputError

FORMAT = 1
NEXT = '.next.sqlite'
_FLAG = '--index'
_PIECE = 2**24  # bytes that are checked at a time


def manifest_path(path: pathlib.Path) -> pathlib.Path:
    """Returns where an index's manifest is."""
    return path / 'manifest.json'


def read_manifest(path: pathlib.Path) -> dict:
    """Returns the manifest of the index in a directory, whose files are as it tells.

    Raises:
      InputError: there is none, or a file of it is missing or was changed.
    """
    try:
        text = manifest_path(path).read_text()
    except FileNotFoundError:
        unfinished = (path / NEXT).exists()
        what = 'a build that was not finished; run it again, it goes on' if unfinished else 'no index; build one first'
        raise InputError(f'{_FLAG}={path}: holds {what}') from None
    except OSError as error:
        raise InputError(f'{_FLAG}={path}: cannot be read ({error.strerror}); give an index') from error
    try:
        manifest = json.loads(text)
        if manifest['format'] != FORMAT:
            raise InputError(
                f'{_FLAG}={path}: is of another version (format {manifest["format"]}, now {FORMAT}); delete it and '
                'build it again'
            )
        if manifest.pop('checksum') != _checksum(manifest):
            raise ValueError('manifest.json was changed')
        for file in manifest['files'].values():
            if checksum(path / file['name']) != file['checksum']:
                raise ValueError(f'{file["name"]} was changed')
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{_FLAG}={path}: is damaged ({error}); delete it and build it again') from error


def write_manifest(path: pathlib.Path, manifest: dict) -> None:
    """Makes the files that a manifest names the present ones, and the manifest what `read_manifest` returns."""
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
    """Opens a database, which threads may share; a read-only one is never written by anyone."""
    mode = 'mode=ro&immutable=1' if read_only else 'mode=rwc'
    address = f'file:{urllib.parse.quote(str(path.absolute()))}?{mode}'
    return sqlite3.connect(address, uri=True, check_same_thread=False)


@contextlib.contextmanager
def written(path: pathlib.Path) -> Iterator[None]:
    """Holds an index's directory, made where it is missing, for this process alone.

    Raises:
      InputError: another process holds it, or it cannot be written or has no room left, now or in the block.
    """
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
