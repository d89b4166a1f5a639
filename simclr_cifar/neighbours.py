"""Exact nearest neighbours, in chunks, with deterministic ties."""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_cifar import selection

_QUERY_CHUNK = 1024
_HOST_QUERY_CHUNK = 512
_GALLERY_CHUNK = 65536
_ROW_BLOCK = 64
# At a matrix's odd ends products are rounded otherwise, and copies must be as similar wherever they stand.
_EVEN = 256


def top_k(queries: np.ndarray, gallery: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k most similar gallery items, the most similar first, equals by lower index.

    Beside its arguments and its result it needs memory for one chunk of the similarities, however many there are; an
    accelerator also holds the gallery, which is not copied where it is there already.

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
    search = _search_on_host if _select_on_host() else _search_on_device
    return search(queries, gallery, k, exclude_self)


def _select_on_host() -> bool:
    # XLA selects slowly on a CPU, where the similarities are in the host's memory anyway.
    return jax.default_backend() == 'cpu'


def _pad(rows, multiple):
    missing = -len(rows) % multiple
    return jnp.pad(rows, ((0, missing), (0, 0))) if missing else rows


@jax.jit
def _similarities(queries, items):
    return jnp.einsum('qd,nd->qn', queries, items, precision=lax.Precision.HIGHEST)


def _search_on_device(queries, gallery, k, exclude_self):
    queries, gallery = jnp.asarray(queries, jnp.float32), jnp.asarray(gallery, jnp.float32)
    found = []
    for first_query in range(0, len(queries), _QUERY_CHUNK):
        chunk = _pad(queries[first_query : first_query + _QUERY_CHUNK], _EVEN)
        found.append(_top_k_of_chunk(chunk, gallery, first_query, k, exclude_self, _GALLERY_CHUNK))
    similarities, indices = (np.concatenate(parts)[: len(queries)] for parts in zip(*found, strict=True))
    return similarities, indices


@functools.partial(jax.jit, static_argnames=('k', 'exclude_self', 'chunk_size'))
def _top_k_of_chunk(queries, gallery, first_query, k, exclude_self, chunk_size):
    num_queries, num_items = len(queries), len(gallery)
    query_index = first_query + jnp.arange(num_queries)

    def merge(best, items, first_item):
        item_index = first_item + jnp.arange(len(items))
        similarities = _similarities(queries, items)
        left_out = (item_index >= num_items)[None, :]
        if exclude_self:
            left_out |= query_index[:, None] == item_index[None, :]
        # lax.top_k takes 0 for more than -0.
        similarities = jnp.where(similarities == 0, 0, similarities)
        similarities = jnp.where(left_out, -jnp.inf, similarities)
        # lax.top_k puts the earlier of equals first, and the best so far come from lower indices.
        of_chunk, position = lax.top_k(similarities, min(k, len(items)))
        candidates = jnp.concatenate([best[0], of_chunk], axis=1)
        indices = jnp.concatenate([best[1], first_item + position], axis=1)
        similarities, position = lax.top_k(candidates, k)
        return similarities, jnp.take_along_axis(indices, position, axis=1)

    def merge_chunk(best, first_item):
        return merge(best, lax.dynamic_slice_in_dim(gallery, first_item, chunk_size), first_item), None

    best = jnp.full((num_queries, k), -jnp.inf), jnp.zeros((num_queries, k), jnp.int32)
    in_chunks = num_items - num_items % chunk_size
    if in_chunks:
        best, _ = lax.scan(merge_chunk, best, jnp.arange(0, in_chunks, chunk_size))
    return merge(best, _pad(gallery[in_chunks:], _EVEN), in_chunks) if in_chunks < num_items else best


def _search_on_host(queries, gallery, k, exclude_self):
    """As `_search_on_device`, with the similarities alone computed by XLA."""
    queries, gallery = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
    chunk_size = min(_HOST_QUERY_CHUNK, -(-len(queries) // _EVEN) * _EVEN)
    # By a block's first query, the keys of its best items so far.
    best = dict.fromkeys(range(0, len(queries), _ROW_BLOCK), np.empty((_ROW_BLOCK, 0), np.int64))

    def select(similarities, first_query, first_item, row):
        rows, first = similarities[row : row + _ROW_BLOCK], first_query + row
        keys = selection.largest(rows, k, first_item, first if exclude_self else None)
        keys = np.concatenate([best.pop(first)[: len(rows)], keys], axis=1)
        keys.sort(axis=1)
        if first_item + rows.shape[1] < len(gallery):
            best[first] = keys[:, :k].copy()
        else:
            for part, values in zip(found, selection.from_keys(keys[:, :k]), strict=True):
                part[first : first + len(rows)] = values

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first_item in range(0, len(gallery), _GALLERY_CHUNK):
            items = gallery[first_item : first_item + _GALLERY_CHUNK]
            num_items, items = len(items), _pad(jnp.asarray(items), _EVEN)
            buffer = jnp.empty((chunk_size, len(items)), jnp.float32)
            for first_query in range(0, len(queries), chunk_size):
                chunk = queries[first_query : first_query + chunk_size]
                buffer = _similarities_into(buffer, _pad(jnp.asarray(chunk), chunk_size), items)
                similarities = np.asarray(buffer)[: len(chunk), :num_items]
                of_block = functools.partial(select, similarities, first_query, first_item)
                list(pool.map(of_block, range(0, len(chunk), _ROW_BLOCK)))
                # The buffer is written again only where nothing else refers to it.
                del similarities, of_block
    return found


@functools.partial(jax.jit, donate_argnames='buffer', keep_unused=True)
def _similarities_into(buffer, queries, items):
    """As `_similarities`, in the buffer's memory: new memory's first use costs more than the products."""
    return _similarities(queries, items)
