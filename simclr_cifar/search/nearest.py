"""The most similar rows of many: exact, on the host without JAX, on an accelerator with it; or, fast, nearly all."""

import sys

import numpy as np

from simclr_cifar import selection

_ROWS_AT_ONCE = 2**16
_QUERIES_AT_ONCE = 64


def top_k(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k most similar rows, the most similar first, equals by lower index.

    Args:
      queries: float32 [Q, D].
      gallery: float32 [N, D], which may be memory-mapped.
      k: from 1 to N.

    Returns:
      (similarities float32 [Q, k], rows int32 [Q, k]).
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f'k={k}: must be between 1 and the {len(gallery)} rows')
    if _has_accelerator():
        from simclr_cifar import neighbours

        return neighbours.top_k(queries, gallery, k)
    firsts = range(0, len(queries), _QUERIES_AT_ONCE)
    parts = [_of_some(queries[first : first + _QUERIES_AT_ONCE], gallery, k) for first in firsts]
    if not parts:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    similarities, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return similarities, rows


def _of_some(queries, gallery, k):
    best = np.empty((len(queries), 0), np.int64)
    for first in range(0, len(gallery), _ROWS_AT_ONCE):
        similarities = queries @ gallery[first : first + _ROWS_AT_ONCE].T
        best = np.concatenate([best, selection.largest(similarities, k, first, None)], axis=1)
        best.sort(axis=1)
        best = best[:, :k]
    return selection.from_keys(best)


def _has_accelerator() -> bool:
    jax = sys.modules.get('jax')  # Where the encoder needs none, neither does the search.
    return jax is not None and jax.default_backend() != 'cpu'


def prepared(gallery: np.ndarray):
    """Returns the rows where they are searched: an accelerator's copy, or the same."""
    if not _has_accelerator():
        return gallery
    import jax.numpy as jnp

    return jnp.asarray(gallery)
