"""Pictures of an index that are copies of each other: the same file, or the same photograph coded anew.

The encoder is not asked, as it is made to find different pictures of a class alike: what is compared is the texture of
grey pictures of _SIDE pixels, mirrored or not. Copies that were cropped by more than a few percent are not found.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from simclr_cifar import decoding
from simclr_cifar.search import nearest
from simclr_cifar.search.index import Index, Match

# Above it are 99 % of CIFAR-10's test images beside themselves coded anew (JPEG of quality 40), doubled in size or a
# fifth brighter. Of the 18 groups that it finds among those 10,000 images 17 are copies by eye.
SIMILARITY = 0.85

_SIDE = 16
_NEAREST = 6  # of each picture are compared, itself among them
_NOISE = 2.0  # grey levels: less contrast than this is no texture


def find(index: Index, similarity: float = SIMILARITY) -> list[list[Match]]:
    """Returns groups of pictures that are copies, by row, each with how alike it is to the most similar of its group.

    Every picture is compared with every other.

    Args:
      index: its pictures are read again; those that are gone have no copies.
      similarity: of textures, up to 1, from which on two pictures are copies; the same file is one at any.
    """
    paths = [file.path for file in index.files()]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        grey = np.stack(list(threads.map(_grey, paths)))
    textures = _textures(grey)
    first, best = np.arange(len(paths)), np.zeros(len(paths), np.float32)
    k = min(_NEAREST, len(paths))
    for queries in (textures, _textures(grey[:, :, ::-1])):
        similarities, rows = nearest.top_k(queries, textures, k)
        for row, column in np.argwhere(similarities >= similarity):
            _join(first, best, row, rows[row, column], similarities[row, column])
    for same in index.same_content():
        for row in same[1:]:
            _join(first, best, same[0], row, 1.0)
    groups = {}
    for row in range(len(paths)):
        groups.setdefault(_first(first, row), []).append(row)
    return [[index.match(row, float(best[row])) for row in group] for group in groups.values() if len(group) > 1]


def _first(first: np.ndarray, row: int) -> int:
    while first[row] != row:
        row = first[row]
    return int(row)


def _join(first: np.ndarray, best: np.ndarray, row: int, other: int, similarity: float) -> None:
    """Makes the groups of two rows one, which its lowest row stands for."""
    if row == other:
        return
    low, high = sorted((_first(first, row), _first(first, other)))
    first[high] = low
    for one in (row, other):
        best[one] = max(best[one], similarity)


def _grey(path: str) -> np.ndarray:
    try:
        with decoding.open_file(path) as file:
            image = Image.fromarray(decoding.decode(file, 4 * _SIDE)).convert('L')
    except (OSError, decoding.BrokenImage):
        return np.zeros((_SIDE, _SIDE), np.float32)
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)


def _textures(grey: np.ndarray) -> np.ndarray:
    """Grey levels [N, S, S] -> float32 [N, S * S]: what differs from the surroundings, of a norm below 1."""
    count, side, _ = grey.shape
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode='edge')
    fine = (
        grey - sum(padded[:, row : row + side, column : column + side] for row in range(3) for column in range(3)) / 9
    )
    fine = fine.reshape(count, -1)
    fine -= fine.mean(axis=1, keepdims=True)
    energy = np.sum(fine**2, axis=1, keepdims=True)
    return (fine / np.sqrt(energy + fine.shape[1] * _NOISE**2)).astype(np.float32)
