"""Exact nearest neighbours, in chunks, with deterministic ties."""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_QUERY_CHUNK = 1024
_HOST_QUERY_CHUNK = 256
_GALLERY_CHUNK = 65536
_ROW_BLOCK = 16
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


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
    gallery_chunk = min(_GALLERY_CHUNK, -(-len(gallery) // 256) * 256)
    items = _pad(gallery, gallery_chunk).reshape(-1, gallery_chunk, gallery.shape[1])
    search = _search_on_host if _select_on_host() else _search_on_device
    similarities, indices = zip(*search(queries, items, len(gallery), k, exclude_self), strict=True)
    return np.concatenate(similarities)[: len(queries)], np.concatenate(indices)[: len(queries)]


def _select_on_host() -> bool:
    # XLA selects slowly on a CPU, where the similarities are in the host's memory anyway.
    return jax.default_backend() == 'cpu'


def _pad(rows: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(np.asarray(rows, np.float32), ((0, -len(rows) % multiple), (0, 0)))


def _query_chunks(queries, size):
    """Yields (index of the first query, float32 [Q, D]), all of one shape, Q at most size."""
    size = min(size, -(-len(queries) // 256) * 256)
    for start in range(0, len(queries), size):
        yield start, _pad(queries[start : start + size], size)


@jax.jit
def _similarities(queries, items):
    return jnp.einsum('qd,nd->qn', queries, items, precision=lax.Precision.HIGHEST)


def _search_on_device(queries, gallery, gallery_size, k, exclude_self):
    """queries [Q, D], gallery [chunks, N, D] -> chunks of (similarities [Q, k], indices [Q, k])."""
    gallery = jnp.asarray(gallery)
    for start, chunk in _query_chunks(queries, _QUERY_CHUNK):
        yield _top_k_of_chunk(chunk, gallery, start, gallery_size, k, exclude_self)


@functools.partial(jax.jit, static_argnames=('k', 'exclude_self'))
def _top_k_of_chunk(queries, gallery, first_query, gallery_size, k, exclude_self):
    num_queries, chunk_size = len(queries), gallery.shape[1]
    query_index = first_query + jnp.arange(num_queries)

    def merge(best, chunk):
        items, first_item = chunk
        item_index = first_item + jnp.arange(chunk_size)
        similarities = _similarities(queries, items)
        left_out = (item_index >= gallery_size)[None, :]
        if exclude_self:
            left_out |= query_index[:, None] == item_index[None, :]
        # lax.top_k takes 0 for more than -0.
        similarities = jnp.where(similarities == 0, 0, similarities)
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


def _search_on_host(queries, gallery, gallery_size, k, exclude_self):
    """As `_search_on_device`, with the similarities alone computed by XLA."""
    gallery_chunks = [jnp.asarray(items) for items in gallery]
    buffer = None

    def select(similarities, first_query, first_item, best, start):
        """Merges into best, the keys of some queries, those of one chunk of the gallery."""
        rows = similarities[start : start + _ROW_BLOCK]
        enough = k + exclude_self
        bounds = _bounds(rows, enough)
        # Written so that a NaN is a candidate: k of them are found, come what may.
        candidates = ~(rows < bounds[:, None])
        for query, row in enumerate(rows, start):
            items = np.flatnonzero(candidates[query - start])
            if len(items) > 4 * enough:
                # Collapsed embeddings: of what equals the bound, the first are enough.
                equal = row[items] == bounds[query - start]
                items = items[~equal | (np.cumsum(equal) <= enough)]
            if exclude_self:
                items = items[items != first_query + query - first_item]
            keys = np.concatenate([best[query], _keys(row[items], first_item + items)])
            keys.sort()
            best[query] = keys[:k]

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first_query, chunk in _query_chunks(queries, _HOST_QUERY_CHUNK):
            if buffer is None:
                buffer = jnp.empty((len(chunk), gallery.shape[1]), jnp.float32)
            best = [np.empty(0, np.int64)] * min(len(chunk), len(queries) - first_query)
            for number, items in enumerate(gallery_chunks):
                first_item = number * len(items)
                buffer = _similarities_into(buffer, chunk, items)
                similarities = np.asarray(buffer)[: len(best), : gallery_size - first_item]
                of_chunk = functools.partial(select, similarities, first_query, first_item, best)
                list(pool.map(of_chunk, range(0, len(best), _ROW_BLOCK)))
                # The buffer is written again only where nothing else refers to it.
                del similarities, of_chunk
            yield _from_keys(np.stack(best))


@functools.partial(jax.jit, donate_argnames='buffer', keep_unused=True)
def _similarities_into(buffer, queries, items):
    """As `_similarities`, in the buffer's memory: new memory's first use costs more than the products."""
    return _similarities(queries, items)


def _bounds(rows: np.ndarray, k: int) -> np.ndarray:
    """Returns for each row a number that its k largest items reach, and few others: float32 [R]."""
    num_items = rows.shape[1]
    k = min(k, num_items)
    # k groups whose largest items reach it hold k such items, and the groups are far fewer than the items. A group's
    # items lie apart, as the similar ones may lie together.
    size = max(1, num_items // (2 * k))
    num_groups = num_items // size
    largest = rows[:, : size * num_groups].reshape(len(rows), size, num_groups).max(axis=1)
    return np.partition(largest, num_groups - k, axis=1)[:, num_groups - k]


def _keys(similarities: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns int64 numbers in the order of (similarity descending, index ascending), which sort fast."""
    # The bits of floats, the sign apart, are in the floats' order; 0 - x has one zero only.
    bits = (0 - similarities).view(np.int32)
    bits ^= (bits >> 31) & _ALL_BUT_SIGN
    return (bits.astype(np.int64) << 32) | indices


def _from_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (similarities float32, indices int32) of `_keys`."""
    bits = (keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & _ALL_BUT_SIGN
    return 0 - bits.view(np.float32), (keys & 0xFFFFFFFF).astype(np.int32)
