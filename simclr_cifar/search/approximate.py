"""Nearly the most similar rows of very many, in a fraction of the time: a graph of neighbours, by faiss.

Hierarchical navigable small worlds (Malkov and Yashunin, 2016, arXiv:1603.09320). How wide it searches is chosen when
it is made, so that it finds enough of what an exact search finds, and how much that is is measured.
"""

import pathlib

import numpy as np

from simclr_cifar.config import InputError
from simclr_cifar.search import nearest

RECALL = 0.97  # of the _K nearest, which a wide enough search is to find
_K = 10
_TRIED = 500  # rows, whose own neighbours are searched
_LINKS, _WIDTH_MADE = 32, 80
_WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
_ROWS_AT_ONCE = 2**16


class Approximate:
    """A graph over the rows, searched as wide as is said."""

    def __init__(self, path: pathlib.Path, width: int):
        self._graph = _faiss().read_index(str(path))
        _search_as_wide_as(self._graph, width)

    def top_k(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `nearest.top_k` does, or nearly; rows that were not found, at the end, are -1."""
        similarities, rows = self._graph.search(np.ascontiguousarray(queries, np.float32), k)
        return similarities, rows.astype(np.int32)


def make(embeddings: np.ndarray, path: pathlib.Path) -> dict[str, float]:
    """Writes a graph over the rows, float32 [N, D]; returns its width and its recall, the share of the nearest found.

    It is measured by rows that are not in the graph yet, as those that are find themselves and their neighbours easily;
    where there are too few, by those that are.

    Raises:
      InputError: faiss is not installed.
    """
    faiss = _faiss()
    links = faiss.IndexHNSWFlat(embeddings.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    links.hnsw.efConstruction = _WIDTH_MADE
    graph = faiss.IndexIDMap(links)
    count = len(embeddings)
    tried = np.unique(np.linspace(0, count - 1, min(_TRIED, max(count // 2, 1))).astype(int))
    rest = np.setdiff1d(np.arange(count), tried)
    held_out = len(rest) >= _K
    first = rest if held_out else np.arange(count)
    _add(graph, embeddings, first)
    queries, k = np.array(embeddings[tried]), min(_K, len(first))
    _, wanted = nearest.top_k(queries, embeddings, k, first)
    for width in _WIDTHS:
        _search_as_wide_as(graph, width)
        _, found = graph.search(queries, k)
        recall = float(np.mean([len(np.intersect1d(*both)) / k for both in zip(found, wanted, strict=True)]))
        if recall >= RECALL:
            break
    if held_out:
        _add(graph, embeddings, tried)
    faiss.write_index(graph, str(path))
    return {'width': width, 'recall': recall}


def _add(graph, embeddings: np.ndarray, rows: np.ndarray) -> None:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        graph.add_with_ids(np.ascontiguousarray(embeddings[some]), some)


def _search_as_wide_as(graph, width: int) -> None:
    _faiss().downcast_index(graph.index).hnsw.efSearch = width


def _faiss():
    try:
        import faiss
    except ImportError as error:
        raise InputError('--ann: needs faiss; pip install -r requirements-search.txt') from error
    return faiss
