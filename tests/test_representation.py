import math

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from test_metrics import accuracy_calculator, clustered, on_a_grid

from simclr_cifar import representation


@pytest.mark.parametrize('kind', ['random', 'clustered', 'tied', 'duplicated'])
def test_clustering_equals_scikit_learn_and_pytorch_metric_learning(kind):
    embeddings, labels = on_a_grid(kind, 6, [120, 80, 50, 40])
    figures = representation.clustering(embeddings, labels, 4)
    clusters = KMeans(4, n_init=10, random_state=0).fit_predict(embeddings)
    assert figures['nmi'] == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-12)
    assert figures['ami'] == pytest.approx(adjusted_mutual_info_score(labels, clusters), abs=1e-12)
    expected = accuracy_calculator(1).get_accuracy(embeddings, labels, include=('NMI', 'AMI'))
    assert figures == pytest.approx({name.lower(): value for name, value in expected.items()}, abs=1e-12)
    assert (figures['ami'] > 0.5) == (kind == 'clustered')


def test_mutual_information_by_hand():
    # Two far clusters over classes in the proportions 3 : 1 and 0 : 4.
    embeddings = np.repeat([[0.0], [9.0]], 4, axis=0).astype(np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    information = 3 / 8 * math.log(2 * 3 / 3) + 1 / 8 * math.log(2 * 1 / 5) + 4 / 8 * math.log(2 * 4 / 5)
    entropies = math.log(2), -(3 / 8 * math.log(3 / 8) + 5 / 8 * math.log(5 / 8))
    assert representation.clustering(embeddings, labels, 2)['nmi'] == pytest.approx(information / (sum(entropies) / 2))


def test_collapsed_embeddings_make_fewer_clusters():
    labels = np.arange(60) % 3
    nothing = {'nmi': 0, 'ami': 0}
    assert representation.clustering(np.ones((60, 4), np.float32), labels, 3) == pytest.approx(nothing, abs=1e-12)
    # Two distinct points, three clusters.
    figures = representation.clustering(np.eye(2, dtype=np.float32)[np.minimum(labels, 1)], labels, 3)
    assert 0.5 < figures['ami'] < figures['nmi'] < 1


@pytest.mark.parametrize('num_classes', [2, 5])
@pytest.mark.parametrize('ridge', [0.01, 1.0, 100.0])
def test_linear_probe_equals_ridge_classifier(num_classes, ridge):
    # Unequal classes and a common offset: the intercept matters.
    embeddings, labels = clustered(7, list(range(60, 60 + 40 * num_classes, 40)), dim=6)
    embeddings = embeddings + np.float32(0.7)
    train, test = slice(0, len(labels) // 2), slice(len(labels) // 2, None)
    expected = RidgeClassifier(ridge).fit(embeddings[train], labels[train]).predict(embeddings[test])
    predicted = representation.linear_probe(embeddings[train], labels[train], embeddings[test], num_classes, ridge)
    np.testing.assert_array_equal(predicted, expected)
    assert 1 < len(np.unique(predicted))


def test_linear_probe_is_nearly_as_good_as_logistic_regression():
    embeddings, labels = clustered(8, [300, 300, 300, 300], dim=6, spread=0.6)
    train, test = slice(0, 600), slice(600, None)
    logistic = LogisticRegression().fit(embeddings[train], labels[train]).score(embeddings[test], labels[test])
    predicted = representation.linear_probe(embeddings[train], labels[train], embeddings[test], 4)
    assert np.mean(predicted == labels[test]) == pytest.approx(logistic, abs=0.03)
    assert 0.6 < logistic < 1


def test_linear_probe_of_collapsed_embeddings_predicts_the_most_frequent_class():
    predicted = representation.linear_probe(np.ones((5, 3), np.float32), np.array([0, 2, 2, 1, 2]), np.ones((2, 3)), 4)
    np.testing.assert_array_equal(predicted, [2, 2])


def test_alignment_and_uniformity_equal_double_loops():
    # More images than are computed at once, and not a multiple of it.
    embeddings, labels = clustered(9, [150, 100, 20, 1])
    distances = np.array([[np.sum((x - y) ** 2) for y in embeddings.astype(float)] for x in embeddings.astype(float)])
    different = ~np.eye(len(labels), dtype=bool)
    same_class = (labels[:, None] == labels[None, :]) & different
    assert representation.alignment(embeddings, labels) == pytest.approx(np.mean(distances[same_class]), rel=1e-9)
    expected = np.log(np.mean(np.exp(-2 * distances[different])))
    assert representation.uniformity(embeddings) == pytest.approx(expected, abs=1e-6)


def test_alignment_and_uniformity_by_hand():
    square = np.array([[1, 0], [-1, 0], [0, 1], [0, 1]], np.float32)
    assert representation.alignment(square, np.array([0, 0, 1, 1])) == pytest.approx((4 + 0) / 2)
    # Of 6 pairs one is at distance 0, one at squared distance 4 and four at 2.
    assert representation.uniformity(square) == pytest.approx(
        math.log((1 + math.exp(-8) + 4 * math.exp(-4)) / 6), abs=1e-6
    )
    assert representation.uniformity(square[:2]) == pytest.approx(-8, abs=1e-5)
    assert representation.uniformity(np.ones((300, 1), np.float32)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(representation.alignment(square, np.arange(4)))


def test_effective_rank_by_hand():
    assert representation.effective_rank(np.tile(np.eye(5, dtype=np.float32), (3, 1))) == pytest.approx(5)
    # Singular values 3 and 1.
    expected = math.exp(-(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4)))
    assert representation.effective_rank(np.diag([3.0, 1.0, 0.0])) == pytest.approx(expected)
    one = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    assert representation.effective_rank(np.tile(one, (400, 1))) == pytest.approx(1, abs=1e-9)
    assert representation.effective_rank(np.zeros((4, 3), np.float32)) == 1


def test_effective_rank_is_the_entropy_of_singular_values():
    # Not centred: a common offset counts.
    embeddings = clustered(10, [50, 50], dim=7)[0] + np.float32(0.5)
    shares = np.linalg.svd(embeddings.astype(float), compute_uv=False)
    shares /= shares.sum()
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert representation.effective_rank(embeddings) == pytest.approx(expected, rel=1e-9)
