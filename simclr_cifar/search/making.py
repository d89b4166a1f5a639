"""An index's next state, from the pictures that are to be in it and those that were."""

import contextlib
import hashlib
import os
import pathlib
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from numpy.lib import format as npy

from simclr_cifar.config import InputError
from simclr_cifar.search import approximate, nearest, pictures, store
from simclr_cifar.search.encoder import Encoder
from simclr_cifar.search.pictures import File

# A picture matches nothing where its RANK-th nearest is less similar than this share of the index's own pictures'.
RANK, _FALSE_ALARMS, _CALIBRATED = 10, 0.05, 2000
_ROUNDING = 1e-5  # by which embeddings in batches of several sizes differ at most
_BROKEN, _NEW = -2, -1  # in place of a row of the present state

_NEXT_TABLES = """
CREATE TABLE IF NOT EXISTS encoder (fingerprint TEXT);
CREATE TABLE IF NOT EXISTS embedded (
  path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, sha256 BLOB, embedding BLOB, problem TEXT
) WITHOUT ROWID;
"""
_TABLES = """
CREATE TABLE pictures (
  row INTEGER PRIMARY KEY, path BLOB UNIQUE, class TEXT, size INTEGER, mtime_ns INTEGER, sha256 BLOB
);
CREATE TABLE left_out (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, problem TEXT) WITHOUT ROWID;
"""
_INDICES = 'CREATE INDEX of_class ON pictures (class); CREATE INDEX of_content ON pictures (sha256);'


class Made(NamedTuple):
    """What became of an index: a line about each file that is no picture; how many are new, and how many are gone."""

    left_out: list[str]
    new: int
    gone: int


def make(
    path: pathlib.Path,
    encoder: Encoder,
    present: store.State | None,
    wanted: Sequence[File],
    sources: Sequence[str],
    progress: bool,
    ann: bool,
) -> Made:
    """Makes the index of the wanted files the present one; embeds those that it does not have as they are.

    Args:
      path: the directory, held by `store.written`.
      encoder: to embed with.
      present: the index as it is, or None.
      wanted: by path, each once.
      sources: where they are from, for the manifest.
      progress: whether a bar is shown on standard error.
      ann: whether a graph for an approximate search is made, too.

    Raises:
      InputError: none is a picture.
    """
    number = present.manifest['number'] + 1 if present else 1
    names = {'embeddings': f'embeddings-{number}.npy', 'pictures': f'pictures-{number}.sqlite'}
    names |= {'graph': f'graph-{number}.faiss'} if ann else {}
    partial = {kind: path / f'.{name}' for kind, name in names.items()}
    before, old = (present.database, present.embeddings) if present else (None, None)
    with contextlib.closing(_next(path, encoder)) as upcoming:
        rows, missing = _sorted_out(before, upcoming, wanted)
        unread = _embed(upcoming, missing, encoder, progress)
        count, left_out, digest = _write_pictures(partial['pictures'], before, upcoming, wanted, rows, unread)
        if not count:
            (path / store.NEXT).unlink()  # There is nothing to go on with.
            partial['pictures'].unlink()
            given = ', '.join(map(ascii, sources))
            raise InputError(f'--images={given}: none of {len(wanted)} files is a picture ({left_out[0]})')
        _write_embeddings(partial['embeddings'], old, upcoming, wanted, rows, (count, encoder.embedding_dim))
    embeddings = np.load(partial['embeddings'], mmap_mode='r', allow_pickle=False)
    graph = approximate.make(embeddings, partial['graph']) if ann else None
    manifest = {
        'number': number,
        'shape': [count, encoder.embedding_dim],
        'encoder': {'source': encoder.source, 'fingerprint': encoder.fingerprint},
        'preprocessing': {'image_shape': list(encoder.image_shape), 'scaled': 'the centre, bicubic'},
        'data': {'sources': list(sources), 'sha256': digest},
        'left_out': len(left_out),
        'threshold': calibrated(embeddings),
        'graph': graph,
        'files': {kind: {'name': names[kind], 'checksum': store.checksum(file)} for kind, file in partial.items()},
    }
    for kind, file in partial.items():
        file.rename(path / names[kind])
    store.write_manifest(path, manifest)
    store.remove_others(path, set(names.values()))
    kept = int(np.sum(rows >= 0))
    return Made(left_out, count - kept, (len(old) if present else 0) - kept)


def calibrated(embeddings: np.ndarray) -> float | None:
    """Returns the similarity that most pictures have to their RANK-th nearest other; None: there is but one."""
    k = min(RANK, len(embeddings) - 1)
    if not k:
        return None
    some = np.unique(np.linspace(0, len(embeddings) - 1, _CALIBRATED).astype(int))
    similarities, _ = nearest.top_k(np.asarray(embeddings[some]), embeddings, k + 1)  # Itself is one of them.
    return float(np.quantile(similarities[:, -1], _FALSE_ALARMS)) - _ROUNDING


