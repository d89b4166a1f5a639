"""Pictures on disk: which there are, and their pixels and embeddings, a batch at a time."""

import collections
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from simclr_cifar import decoding, folders
from simclr_cifar.config import InputError
from simclr_cifar.search.encoder import BATCH, Encoder

_SPLITS = ('train', 'test', 'validation', 'val')  # sub-folders that are no classes
_BATCHES_AHEAD = 2  # are decoded while one is embedded


class File(NamedTuple):
    """A file that may be a picture: its absolute path, its class or '', and how to see that it has changed."""

    path: str
    class_name: str
    size: int
    mtime_ns: int


class Embedded(NamedTuple):
    """A file's SHA-256 and its picture's embedding, float32 [D]; or why it is none; or why it could not be read."""

    file: File
    sha256: bytes | None = None
    embedding: np.ndarray | None = None
    problem: str | None = None
    unread: str | None = None


def find(sources: Iterable[str | os.PathLike], flag: str = '--images') -> tuple[list[File], list[str]]:
    """Returns the files of folders, and files given by themselves, by path, and a line about each that is none.

    A file's class is the sub-folder that it is in, however deep; train/ and test/, validation/ and val/ are none.

    Args:
      sources: folders and files.
      flag: which they were given by.

    Raises:
      InputError: a source is not there or cannot be read, or no file is in any.
    """
    files, left_out = {}, []
    for source in sources:
        root = pathlib.Path(os.path.abspath(os.path.expanduser(source)))
        try:
            paths, others = ([root], []) if root.is_file() else folders.walk(root, root)
            found = [_file(path, root) for path in paths]
        except OSError as error:
            where = error.filename or source
            raise InputError(f'{flag}: {where!a} cannot be read ({error.strerror}); see to it') from error
        except RecursionError as error:
            raise InputError(f'{flag}={str(source)!a}: its folders lie too deep in each other') from error
        files |= {file.path: file for file in found if file}
        left_out += others
    if not files:
        given = ', '.join(ascii(os.fspath(source)) for source in sources)
        raise InputError(f'{flag}={given}: holds no files; give a folder of pictures')
    return [files[path] for path in sorted(files)], left_out


def _file(path: pathlib.Path, root: pathlib.Path) -> File | None:
    try:
        told = path.stat()
    except FileNotFoundError:  # Since it was listed.
        return None
    parents = [part for part in path.relative_to(root).parts[:-1] if part not in _SPLITS]
    class_name = parents[0].encode(errors='replace').decode() if parents else ''  # Names may be of any bytes.
    return File(str(path), class_name, told.st_size, told.st_mtime_ns)


def embedded(files: Sequence[File], encoder: Encoder) -> Iterator[list[Embedded]]:
    """Yields the files' embeddings, a batch after the other, in order; the next are decoded meanwhile."""
    ahead = collections.deque()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            for first in range(0, len(files), BATCH):
                read = functools.partial(_read, side=encoder.image_shape[0])
                ahead.append([threads.submit(read, file) for file in files[first : first + BATCH]])
                if len(ahead) > _BATCHES_AHEAD:
                    yield _embed([future.result() for future in ahead.popleft()], encoder)
            while ahead:
                yield _embed([future.result() for future in ahead.popleft()], encoder)
        finally:
            for future in (future for batch in ahead for future in batch):
                future.cancel()


def _read(file: File, side: int) -> tuple[Embedded, np.ndarray | None]:
    try:
        with decoding.open_file(file.path) as opened:
            pixels = decoding.decode(opened, side)
            opened.seek(0)
            return Embedded(file, hashlib.file_digest(opened, 'sha256').digest()), pixels
    except decoding.BrokenImage as error:
        return Embedded(file, problem=str(error)), None
    except OSError as error:
        return Embedded(file, unread=f'cannot be read ({error.strerror})'), None


def _embed(batch: Sequence[tuple[Embedded, np.ndarray | None]], encoder: Encoder) -> list[Embedded]:
    pictures = [pixels for _, pixels in batch if pixels is not None]
    embeddings = iter(encoder.embed(np.stack(pictures)) if pictures else ())
    return [one if pixels is None else one._replace(embedding=next(embeddings)) for one, pixels in batch]
