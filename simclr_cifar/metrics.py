"""Retrieval and classification figures from embeddings, neighbours and labels. Pure functions of arrays."""

import concurrent.futures
import os

import numpy as np

from simclr_cifar import neighbours

KNN_K = 200
RECALL_AT = (1, 2, 4, 8)


def retrieval(
    query_embeddings: np.ndarray,
    query_labels: np.ndarray,
    gallery_embeddings: np.ndarray | None = None,
    gallery_labels: np.ndarray | None = None,
) -> dict[str, float]:
    """Returns every retrieval figure of queries against a gallery.

    Args:
      query_embeddings: float32 [Q, D], unit norm; similarity is the inner product.
      query_labels: int [Q], at least 0.
      gallery_embeddings: float32 [N, D]; None: the queries themselves, each left out of its own neighbours by index.
      gallery_labels: int [N]; None with gallery_embeddings.

    Returns:
      `from_neighbours`' figures and knn_accuracy_k200: the share of queries whose class is the most frequent among
      their 200 nearest (all, where there are fewer; the lower label wins a tie).
    """
    leave_one_out = gallery_embeddings is None
    gallery_labels = query_labels if leave_one_out else gallery_labels
    relevant = relevant_counts(query_labels, gallery_labels, leave_one_out)
    available = len(gallery_labels) - leave_one_out
    depth = min(max(retrieval_depth(relevant), KNN_K), available)
    _, indices = neighbours.top_k(query_embeddings, gallery_embeddings, depth)
    found = np.asarray(gallery_labels)[indices]
    votes = knn_vote(found[:, :KNN_K], 1 + max(np.max(query_labels), np.max(gallery_labels)))
    return {
        **from_neighbours(found, query_labels, relevant),
        f'knn_accuracy_k{KNN_K}': float(np.mean(votes == query_labels)),
    }


def relevant_counts(query_labels: np.ndarray, gallery_labels: np.ndarray, leave_one_out: bool) -> np.ndarray:
    """Returns R, int [Q]: how many gallery items, itself left out, share each query's class."""
    counts = np.bincount(gallery_labels, minlength=1 + np.max(query_labels))
    return counts[query_labels] - leave_one_out


def retrieval_depth(relevant: np.ndarray) -> int:
    """Returns how many neighbours `from_neighbours` needs where there are so many."""
    return int(max(np.max(relevant), 10, *RECALL_AT))


def from_neighbours(neighbour_labels: np.ndarray, query_labels: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Returns the retrieval figures of ranked neighbours.

    Queries of a class that the gallery lacks (R = 0) are left out; the figures are NaN where none remains. R-Precision
    and MAP@R as in "A Metric Learning Reality Check" (Musgrave et al., 2020).

    Args:
      neighbour_labels: int [Q, K], most similar first; K reaches `retrieval_depth` or the whole gallery.
      query_labels: int [Q].
      relevant: int [Q], R of each query.

    Returns:
      precision_at_1, precision_at_10 (of the neighbours there are), recall_at_{1,2,4,8} (the share of queries with a
      hit among so many), r_precision and map_at_r.
    """
    kept = np.flatnonzero(relevant > 0)
    hits = neighbour_labels[kept] == np.asarray(query_labels)[kept, None]
    relevant = relevant[kept]
    ranks = np.arange(1, hits.shape[1] + 1)
    hits_within_r = hits & (ranks <= relevant[:, None])
    precision = np.cumsum(hits, axis=1, dtype=np.int32) / ranks

    def mean(values):
        return float(np.mean(values)) if len(values) else float('nan')

    return {
        'precision_at_1': mean(hits[:, 0]),
        'precision_at_10': mean(np.mean(hits[:, :10], axis=1)),
        **{f'recall_at_{k}': mean(np.any(hits[:, :k], axis=1)) for k in RECALL_AT},
        'r_precision': mean(np.sum(hits_within_r, axis=1) / relevant),
        'map_at_r': mean(np.sum(precision, axis=1, where=hits_within_r) / relevant),
    }


def knn_vote(neighbour_labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int [Q], the most frequent of each row of labels, int [Q, k]; the lower label wins a tie."""
    votes = np.stack([np.sum(neighbour_labels == label, axis=1) for label in range(num_classes)], axis=1)
    return np.argmax(votes, axis=1)


def confusion(labels: np.ndarray, others: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [C, C]: how often label a (row) met label b (column).

    Args:
      labels: int [Q].
      others: int [Q] (one prediction each) or [Q, k] (the labels of k neighbours each).
      num_classes: C.
    """
    others = others.reshape(len(labels), -1)
    cells = np.asarray(labels, np.int64)[:, None] * num_classes + others
    return np.bincount(cells.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def pair_accuracy(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Returns the anchor-positive objective's expected accuracy on groups of pairs drawn from these images.

    A group holds an anchor and a positive of every class, drawn uniformly, and an anchor is right where its own
    positive is its most similar one. The expectation over all groups is exact, nothing is drawn: for an anchor and one
    of its positives it is the product, over the other classes, of the share of images less similar to the anchor than
    that positive. Equal similarities go to the lower label, as in the objective.

    Args:
      embeddings: float32 [N, D], unit norm.
      labels: int [N], in [0, C), with at least 2 of each class.
    """
    order = np.argsort(labels, kind='stable')
    embeddings, labels = np.asarray(embeddings, np.float32)[order], np.asarray(labels)[order]
    counts = np.bincount(labels)
    ends = np.cumsum(counts)

    def expected_accuracies(rows):
        by_class = np.split(embeddings[rows] @ embeddings.T, ends[:-1], axis=1)
        for row, index in enumerate(rows):
            own = labels[index]
            by_class[own][row, index - (ends[own] - counts[own])] = np.inf
        by_class = [np.sort(similarities, axis=1) for similarities in by_class]
        accuracies = np.empty(len(rows))
        for row, own in enumerate(labels[rows]):
            positives = by_class[own][row, :-1]  # The last is the anchor itself.
            right = np.ones(len(positives))
            for label, similarities in enumerate(by_class):
                if label != own:
                    side = 'left' if label < own else 'right'
                    right *= np.searchsorted(similarities[row], positives, side) / counts[label]
            accuracies[row] = right.mean()
        return accuracies

    chunks = np.array_split(np.arange(len(labels)), -(-len(labels) // 256))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        accuracies = np.concatenate(list(pool.map(expected_accuracies, chunks)))
    return float(np.mean(np.bincount(labels, accuracies) / counts))
