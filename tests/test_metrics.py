import itertools
import math

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from simclr_cifar import metrics, objectives, sampling


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
    np.testing.assert_array_equal(figures['precision_at_1'], [1, 0])
    np.testing.assert_allclose(figures['precision_at_10'], [3 / 5, 2 / 5])
    np.testing.assert_array_equal(figures['recall_at_1'], [1, 0])
    np.testing.assert_array_equal(figures['recall_at_2'], [1, 1])
    np.testing.assert_allclose(figures['r_precision'], [2 / 3, 1 / 2])
    np.testing.assert_allclose(figures['map_at_r'], [(1 / 1 + 2 / 3) / 3, (1 / 2) / 2])


def test_a_query_that_nothing_answers_has_no_figures_and_is_left_out_of_means():
    found = np.array([[0, 1, 1], [0, 1, 1], [1, 0, 0]])
    figures = metrics.from_neighbours(found, np.array([0, 2, 1]), np.array([1, 0, 2]))
    for name, values in figures.items():
        assert values.dtype == np.float64 and values.shape == (3,)
        np.testing.assert_array_equal(np.isnan(values), [False, True, False], err_msg=name)
    assert metrics.mean(figures['r_precision']) == pytest.approx((1 + 1 / 2) / 2)
    none = metrics.from_neighbours(found, np.array([2, 2, 2]), np.array([0, 0, 0]))
    assert all(math.isnan(metrics.mean(values)) for values in none.values())


def test_classes_weigh_the_same_in_a_class_mean():
    # Class 1 has no images.
    assert metrics.class_mean(np.array([1.0, 0.0, 0.5, 0.25]), np.array([0, 2, 0, 0])) == pytest.approx(
        (7 / 12 + 0) / 2
    )


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


