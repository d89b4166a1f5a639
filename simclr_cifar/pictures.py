"""Which images of a split are worth a look, and what to look at them for."""

import numpy as np
from PIL import Image

from simclr_cifar.data import Dataset

# Queries of each class in the gallery: the worst, one of the middle and the best. Where there are no classes, some.
_GALLERY_WORST = 3
_GALLERY_QUERIES = 20
_PAIRS_OF_CELL = 3
_PROJECTED = 600
_LARGEST_SIDE = 96  # pixels


def worth_a_look(
    dataset: Dataset, embeddings: np.ndarray, nearest: np.ndarray, similarities: np.ndarray, votes: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns images worth a look, each once, and what to look at them for.

    Positions are those in image_index, int [M], the images' indices within the split; with it come image_label, int [M]
    and images, uint8 [M, H, W, C], as `small` makes them. gallery_query [Q], gallery_neighbours [Q, k] and
    gallery_similarities [Q, k] are some queries of every class, those with the fewest right neighbours first, or, where
    there are no classes, some from the one most like another image to the one least. cell_query, cell_neighbour and
    cell_similarity [P] are pairs behind the cells of the 'neighbours' confusion matrix, the most similar first.
    projection_picture [T], projection_embedding float32 [T, D] and projection_vote [T] are a sample to be drawn.
    """
    labels = dataset.labels
    right = np.sum(labels[nearest] == labels[:, None], axis=1)
    chosen = []
    for label in range(len(dataset.class_names)):
        members = np.flatnonzero(labels == label)
        # Among equally bad queries, those most certain of their wrong neighbours.
        ranked = members[np.lexsort((members, -similarities[members, 0], right[members]))]
        positions = {*range(_GALLERY_WORST), len(ranked) // 2, len(ranked) - 1}
        if not dataset.has_classes:
            positions = set(np.linspace(0, len(ranked) - 1, _GALLERY_QUERIES).astype(int))
        chosen += [ranked[position] for position in sorted(positions) if position < len(ranked)]
    # Where there are no classes, they stay in the order of their nearest image's similarity.
    query = np.array(sorted(chosen, key=lambda index: (right[index], index)) if dataset.has_classes else chosen)
    cell_query, cell_neighbour, cell_similarity = _cell_pairs(dataset, nearest, similarities)
    sampled = np.random.default_rng(0).permutation(len(labels))[:_PROJECTED]

    index, position = np.unique(
        np.concatenate([query, nearest[query].ravel(), cell_query, cell_neighbour, sampled]), return_inverse=True
    )
    bounds = np.cumsum([len(query), nearest[query].size, len(cell_query), len(cell_neighbour)])
    gallery_query, gallery_neighbours, cell_query, cell_neighbour, sampled_position = np.split(position, bounds)
    return {
        'image_index': index,
        'image_label': labels[index],
        'images': small(dataset.images[index]),
        'gallery_query': gallery_query,
        'gallery_neighbours': gallery_neighbours.reshape(len(query), -1),
        'gallery_similarities': similarities[query],
        'cell_query': cell_query,
        'cell_neighbour': cell_neighbour,
        'cell_similarity': cell_similarity,
        'projection_picture': sampled_position,
        'projection_embedding': embeddings[sampled],
        'projection_vote': votes[sampled],
    }


def small(images: np.ndarray) -> np.ndarray:
    """Returns images, uint8 [M, H, W, 3], or, where these are larger than a page shows them, smaller ones."""
    height, width = images.shape[1:3]
    if max(height, width) <= _LARGEST_SIDE or not len(images):
        return images
    size = [max(1, side * _LARGEST_SIDE // max(height, width)) for side in (width, height)]
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in images])


def _cell_pairs(dataset: Dataset, nearest: np.ndarray, similarities: np.ndarray):
    """Returns (query [P], neighbour [P], similarity [P]): of every cell its most similar pairs, each query once."""
    query = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    neighbour, similarity = nearest.ravel(), similarities.ravel()
    cell = dataset.labels[query].astype(np.int64) * len(dataset.class_names) + dataset.labels[neighbour]
    # Of a query's neighbours in a cell the first, which is the most similar.
    _, first = np.unique(cell * len(nearest) + query, return_index=True)
    order = first[np.lexsort((first, -similarity[first], cell[first]))]
    starts = np.searchsorted(cell[order], cell[order])
    kept = order[np.arange(len(order)) - starts < _PAIRS_OF_CELL]
    return query[kept], neighbour[kept], similarity[kept]
