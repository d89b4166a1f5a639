"""Exact nearest neighbours beside faiss and scikit-learn.

Libraries are imported where they are used: each contender's process has its own.
"""

import dataclasses

import numpy as np

from benchmarks import harness, results
from benchmarks.harness import Contender, ContenderFailed

TITLE = 'Exact nearest neighbours'
_TOLERANCE = 1e-5  # of a similarity
_CASES = [  # queries, gallery (0: the queries themselves, each left out of its own), dimensions, k
    (10_000, 50_000, 128, 200),
    (10_000, 50_000, 8, 200),
    (10_000, 0, 128, 999),
]
_NOTES = """\
A repetition finds the k most similar of the gallery, by inner product, for every query; vectors are float32 of unit
norm around 100 centres. `faiss.IndexFlatIP` is built before, scikit-learn's `NearestNeighbors(algorithm='brute')`
fitted before. Leave-one-out: each query is left out of its own neighbours; faiss is asked for k + 1, and
the query is taken out within the time.
"""


def embeddings(count: int, dimensions: int, seed: int) -> np.ndarray:
    """Returns vectors of unit norm, float32 [count, dimensions], around 100 centres that all seeds share."""
    centres = np.random.default_rng(0).standard_normal((100, dimensions), np.float32)
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(len(centres), size=count)] + rng.standard_normal((count, dimensions), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _vectors(queries: int, gallery: int, dimensions: int):
    return embeddings(queries, dimensions, 1), embeddings(gallery, dimensions, 2) if gallery else None


def ours(queries: int, gallery: int, dimensions: int, k: int):
    """A repetition returns 'similarities', float32 [queries, k]."""
    from simclr_cifar import neighbours

    queries, gallery = _vectors(queries, gallery, dimensions)
    return lambda: {'similarities': neighbours.top_k(queries, gallery, k)[0]}


def faiss_flat(queries: int, gallery: int, dimensions: int, k: int):
    """As `ours`."""
    import faiss

    queries, gallery = _vectors(queries, gallery, dimensions)
    index = faiss.IndexFlatIP(dimensions)
    index.add(queries if gallery is None else gallery)

    def run():
        if gallery is not None:
            return {'similarities': index.search(queries, k)[0]}
        similarities, indices = index.search(queries, k + 1)
        others = indices != np.arange(len(queries))[:, None]
        # Where a query is not among its own k + 1 nearest, the last is one too many.
        others[others.all(axis=1), -1] = False
        # Both, as a caller needs both.
        similarities, indices = similarities[others].reshape(-1, k), indices[others].reshape(-1, k)
        return {'similarities': similarities}

    return run


def scikit_learn(queries: int, gallery: int, dimensions: int, k: int):
    """As `ours`, by Euclidean distance, whose order is the same for unit norm."""
    from sklearn.neighbors import NearestNeighbors

    queries, gallery = _vectors(queries, gallery, dimensions)
    nearest = NearestNeighbors(n_neighbors=k, algorithm='brute', n_jobs=-1)
    nearest.fit(queries if gallery is None else gallery)

    def run():
        # Without queries, each is left out of its own neighbours.
        distances, _ = nearest.kneighbors(None if gallery is None else queries)
        return {'similarities': 1 - distances**2 / 2}

    return run


def measure() -> str:
    """Returns the section; each contender's similarities are compared with ours.

    Raises:
      ContenderFailed: they differ.
    """
    contenders = [
        Contender('simclr_cifar', 'benchmarks.neighbours:ours'),
        Contender('faiss, IndexFlatIP', 'benchmarks.neighbours:faiss_flat'),
        Contender('scikit-learn, brute', 'benchmarks.neighbours:scikit_learn'),
    ]
    parts = [results.environment(), _NOTES.strip(), results.reading()]
    for queries, gallery, dimensions, k in _CASES:
        arguments = {'queries': queries, 'gallery': gallery, 'dimensions': dimensions, 'k': k}
        measured = harness.alternate([dataclasses.replace(one, arguments=arguments) for one in contenders])
        expected, differences = measured[0].figures['similarities'], []
        for peer in measured[1:]:
            difference = np.abs(peer.figures['similarities'] - expected).max()
            if not difference <= _TOLERANCE:
                raise ContenderFailed(f'{peer.title}: similarities differ from ours by {difference}')
            differences.append(f'{peer.title} {difference:.0e}')
        among = f'a gallery of {gallery:,}' if gallery else 'one another, leave-one-out'
        parts.append(
            f'{queries:,} queries, {among}, {dimensions} dimensions, k = {k}. Similarities differ from ours by '
            f'at most: {"; ".join(differences)}.\n\n' + results.comparison(measured, 'search')
        )
    return '\n\n'.join(parts)