def _next(path: pathlib.Path, encoder: Encoder) -> sqlite3.Connection:
    """Opens what was embedded already, by this encoder; begins anew where it is another's, or damaged."""
    file = path / store.NEXT
    while True:
        database = store.connect(file)
        try:
            database.executescript(_NEXT_TABLES)
            whole = database.execute('PRAGMA quick_check').fetchone() == ('ok',)
            known = database.execute('SELECT fingerprint FROM encoder').fetchone()
            if whole and not known:
                with database:
                    database.execute('INSERT INTO encoder VALUES (?)', (encoder.fingerprint,))
                known = (encoder.fingerprint,)
            if whole and known == (encoder.fingerprint,):
                return database
        except sqlite3.OperationalError:  # The disk's fault, or another program's.
            database.close()
            raise
        except sqlite3.DatabaseError:
            pass
        database.close()
        file.unlink()


def _key(file: File) -> tuple[bytes, int, int]:
    return os.fsencode(file.path), file.size, file.mtime_ns


def _sorted_out(before, upcoming, wanted) -> tuple[np.ndarray, list[File]]:
    """Returns each wanted file's row in the present state, int64 [N], _NEW or _BROKEN; and those to be embedded."""
    rows, missing = np.full(len(wanted), _NEW), []
    unchanged = 'WHERE path = ? AND size = ? AND mtime_ns = ?'
    for number, file in enumerate(wanted):
        found = before and before.execute(f'SELECT row FROM pictures {unchanged}', _key(file)).fetchone()
        if found:
            rows[number] = found[0]
        elif before and before.execute(f'SELECT 1 FROM left_out {unchanged}', _key(file)).fetchone():
            rows[number] = _BROKEN
        elif not upcoming.execute(f'SELECT 1 FROM embedded {unchanged}', _key(file)).fetchone():
            missing.append(file)
    return rows, missing


def _embed(upcoming, missing, encoder, progress) -> dict[str, str]:
    """Embeds files; returns what is wrong, for now, with those that could not be read, by path."""
    unread = {}
    with tqdm.tqdm(total=len(missing), unit=' images', desc='Embedding', disable=not progress or not missing) as bar:
        for batch in pictures.embedded(missing, encoder):
            unread |= {one.file.path: one.unread for one in batch if one.unread}
            with upcoming:
                upcoming.executemany(
                    'INSERT OR REPLACE INTO embedded VALUES (?, ?, ?, ?, ?, ?)',
                    (
                        (*_key(one.file), one.sha256, None if one.problem else one.embedding.tobytes(), one.problem)
                        for one in batch
                        if not one.unread
                    ),
                )
            bar.update(len(batch))
    return unread


def _write_pictures(partial, before, upcoming, wanted, rows, unread) -> tuple[int, list[str], str]:
    """Writes the table of pictures; returns how many, a line about each file that is none, and a SHA-256 of all."""
    partial.unlink(missing_ok=True)
    left_out, digest, row = [], hashlib.sha256(), 0
    with contextlib.closing(store.connect(partial)) as database, database:
        database.executescript(_TABLES)
        for file, old in zip(wanted, rows, strict=True):
            path, size, mtime_ns = _key(file)
            if file.path in unread:
                left_out.append(f'{file.path!a}: {unread[file.path]}')
                continue
            problem = None
            if old >= 0:
                (sha256,) = before.execute('SELECT sha256 FROM pictures WHERE row = ?', (int(old),)).fetchone()
            elif old == _BROKEN:
                (problem,) = before.execute('SELECT problem FROM left_out WHERE path = ?', (path,)).fetchone()
            else:
                statement = 'SELECT sha256, problem FROM embedded WHERE path = ? AND size = ? AND mtime_ns = ?'
                sha256, problem = upcoming.execute(statement, _key(file)).fetchone()
            if problem:
                database.execute('INSERT INTO left_out VALUES (?, ?, ?, ?)', (path, size, mtime_ns, problem))
                left_out.append(f'{file.path!a}: {problem}')
                continue
            values = row, path, file.class_name, size, mtime_ns, sha256
            database.execute('INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?)', values)
            digest.update(path + b'\0' + file.class_name.encode() + b'\0' + sha256)
            row += 1
        database.executescript(_INDICES)
    return row, left_out, digest.hexdigest()


def _write_embeddings(partial, old, upcoming, wanted, rows, shape) -> None:
    """Writes the embeddings of those that are pictures, in the same order, a row at a time."""
    statement = 'SELECT embedding FROM embedded WHERE path = ? AND size = ? AND mtime_ns = ? AND problem IS NULL'
    with partial.open('wb') as file:
        npy.write_array_header_1_0(file, {'descr': '<f4', 'fortran_order': False, 'shape': shape})
        for one, row in zip(wanted, rows, strict=True):
            if row >= 0:
                file.write(old[row].tobytes())
            elif row == _NEW and (found := upcoming.execute(statement, _key(one)).fetchone()):
                file.write(found[0])
        file.flush()
        os.fsync(file.fileno())
