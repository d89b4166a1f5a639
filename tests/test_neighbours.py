import numpy as np
import pytest

from simclr_cifar import neighbours


def by_sorting(queries, gallery, k, exclude_self):
    """All similarities in float64, sorted by (similarity descending, index ascending)."""
    similarities = queries.astype(np.float64) @ gallery.astype(np.float64).T
    if exclude_self:
        np.fill_diagonal(similarities, -np.inf)
    order = np.argsort(-similarities, axis=1, kind='stable')[:, :k]
    return np.take_along_axis(similarities, order, axis=1), order


@pytest.fixture(params=[True, False], ids=['selected on the host', 'selected on the device'])
def selection(request, monkeypatch):
    monkeypatch.setattr(neighbours, '_select_on_host', lambda: request.param)


@pytest.fixture(params=[(256, 256), (1024, 65536)], ids=['small chunks', 'one chunk'])
def chunks(selection, request, monkeypatch):
    monkeypatch.setattr(neighbours, '_QUERY_CHUNK', request.param[0])
    monkeypatch.setattr(neighbours, '_HOST_QUERY_CHUNK', request.param[0])
    monkeypatch.setattr(neighbours, '_GALLERY_CHUNK', request.param[1])


@pytest.mark.parametrize('k', [1, 10, 300])
@pytest.mark.parametrize('exclude_self', [True, False])
def test_top_k_equals_sorting_with_many_ties(chunks, k, exclude_self):
    # Small whole numbers: products and sums are exact, and ties are everywhere.
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (700, 5)).astype(np.float32)
    gallery = queries if exclude_self else rng.integers(-2, 3, (601, 5)).astype(np.float32)
    similarities, indices = neighbours.top_k(queries, None if exclude_self else gallery, k)
    expected_similarities, expected_indices = by_sorting(queries, gallery, k, exclude_self)
    np.testing.assert_array_equal(similarities, expected_similarities)
    np.testing.assert_array_equal(indices, expected_indices)
    assert indices.dtype == np.int32


def test_self_is_left_out_by_index_not_by_rank(chunks):
    # Every image three times: a query's copies are its nearest, itself is not among them.
    rng = np.random.default_rng(1)
    embeddings = np.tile(rng.normal(size=(300, 8)), (3, 1)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    _, indices = neighbours.top_k(embeddings, None, 2)
    for query, found in enumerate(indices):
        copies = [query % 300 + 300 * copy for copy in range(3)]
        assert sorted(found) == [index for index in copies if index != query]


def test_copies_are_exactly_as_similar_wherever_they_stand(chunks):
    rng = np.random.default_rng(2)
    item = rng.normal(size=(1, 24)).astype(np.float32)
    gallery = rng.normal(size=(1000, 24)).astype(np.float32)
    places = [0, 7, 255, 256, 511, 998, 999]
    gallery[places] = item
    similarities, indices = neighbours.top_k(np.concatenate([item] * 3), gallery, len(places))
    np.testing.assert_array_equal(indices, [places] * 3)
    assert len(np.unique(similarities)) == 1


def test_all_but_the_query_can_be_asked_for(chunks):
    queries = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    _, indices = neighbours.top_k(queries, None, 4)
    assert [sorted(row) for row in indices.tolist()] == [[i for i in range(5) if i != query] for query in range(5)]


def both_selections(monkeypatch, queries, gallery, k):
    found = []
    for on_host in (True, False):
        monkeypatch.setattr(neighbours, '_select_on_host', lambda on_host=on_host: on_host)
        found.append(neighbours.top_k(queries, gallery, k))
    return found


@pytest.mark.parametrize('exclude_self', [True, False])
@pytest.mark.parametrize('kind', ['random', 'sorted', 'collapsed', 'signed zeros'])
def test_both_selections_find_the_same_bit_by_bit(monkeypatch, kind, exclude_self):
    # Several chunks, the last not full, and more neighbours than the last one holds.
    monkeypatch.setattr(neighbours, '_GALLERY_CHUNK', 512)
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(300, 8)).astype(np.float32)
    gallery = rng.normal(size=(1300, 8)).astype(np.float32)
    if kind == 'sorted':
        gallery = gallery[np.argsort(gallery @ queries[0])]
    if kind == 'collapsed':
        queries, gallery = (np.tile(rows[:1], (len(rows), 1)) for rows in (queries, gallery))
    if kind == 'signed zeros':
        # Products with one coordinate keep a zero's sign.
        queries, gallery = queries[:, :1], np.where(rng.random((1300, 1)) < 0.5, np.float32(0), np.float32(-0.0))
    queries, gallery = (gallery, None) if exclude_self else (queries, gallery)
    (similarities, indices), (expected_similarities, expected_indices) = both_selections(
        monkeypatch, queries, gallery, 299
    )
    np.testing.assert_array_equal(similarities, expected_similarities)
    np.testing.assert_array_equal(indices, expected_indices)
    if kind == 'signed zeros' and not exclude_self:
        np.testing.assert_array_equal(indices, np.tile(np.arange(299), (300, 1)))
    assert similarities.dtype == np.float32 and indices.dtype == np.int32


def test_what_is_not_a_number_ends_in_figures_not_in_an_error(chunks):
    queries = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
    queries[7] = np.nan
    queries[250:] = np.nan
    similarities, indices = neighbours.top_k(queries, None, 100)
    assert similarities.shape == indices.shape == (300, 100)
    assert indices.min() >= 0 and indices.max() < 300


def test_a_cpu_selects_on_the_host():
    assert neighbours._select_on_host()


@pytest.mark.parametrize(('k', 'gallery'), [(0, 5), (6, 5), (5, None)])
def test_k_beyond_the_gallery_is_refused(k, gallery):
    queries = np.ones((5, 2), np.float32)
    with pytest.raises(ValueError, match='k='):
        neighbours.top_k(queries, None if gallery is None else queries, k)
