"""The most similar rows of many: exact, on the host without JAX, on an accelerator with it."""

import sys

import numpy as np

from simclr_cifar import selection

_ROWS_AT_ONCE = 2**16
_QUERIES_AT_ONCE = 64
# More than are wanted, among which similarities are told apart again: products round otherwise at a matrix's odd ends,
# and copies must be as similar wherever they stand.
_CANDIDATES = 16


def top_k(
    queries: np.ndarray, gallery: np.ndarray, k: int, only: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k most similar rows, the most similar first, equals by lower index.

    Args:
      queries: float32 [Q, D].
      gallery: float32 [N, D], which may be memory-mapped; as `prepared`.
      k: from 1 to as many as there are.
      only: rows to choose from, int [M], ascending; None: all.

    Returns:
      (similarities float32 [Q, k], rows int32 [Q, k]).
    """
    there = len(gallery) if only is None else len(only)
    if not 1 <= k <= there:
        raise ValueError(f'k={k}: must be between 1 and the {there} rows')
    if _has_accelerator():
        from simclr_cifar import neighbours

        similarities, rows = neighbours.top_k(queries, gallery if only is None else gallery[only], k)
        return similarities, rows if only is None else only[rows]
    firsts = range(0, len(queries), _QUERIES_AT_ONCE)
    parts = [_of_some(queries[first : first + _QUERIES_AT_ONCE], gallery, k, only) for first in firsts]
    if not parts:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    similarities, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return similarities, rows


def _of_some(queries, gallery, k, only):
    there = len(gallery) if only is None else len(only)
    enough = min(k + _CANDIDATES, there)
    best = np.empty((len(queries), 0), np.int64)
    for first in range(0, there, _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        similarities = queries @ gallery[some if only is None else only[some]].T
        best = np.concatenate([best, selection.largest(similarities, enough, first, None)], axis=1)
        best.sort(axis=1)
        best = best[:, :enough]
    _, rows = selection.from_keys(best)
    rows = rows if only is None else only[rows]
    exact = np.einsum('qd,qkd->qk', queries, gallery[rows], dtype=np.float64).astype(np.float32)
    order = np.lexsort((rows, -exact), axis=1)[:, :k]
    return np.take_along_axis(exact, order, axis=1), np.take_along_axis(rows, order, axis=1).astype(np.int32)


def _has_accelerator() -> bool:
    jax = sys.modules.get('jax')  # Where the encoder needs none, neither does the search.
    return jax is not None and jax.default_backend() != 'cpu'


def prepared(gallery: np.ndarray):
    """Returns the rows where they are searched: an accelerator's copy, or the same."""
    if not _has_accelerator():
        return gallery
    import jax.numpy as jnp

    return jnp.asarray(gallery)
