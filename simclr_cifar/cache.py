"""Decoded images, kept between runs as arrays on disk: written and read in pieces, whole or absent, checked."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

_PIECE = 2**24  # bytes that are checked at a time
_MOST_TOLD = 20  # files


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A split as it is decoded, a piece at a time.

    Attributes:
      pieces: (images uint8 [n, H, W, C], labels int32 [n]) of any n, one after the other; to be read once.
      class_names: what a person calls each label.
      description: what the images are, and which copy of them this is.
      left_out: what is not among them, and why; complete when the pieces are read.
    """

    pieces: Iterator[tuple[np.ndarray, np.ndarray]]
    class_names: tuple[str, ...]
    description: str
    left_out: list[str] = dataclasses.field(default_factory=list)


Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...], str]  # images, labels, class names, description


def root(cache_dir: str | None) -> pathlib.Path:
    """Returns the folder of what is kept between runs; None: simclr_cifar in the user's cache folder."""
    root = pathlib.Path(os.path.expanduser(cache_dir or os.environ.get('XDG_CACHE_HOME') or '~/.cache'))
    return root if cache_dir else root / 'simclr_cifar'


def through(cache_dir: str | None, key: str, decode: Callable[[], Decoded]) -> Arrays:
    """Returns what is kept by this key, which tells one content from another; else decodes and keeps it.

    Where it cannot be kept, the images are held in memory.
    """
    folder, reason = root(cache_dir) / key, None
    if kept := _open(folder):
        return kept
    try:
        _write(decode(), folder)
    except OSError as error:
        reason = error
    if kept := _open(folder):  # Perhaps another process's.
        return kept
    print(f'The decoded images are not kept for next time: {reason}; choose --cache_dir', file=sys.stderr)
    decoded = decode()
    images, labels = (np.concatenate(parts) for parts in zip(*decoded.pieces, strict=True))
    return images, labels, decoded.class_names, _described(decoded.description, decoded.left_out)


def _open(folder: pathlib.Path) -> Arrays | None:
    """Returns what is kept in the folder; None: nothing, or it is damaged, in whatever way."""
    try:
        images, labels, about = _read(folder)
        return images, labels, tuple(about['class_names']), _described(about['description'], about['left_out'])
    except Exception:
        return None


def _read(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, dict]:
    about = json.loads((folder / 'about.json').read_text())
    labels = np.load(folder / 'labels.npy', allow_pickle=False)
    images = np.memmap(folder / 'images.raw', np.uint8, 'r', shape=(len(labels), *about['image_shape']))
    flat = images.reshape(-1)
    checksum = 0
    for first in range(0, len(flat), _PIECE):
        checksum = zlib.crc32(flat[first : first + _PIECE], checksum)
    if about.pop('checksums') != [checksum, zlib.crc32(labels), _checksum(about)]:
        raise ValueError('not as it was written')
    return images, labels, about


def _checksum(about: dict) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _described(description: str, left_out: list[str]) -> str:
    """Returns the description with how many are left out, after telling which."""
    tell_left_out(left_out)
    if not left_out:
        return description
    return f'{description} Files left out: {len(left_out)}.'


def tell_left_out(lines: list[str]) -> None:
    """Prints what is left out of a dataset, and why: a line about each, of many the first."""
    for line in lines[:_MOST_TOLD]:
        print(f'Left out: {line}', file=sys.stderr)
    if len(lines) > _MOST_TOLD:
        print(f'and {len(lines) - _MOST_TOLD} more', file=sys.stderr)


def _write(decoded: Decoded, folder: pathlib.Path) -> None:
    """Writes into a sibling folder and renames it, so that no reader ever sees half a cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix='.partial-', dir=folder.parent))
    try:
        checksum, all_labels = 0, []
        with (partial / 'images.raw').open('wb') as file:
            for images, labels in decoded.pieces:
                images = np.ascontiguousarray(images)
                file.write(images)
                # Against accidents, and several times faster than a cryptographic one.
                checksum = zlib.crc32(images, checksum)
                all_labels.append(labels)
        labels = np.concatenate(all_labels)
        np.save(partial / 'labels.npy', labels)
        about = {
            'image_shape': images.shape[1:],
            'class_names': decoded.class_names,
            'description': decoded.description,
            'left_out': decoded.left_out,
        }
        checksums = [checksum, zlib.crc32(labels), _checksum(about)]
        (partial / 'about.json').write_text(json.dumps(about | {'checksums': checksums}))
        shutil.rmtree(folder, ignore_errors=True)  # A damaged one.
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