def on_a_grid(kind, seed, counts):
    """Embeddings whose similarities are exact in float32, so that every implementation sees the same ties."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    shape = (len(labels), 6)
    if kind == 'random':
        return (np.round(64 * rng.normal(size=shape)) / 64).astype(np.float32), labels
    if kind == 'clustered':
        centres = 2 * np.random.default_rng(0).normal(size=(len(counts), 6))
        return (np.round(64 * (centres[labels] + rng.normal(size=shape))) / 64).astype(np.float32), labels
    if kind == 'tied':
        return rng.integers(-1, 2, shape).astype(np.float32), labels
    few = np.round(64 * rng.normal(size=(20, 6))) / 64  # 'duplicated'
    return few[rng.integers(0, 20, len(labels))].astype(np.float32), labels


def accuracy_calculator(k, num_starts=10):
    """pytorch-metric-learning's figures, of neighbours by stable sorting and of scikit-learn's clusters."""
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    def nearest(queries, num_neighbours, references, references_include_queries):
        similarities = queries.double() @ references.double().T
        if references_include_queries:
            similarities.fill_diagonal_(-torch.inf)
        found = torch.sort(similarities, dim=1, descending=True, stable=True)
        return found.values[:, :num_neighbours], found.indices[:, :num_neighbours]

    def clusters(embeddings, num_clusters):
        return torch.tensor(KMeans(num_clusters, n_init=num_starts, random_state=0).fit_predict(embeddings.numpy()))

    return AccuracyCalculator(k=k, knn_func=nearest, kmeans_func=clusters, device=torch.device('cpu'))


RETRIEVAL_NAMES = {
    'precision_at_1': 'precision_at_1',
    'r_precision': 'r_precision',
    'mean_average_precision_at_r': 'map_at_r',
}


@pytest.mark.parametrize('k', ['max_bin_count', 249])
@pytest.mark.parametrize('leave_one_out', [True, False])
@pytest.mark.parametrize('kind', ['random', 'clustered', 'tied', 'duplicated'])
def test_retrieval_equals_pytorch_metric_learning(kind, leave_one_out, k):
    # The last class has one image: a lone query, where the queries are their own gallery.
    queries, query_labels = on_a_grid(kind, 1, [120, 80, 49, 1])
    gallery, gallery_labels = (None, None) if leave_one_out else on_a_grid(kind, 2, [100, 130, 70])
    expected = accuracy_calculator(k).get_accuracy(
        queries, query_labels, gallery, gallery_labels, include=tuple(RETRIEVAL_NAMES)
    )
    figures = metrics.retrieval(queries, query_labels, gallery, gallery_labels)
    for theirs, ours in RETRIEVAL_NAMES.items():
        assert figures[ours] == pytest.approx(expected[theirs], abs=1e-12), ours


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


def expected_accuracy(embeddings, labels):
    return metrics.class_mean(metrics.pair_accuracy(embeddings, labels), labels)


def test_pair_accuracy_is_the_mean_over_every_group():
    embeddings, labels = clustered(2, [4, 3, 2], dim=3)
    assert expected_accuracy(embeddings, labels) == pytest.approx(pair_accuracy_by_enumeration(embeddings, labels))


def test_pair_accuracy_is_each_anchor_s_own():
    embeddings, labels = clustered(2, [4, 3, 2], dim=3)
    similarities = embeddings @ embeddings.T
    for anchor, value in enumerate(metrics.pair_accuracy(embeddings, labels)):
        own = [i for i in np.flatnonzero(labels == labels[anchor]) if i != anchor]
        others = [np.flatnonzero(labels == label) for label in range(3) if label != labels[anchor]]
        right = [
            all(similarities[anchor, positive] > similarities[anchor, list(negatives)])
            for positive in own
            for negatives in itertools.product(*others)
        ]
        assert value == pytest.approx(np.mean(right))


def test_pair_accuracy_breaks_ties_as_the_objective_does():
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    embeddings = np.eye(2, dtype=np.float32)[[0, 0, 0, 1, 0, 0, 1]]
    assert expected_accuracy(embeddings, labels) == pytest.approx(pair_accuracy_by_enumeration(embeddings, labels))
    assert expected_accuracy(np.ones((7, 1), np.float32), labels) == pytest.approx(1 / 3)


def test_pair_accuracy_is_what_training_would_measure():
    embeddings, labels = clustered(3, [30, 50, 20])
    groups = np.arange(4000, dtype=np.int32)
    pairs = jax.jit(sampling.draw)(jax.random.key(0), np.int32(0), groups, sampling.class_index(labels, 3))
    classes = np.broadcast_to(np.arange(3), pairs.shape[1:])
    _, measured = objectives.anchor_positive(*(embeddings[np.asarray(part)] for part in pairs), classes, 0.2)
    assert expected_accuracy(embeddings, labels) == pytest.approx(float(measured), abs=0.02)


def group_loss(anchors, positives, temperature):
    """The objective of one group in float64, anchor after anchor."""
    losses = []
    for own, anchor in enumerate(anchors.astype(np.float64)):
        logits = [float(np.dot(anchor, positive)) / temperature for positive in positives.astype(np.float64)]
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[own])
    return sum(losses) / len(losses)


def test_pair_loss_is_the_mean_of_its_groups():
    # Not a multiple of how many groups are computed at once.
    embeddings, labels = clustered(4, [30, 50, 20])
    groups = np.arange(300, dtype=np.int32)
    pairs = jax.jit(sampling.draw)(jax.random.key(0), np.int32(0), groups, sampling.class_index(labels, 3))
    losses = [group_loss(embeddings[a], embeddings[p], 0.2) for a, p in zip(*map(np.asarray, pairs), strict=True)]
    assert metrics.pair_loss(embeddings, labels, 0.2, num_groups=300) == pytest.approx(np.mean(losses), rel=1e-6)


def test_pair_loss_estimates_the_mean_over_every_group():
    embeddings, labels = clustered(2, [4, 3, 2], dim=3)
    pairs_by_class = [list(itertools.permutations(np.flatnonzero(labels == label), 2)) for label in range(3)]
    losses = [
        group_loss(embeddings[[a for a, _ in group]], embeddings[[p for _, p in group]], 0.2)
        for group in itertools.product(*pairs_by_class)
    ]
    standard_error = np.std(losses) / np.sqrt(4096)
    assert metrics.pair_loss(embeddings, labels, 0.2) == pytest.approx(np.mean(losses), abs=4 * standard_error)
    collapsed = np.ones((9, 1), np.float32)
    assert metrics.pair_loss(collapsed, labels, 0.2) == pytest.approx(math.log(3))


def test_auroc_equals_scikit_learn_s_with_ties():
    rng = np.random.default_rng(5)
    for high in (5, 10_000):
        positives, negatives = rng.integers(2, high, 300), rng.integers(0, high, 200)
        truth = np.repeat([1, 0], [300, 200])
        expected = roc_auc_score(truth, np.concatenate([positives, negatives]))
        assert metrics.auroc(positives, negatives) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    assert metrics.auroc(np.array([2.0]), np.array([1.0, 2.0])) == 0.75
    assert math.isnan(metrics.auroc(np.array([]), np.array([1.0])))
