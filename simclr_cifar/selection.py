"""The largest of many numbers, row by row, on the host: exact, with equals in the order of their places."""

import numpy as np

# Of a row's items; one operation covers as many of them.
_FEWEST_GROUPS = 512
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)


def largest(rows: np.ndarray, k: int, first_item: int, first_query: int | None) -> np.ndarray:
    """Returns the keys of each row's k largest items and of some others, int64 [R, at least k or all], in any order.

    Args:
      rows: float32 [R, N], similarities of queries to the items from first_item on.
      k: how many are wanted.
      first_item: the first item's index.
      first_query: the first query's, where queries are items and each is left out of its row; None: none is.
    """
    num_rows, num_items = rows.shape
    # Written so that a NaN is a candidate: there are enough of them, come what may.
    enough = k if first_query is None else k + 1
    bounds = _bounds(rows, enough)[:, None]
    candidates = ~(rows < bounds)
    if np.count_nonzero(candidates) > 4 * enough * num_rows:
        # Collapsed embeddings: of what equals the bound, the first are enough.
        equal = rows == bounds
        candidates &= ~equal | (np.cumsum(equal, axis=1) <= enough)
    if first_query is not None:
        own = first_query - first_item + np.arange(num_rows)
        inside = np.flatnonzero((own >= 0) & (own < num_items))
        candidates[inside, own[inside]] = False
    counts = np.count_nonzero(candidates, axis=1)
    row = np.repeat(np.arange(num_rows), counts)
    item = np.flatnonzero(candidates) - row * num_items
    # Rows of fewer candidates are filled up with what comes after every key.
    keys = np.full((num_rows, counts.max()), np.iinfo(np.int64).max)
    keys[np.arange(counts.max()) < counts[:, None]] = to_keys(rows[row, item], first_item + item)
    return keys


def _bounds(rows: np.ndarray, k: int) -> np.ndarray:
    """Returns for each row a number that its k largest items reach, and few others: float32 [R]."""
    num_items = rows.shape[1]
    k = min(k, num_items)
    # k groups whose largest items reach it hold k such items, and the groups are far fewer than the items. A group's
    # items lie apart, as the similar ones may lie together.
    num_groups = min(max(2 * k, _FEWEST_GROUPS), num_items)
    size = num_items // num_groups
    largest = rows[:, : size * num_groups].reshape(len(rows), size, num_groups).max(axis=1)
    return np.partition(largest, num_groups - k, axis=1)[:, num_groups - k]


def to_keys(similarities: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns int64 numbers in the order of (similarity descending, index ascending), which sort fast."""
    # The bits of floats, the sign apart, are in the floats' order; 0 - x has one zero only.
    bits = (0 - similarities).view(np.int32)
    bits ^= (bits >> 31) & _ALL_BUT_SIGN
    return (bits.astype(np.int64) << 32) | indices


def from_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (similarities float32, indices int32) of `to_keys`."""
    bits = (keys >> 32).astype(np.int32)
    bits ^= (bits >> 31) & _ALL_BUT_SIGN
    return 0 - bits.view(np.float32), (keys & 0xFFFFFFFF).astype(np.int32)
