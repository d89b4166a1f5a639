"""Exact nearest neighbours on the device, in chunks, with deterministic ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_QUERY_CHUNK = 1024
_GALLERY_CHUNK = 65536


def top_k(queries: np.ndarray, gallery: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k most similar gallery items, the most similar first, equals by lower index.

    Args:
      queries: float32 [Q, D]; similarity is the inner product, the cosine where both are of unit norm.
      gallery: float32 [N, D]; None: the queries themselves, each left out of its own neighbours by its index.
      k: at most N, or Q - 1 where gallery is None.

    Returns:
      (similarities float32 [Q, k], indices int32 [Q, k]).

    Raises:
      ValueError: k below 1 or above the number of items.
    """
    exclude_self = gallery is None
    gallery = queries if exclude_self else gallery
    if not 1 <= k <= len(gallery) - exclude_self:
        raise ValueError(f'k={k}: must be between 1 and the {len(gallery) - exclude_self} gallery items')
    chunk = min(_GALLERY_CHUNK, -(-len(gallery) // 256) * 256)
    query_chunk = min(_QUERY_CHUNK, -(-len(queries) // 256) * 256)
    padded = jnp.asarray(_pad(gallery, chunk)).reshape(-1, chunk, gallery.shape[1])
    results = []
    for start in range(0, len(queries), query_chunk):
        rows = queries[start : start + query_chunk]
        results.append(_top_k_of_chunk(_pad(rows, query_chunk), padded, start, len(gallery), k, exclude_self))
    similarities, indices = zip(*results, strict=True)
    return np.concatenate(similarities)[: len(queries)], np.concatenate(indices)[: len(queries)]


def _pad(rows: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(np.asarray(rows, np.float32), ((0, -len(rows) % multiple), (0, 0)))


@functools.partial(jax.jit, static_argnames=('k', 'exclude_self'))
def _top_k_of_chunk(queries, gallery, first_query, gallery_size, k, exclude_self):
    """queries [Q, D], gallery [chunks, N, D] -> (similarities [Q, k], indices [Q, k])."""
    num_queries, chunk_size = len(queries), gallery.shape[1]
    query_index = first_query + jnp.arange(num_queries)

    def merge(best, chunk):
        items, first_item = chunk
        item_index = first_item + jnp.arange(chunk_size)
        similarities = jnp.einsum('qd,nd->qn', queries, items, precision=lax.Precision.HIGHEST)
        left_out = (item_index >= gallery_size)[None, :]
        if exclude_self:
            left_out |= query_index[:, None] == item_index[None, :]
        similarities = jnp.where(left_out, -jnp.inf, similarities)
        # lax.top_k puts the earlier of equals first, and the best so far come from lower indices.
        of_chunk, position = lax.top_k(similarities, min(k, chunk_size))
        candidates = jnp.concatenate([best[0], of_chunk], axis=1)
        indices = jnp.concatenate([best[1], first_item + position], axis=1)
        similarities, position = lax.top_k(candidates, k)
        return (similarities, jnp.take_along_axis(indices, position, axis=1)), None

    nothing = jnp.full((num_queries, k), -jnp.inf), jnp.zeros((num_queries, k), jnp.int32)
    best, _ = lax.scan(merge, nothing, (gallery, chunk_size * jnp.arange(len(gallery))))
    return best
