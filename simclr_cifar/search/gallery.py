"""A page of queries and what is like them, in one file that opens offline."""

import os
import pathlib
from collections.abc import Sequence

from simclr_cifar import decoding, pages
from simclr_cifar.config import InputError
from simclr_cifar.search.index import Match

_LONGEST = 192  # pixels


def write(
    path: pathlib.Path,
    queries: Sequence[tuple[str, bytes | None]],
    found: Sequence[Sequence[Match]],
    nearness: Sequence[float],
    threshold: float | None,
    rank: int,
) -> None:
    """Writes the page.

    Args:
      path: its file.
      queries: a name and, where there is one, a WebP of each.
      found: the matches of each; none: no match.
      nearness: how like the index each is, as of `Index.look`.
      threshold: what a match has to reach; None: nothing.
      rank: which of the nearest has to.

    Raises:
      InputError: the file cannot be written.
    """
    answers = [
        {
            'name': _printable(name),
            'uri': uri(picture),
            'nearness': near,
            'matches': [
                {
                    'similarity': match.similarity,
                    'class_name': match.class_name,
                    'path': _printable(match.path),
                    'uri': uri(preview(match.path)),
                }
                for match in matches
            ],
        }
        for (name, picture), matches, near in zip(queries, found, nearness, strict=True)
    ]
    try:
        pages.render('gallery.html', path, answers=answers, threshold=threshold, rank=rank)
    except OSError as error:
        raise InputError(f'--html={path}: cannot be written ({error.strerror}); choose another file') from error


def preview(path: str) -> bytes | None:
    """Returns a file's picture as a small WebP; None where it is none, or gone."""
    try:
        with decoding.open_file(path) as file:
            return decoding.preview(file, _LONGEST)
    except (OSError, decoding.BrokenImage):
        return None


def uri(picture: bytes | None) -> str:
    """Returns what a page shows it by, or ''."""
    return pages.data_uri('webp', picture) if picture else ''


def _printable(path: str) -> str:
    return os.fsencode(path).decode(errors='replace')
