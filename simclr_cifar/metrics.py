"""Retrieval, vote, confusion and the objective's own figures of embeddings and labels. Pure functions of arrays."""

import concurrent.futures
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax import lax

from simclr_cifar import neighbours, objectives, sampling

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
      The means of `from_neighbours`' figures and knn_accuracy_k200: the share of queries whose class is the most
      frequent among their 200 nearest (all, where there are fewer; the lower label wins a tie).
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
        **{name: mean(values) for name, values in from_neighbours(found, query_labels, relevant).items()},
        f'knn_accuracy_k{KNN_K}': float(np.mean(votes == query_labels)),
    }


def relevant_counts(query_labels: np.ndarray, gallery_labels: np.ndarray, leave_one_out: bool) -> np.ndarray:
    """Returns R, int [Q]: how many gallery items, itself left out, share each query's class."""
    counts = np.bincount(gallery_labels, minlength=1 + np.max(query_labels))
    return counts[query_labels] - leave_one_out


def retrieval_depth(relevant: np.ndarray) -> int:
    """Returns how many neighbours `from_neighbours` needs where there are so many."""
    return int(max(np.max(relevant), 10, *RECALL_AT))


def from_neighbours(
    neighbour_labels: np.ndarray, query_labels: np.ndarray, relevant: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the retrieval figures of every query's ranked neighbours, float64 [Q] each.

    A query of a class that the gallery lacks (R = 0) has NaN throughout. R-Precision and MAP@R as in "A Metric Learning
    Reality Check" (Musgrave et al., 2020): with P(i) the share of hits among the first i neighbours, R-Precision is
    P(R), and MAP@R the sum of P(i) over those i <= R that are hits, divided by R.

    Args:
      neighbour_labels: int [Q, K], most similar first; K reaches `retrieval_depth` or the whole gallery.
      query_labels: int [Q].
      relevant: int [Q], R of each query.

    Returns:
      precision_at_1, precision_at_10 (of the neighbours there are), recall_at_{1,2,4,8} (1 with a hit among so many,
      otherwise 0), r_precision and map_at_r.
    """
    answerable = relevant > 0
    hits = neighbour_labels == np.asarray(query_labels)[:, None]
    ranks = np.arange(1, hits.shape[1] + 1)
    hits_within_r = hits & (ranks <= relevant[:, None])
    precision = np.cumsum(hits, axis=1, dtype=np.int32) / ranks
    divisor = np.maximum(relevant, 1)
    figures = {
        'precision_at_1': hits[:, 0],
        'precision_at_10': np.mean(hits[:, :10], axis=1),
        **{f'recall_at_{k}': np.any(hits[:, :k], axis=1) for k in RECALL_AT},
        'r_precision': np.sum(hits_within_r, axis=1) / divisor,
        'map_at_r': np.sum(precision, axis=1, where=hits_within_r) / divisor,
    }
    return {name: np.where(answerable, values, np.nan) for name, values in figures.items()}


def mean(values: np.ndarray) -> float:
    """Returns the mean of those values, float [Q], that are not NaN; NaN where there are none."""
    values = np.asarray(values)
    values = values[~np.isnan(values)]
    return float(np.mean(values)) if len(values) else float('nan')


def class_mean(values: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of the mean over each class's values, so that classes weigh the same.

    Args:
      values: float [N], one of each image.
      labels: int [N]; classes without images are left out.
    """
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return float(np.mean(np.bincount(labels, values) / counts))


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


def pair_accuracy(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns each image's expected accuracy as an anchor of the anchor-positive objective, float64 [N].

    A group holds an anchor and a positive of every class, drawn uniformly, and an anchor is right where its own
    positive is its most similar one. The expectation over all groups is exact, nothing is drawn: for an anchor and one
    of its positives it is the product, over the other classes, of the share of images less similar to the anchor than
    that positive. Equal similarities go to the lower label, as in the objective. `class_mean` of it is the objective's
    expected accuracy.

    Args:
      embeddings: float32 [N, D], unit norm.
      labels: int [N], in [0, C), with at least 2 of each class.
    """
    order = np.argsort(labels, kind='stable')
    embeddings, labels = np.asarray(embeddings, np.float32)[order], np.asarray(labels)[order]
    counts = np.bincount(labels)
    columns = [slice(end - count, end) for end, count in zip(np.cumsum(counts), counts, strict=True)]

    def expected_accuracies(rows):
        similarities = embeddings[rows] @ embeddings.T
        similarities[np.arange(len(rows)), rows] = np.inf
        for column in columns:
            similarities[:, column].sort(axis=1)
        accuracies = np.empty(len(rows))
        for number, own in enumerate(labels[rows]):
            row = similarities[number]
            positives = row[columns[own]][:-1]  # The last is the anchor itself.
            less_similar = [
                row[column].searchsorted(positives, 'left' if label < own else 'right')
                for label, column in enumerate(columns)
                if label != own
            ]
            shares = np.array(less_similar).reshape(-1, len(positives)) / np.delete(counts, own)[:, None]
            accuracies[number] = np.prod(shares, axis=0).mean()
        return accuracies

    chunks = np.array_split(np.arange(len(labels)), -(-len(labels) // 256))
    # A thread of its own for each chunk leaves none for the products to be divided among.
    with threadpoolctl.threadpool_limits(1), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        accuracies = np.concatenate(list(pool.map(expected_accuracies, chunks)))
    return accuracies[np.argsort(order)]


def pair_loss(embeddings: np.ndarray, labels: np.ndarray, temperature: float, num_groups: int = 4096) -> float:
    """Returns the anchor-positive objective's mean loss on groups of pairs drawn from these images.

    The loss of training's groups (negatives of the anchor's own group) with a fixed key: equal labels draw equal
    groups, so two encoders are compared on the same pairs. Groups are drawn independently, so its standard error is the
    standard deviation of the groups' losses over sqrt(num_groups).

    Args:
      embeddings: float32 [N, D], unit norm.
      labels: int [N], in [0, C), with at least 2 of each class.
      temperature: above 0.
      num_groups: how many groups are drawn.
    """
    index = sampling.class_index(labels, 1 + np.max(labels))
    losses = np.asarray(_group_losses(embeddings, index, temperature, num_groups))
    return float(np.mean(losses, dtype=np.float64))


@functools.partial(jax.jit, static_argnames='num_groups')
def _group_losses(embeddings, index, temperature, num_groups):
    def loss(group):
        anchors, positives = sampling.draw(jax.random.key(0), jnp.int32(0), group[None], index)
        labels = jnp.arange(anchors.shape[1])[None]
        return objectives.anchor_positive(embeddings[anchors], embeddings[positives], labels, temperature)[0]

    return lax.map(loss, jnp.arange(num_groups), batch_size=256)


def auroc(positive_scores: np.ndarray, negative_scores: np.ndarray) -> float:
    """Returns how likely a positive scores above a negative, ties counted half: the area under the ROC curve.

    The Mann-Whitney statistic, (sum of the positives' mid-ranks - P (P + 1) / 2) / (P M) (Hanley & McNeil, 1982).

    Args:
      positive_scores: float [P].
      negative_scores: float [M].

    Returns:
      In [0, 1]; NaN where either is empty.
    """
    if not len(positive_scores) or not len(negative_scores):
        return float('nan')
    negatives = np.sort(negative_scores)
    below = np.searchsorted(negatives, positive_scores, 'left')
    not_above = np.searchsorted(negatives, positive_scores, 'right')
    return float((np.mean(below) + np.mean(not_above)) / 2 / len(negatives))
