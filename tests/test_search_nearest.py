import numpy as np
import pytest

from simclr_cifar import neighbours
from simclr_cifar.search import nearest


def by_sorting(queries, gallery, k):
    """Similarities and rows of the k largest products, in float64, equals by lower row."""
    similarities = queries.astype(np.float64) @ gallery.astype(np.float64).T
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


@pytest.mark.parametrize('rows_at_once', [7, 64, 2**16])
@pytest.mark.parametrize('k', [1, 5, 100])
def test_what_is_nearest_equals_sorting(monkeypatch, rows_at_once, k):
    monkeypatch.setattr(nearest, '_ROWS_AT_ONCE', rows_at_once)
    monkeypatch.setattr(nearest, '_QUERIES_AT_ONCE', 4)
    rng = np.random.default_rng(0)
    # Small whole numbers: products are exact, and many are equal.
    gallery = rng.integers(-2, 3, (100, 6)).astype(np.float32)
    queries = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    similarities, rows = nearest.top_k(queries, gallery, k)
    expected = by_sorting(queries, gallery, k)
    np.testing.assert_array_equal(similarities, expected[0])
    np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize(('rows', 'queries'), [(19, 1), (997, 1), (70_000, 3), (300, 70)])
def test_copies_are_as_similar_wherever_they_stand(rows, queries):
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.normal(size=(1, 128)).astype(np.float32), rows, axis=0)
    similarities, found = nearest.top_k(rng.normal(size=(queries, 128)).astype(np.float32), gallery, 5)
    assert np.ptp(similarities, axis=1).max() == 0
    if rows <= 5 + nearest._CANDIDATES:
        np.testing.assert_array_equal(found, np.tile(np.arange(5), (queries, 1)))


def test_some_rows_are_chosen_from():
    rng = np.random.default_rng(0)
    gallery, queries = rng.normal(size=(200, 6)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    only = np.flatnonzero(rng.random(200) < 0.3).astype(np.int32)
    similarities, rows = nearest.top_k(queries, gallery, 7, only)
    expected = by_sorting(queries, gallery[only], 7)
    np.testing.assert_allclose(similarities, expected[0], atol=1e-5)
    np.testing.assert_array_equal(rows, only[expected[1]])


def test_an_accelerator_finds_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    gallery, queries = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (300, 5))
    expected = nearest.top_k(queries, gallery, 10)
    monkeypatch.setattr(nearest, '_has_accelerator', lambda: True)
    monkeypatch.setattr(neighbours, '_select_on_host', lambda: False)
    found = nearest.top_k(queries, nearest.prepared(gallery), 10)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_no_queries_have_no_neighbours():
    similarities, rows = nearest.top_k(np.zeros((0, 3), np.float32), np.ones((4, 3), np.float32), 2)
    assert similarities.shape == rows.shape == (0, 2)


@pytest.mark.parametrize('k', [0, 5])
def test_k_is_within_the_rows(k):
    with pytest.raises(ValueError, match='between 1 and the 4 rows'):
        nearest.top_k(np.ones((1, 3), np.float32), np.ones((4, 3), np.float32), k)
