import itertools

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix
from sklearn.neighbors import KNeighborsClassifier

from simclr_cifar import metrics, objectives, sampling


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def clustered(seed, counts, dim=4, spread=1.2):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    embeddings = rng.normal(size=(len(counts), dim))[labels] + spread * rng.normal(size=(len(labels), dim))
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32), labels


def by_loops(queries, query_labels, gallery, gallery_labels, leave_one_out):
    """Each definition, one query after the other."""
    sums = {}
    counted = 0
    for q, label in enumerate(query_labels):
        others = [i for i in range(len(gallery)) if not (leave_one_out and i == q)]
        ranked = sorted(others, key=lambda i: (-float(np.dot(queries[q].astype(float), gallery[i].astype(float))), i))
        hits = [int(gallery_labels[i] == label) for i in ranked]
        relevant = sum(hits)
        if relevant == 0:
            continue
        counted += 1
        values = {
            'precision_at_1': hits[0],
            'precision_at_10': sum(hits[:10]) / min(10, len(hits)),
            'r_precision': sum(hits[:relevant]) / relevant,
            'map_at_r': sum(sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]) / relevant,
            **{f'recall_at_{k}': float(any(hits[:k])) for k in (1, 2, 4, 8)},
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0) + value
    return {name: value / counted for name, value in sums.items()}


def test_a_case_by_hand():
    # Neighbours of two queries; class 0 has 3 relevant items, class 1 has 2.
    found = np.array([[0, 1, 0, 0, 1], [0, 1, 0, 0, 1]])
    figures = metrics.from_neighbours(found, np.array([0, 1]), np.array([3, 2]))
    assert figures['precision_at_1'] == 0.5
    assert figures['precision_at_10'] == pytest.approx((3 / 5 + 2 / 5) / 2)
    assert figures['recall_at_2'] == 1
    assert figures['r_precision'] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert figures['map_at_r'] == pytest.approx(((1 / 1 + 2 / 3) / 3 + (1 / 2) / 2) / 2)


@pytest.mark.parametrize('leave_one_out', [True, False])
def test_retrieval_equals_the_loops_and_scikit_learn(leave_one_out):
    # Unequal classes, one of a single image (a query that nothing answers), more than 200 neighbours to vote.
    queries, query_labels = clustered(0, [150, 60, 40, 1])
    gallery, gallery_labels = (None, None) if leave_one_out else clustered(0, [120, 90, 30])
    figures = metrics.retrieval(queries, query_labels, gallery, gallery_labels)
    against = (queries, query_labels) if leave_one_out else (gallery, gallery_labels)
    expected = by_loops(queries, query_labels, *against, leave_one_out)
    votes = []
    for index, query in enumerate(queries):
        kept = np.arange(len(against[1])) != index if leave_one_out else slice(None)
        classifier = KNeighborsClassifier(200, metric='cosine', algorithm='brute')
        votes.append(classifier.fit(against[0][kept], against[1][kept]).predict(query[None])[0])
    expected['knn_accuracy_k200'] = np.mean(votes == query_labels)
    assert figures == pytest.approx(expected, abs=1e-9)
    assert 0 < figures['map_at_r'] < figures['r_precision'] < figures['recall_at_8'] < 1 or leave_one_out


def test_a_small_gallery_votes_with_all_it_has():
    queries, labels = clustered(1, [6, 5])
    assert set(metrics.retrieval(queries, labels)) == {
        *('precision_at_1', 'precision_at_10', 'r_precision', 'map_at_r', 'knn_accuracy_k200'),
        *(f'recall_at_{k}' for k in (1, 2, 4, 8)),
    }


def test_the_lower_label_wins_a_tied_vote():
    np.testing.assert_array_equal(metrics.knn_vote(np.array([[2, 1, 1, 2], [2, 2, 0, 1]]), 3), [1, 2])


def test_confusion_equals_scikit_learn_s():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, (2, 100))
    np.testing.assert_array_equal(
        metrics.confusion(labels, predicted, 5), confusion_matrix(labels, predicted, labels=range(5))
    )
    neighbours = rng.integers(0, 4, (100, 3))
    expected = confusion_matrix(labels.repeat(3), neighbours.ravel(), labels=range(5))
    np.testing.assert_array_equal(metrics.confusion(labels, neighbours, 5), expected)


def pair_accuracy_by_enumeration(embeddings, labels):
    """The objective's accuracy averaged over every group of pairs there is."""
    classes = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    pairs_by_class = [list(itertools.permutations(members, 2)) for members in classes]
    right = []
    for group in itertools.product(*pairs_by_class):
        anchors, positives = embeddings[[a for a, _ in group]], embeddings[[p for _, p in group]]
        right.append(np.mean(np.argmax(anchors @ positives.T, axis=1) == np.arange(len(classes))))
    return np.mean(right)


def test_pair_accuracy_is_the_mean_over_every_group():
    embeddings, labels = clustered(2, [4, 3, 2], dim=3)
    assert metrics.pair_accuracy(embeddings, labels) == pytest.approx(pair_accuracy_by_enumeration(embeddings, labels))


def test_pair_accuracy_breaks_ties_as_the_objective_does():
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    embeddings = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 0, 0, 1]]
    assert metrics.pair_accuracy(embeddings, labels) == pytest.approx(pair_accuracy_by_enumeration(embeddings, labels))
    assert metrics.pair_accuracy(np.ones((7, 1), np.float32), labels) == pytest.approx(1 / 3)


def test_pair_accuracy_is_what_training_would_measure():
    embeddings, labels = clustered(3, [30, 50, 20])
    groups = np.arange(4000, dtype=np.int32)
    pairs = jax.jit(sampling.pairs)(jax.random.key(0), np.int32(0), groups, sampling.class_index(labels, 3))
    _, measured = objectives.anchor_positive(*(embeddings[np.asarray(part)] for part in pairs), 0.2)
    assert metrics.pair_accuracy(embeddings, labels) == pytest.approx(float(measured), abs=0.02)
