"""Batches in equal pieces, one after the other: what a piece needs fits a CPU's caches, or a device's memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def largest_divisor(count: int, limit: int) -> int:
    """Returns the largest divisor of count that is no more than limit, or 1: how long equal pieces are."""
    return next((size for size in range(min(count, limit), 0, -1) if count % size == 0), 1)


def concatenated(function: Callable, rows, size: int):
    """Returns a function's results for size rows at a time, joined.

    What the gradient needs of a piece is computed again rather than kept, save where there is one piece.

    Args:
      function: from a tree like rows, with leading axes of size, to a tree of arrays with leading axes of size.
      rows: an array or a tree of arrays [N, ...].
      size: a divisor of N; where it is N, the function is called as it is.

    Returns:
      A tree of arrays [N, ...].
    """
    pieces = _split(rows, size)
    if pieces is None:
        return function(rows)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), lax.map(jax.checkpoint(function), pieces))


def summed(function: Callable, rows, size: int):
    """Returns the sum of a function's results for size rows at a time; arguments as of `concatenated`.

    The function's results are a tree of arrays of any shapes.
    """
    pieces = _split(rows, size)
    if pieces is None:
        return function(rows)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, function(piece)), None

    first = jax.tree.map(lambda leaf: leaf[0], pieces)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, first))
    return lax.scan(add, zeros, pieces)[0]


def _split(rows, size):
    if len(jax.tree.leaves(rows)[0]) == size:
        return None
    return jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), rows)
