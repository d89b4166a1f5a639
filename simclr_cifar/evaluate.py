"""From parameters and datasets to figures, confusion matrices and a gallery, and their files."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable

import ml_collections
import numpy as np
from jax.sharding import Mesh

from simclr_cifar import metrics, neighbours, parallel, step
from simclr_cifar.data import Dataset
from simclr_cifar.files import RunFolder, write, write_json

GALLERY_NEIGHBOURS = 10
# Of each class: the worst queries, one of the middle and the best.
_GALLERY_WORST = 3


@dataclasses.dataclass
class Evaluation:
    """What one checkpoint is worth.

    Attributes:
      figures: '<split>/<metric>' to its value.
      confusions: (split, kind) to int64 [C, C]; a row is a query's class, a column the class of its 10 nearest images
        of the same split (kind 'neighbours') or of the vote of its 200 nearest training images (kind 'knn').
      gallery: arrays of queries and their nearest images, of the last split; see `_gallery`.
    """

    figures: dict[str, float]
    confusions: dict[tuple[str, str], np.ndarray]
    gallery: dict[str, np.ndarray]


def make_evaluate(config: ml_collections.ConfigDict, mesh: Mesh, splits: dict[str, Dataset]) -> Callable:
    """Returns (params, split names) -> Evaluation, on every image of the splits named.

    Args:
      config: the run's.
      mesh: where the encoder runs.
      splits: 'train', whose images are the gallery of the kNN vote, and those to be evaluated.
    """
    encode = step.compile_encode(config, mesh)

    def evaluate(params, names: Iterable[str]) -> Evaluation:
        params = parallel.replicate(params, mesh)

        def embed(dataset):
            return parallel.in_padded_batches(
                lambda images: encode(params, images), dataset.images, config.eval_batch_size, mesh
            )

        gallery = embed(splits['train'])
        result = Evaluation({}, {}, {})
        for name in names:
            _evaluate_split(name, splits[name], embed(splits[name]), splits['train'], gallery, result)
        return result

    return evaluate


def _evaluate_split(
    name: str, dataset: Dataset, embeddings: np.ndarray, train: Dataset, gallery: np.ndarray, result: Evaluation
) -> None:
    """Adds the figures, confusion matrices and gallery of one split to the result."""
    labels, num_classes = dataset.labels, len(dataset.class_names)
    relevant = metrics.relevant_counts(labels, labels, leave_one_out=True)
    depth = min(metrics.retrieval_depth(relevant), len(labels) - 1)
    similarities, indices = neighbours.top_k(embeddings, None, depth)
    figures = metrics.from_neighbours(labels[indices], labels, relevant)

    _, train_indices = neighbours.top_k(embeddings, gallery, min(metrics.KNN_K, len(gallery)))
    votes = metrics.knn_vote(train.labels[train_indices], num_classes)
    figures[f'knn_accuracy_k{metrics.KNN_K}'] = float(np.mean(votes == labels))
    figures['pair_accuracy'] = metrics.pair_accuracy(embeddings, labels)

    result.figures |= {f'{name}/{metric}': value for metric, value in figures.items()}
    nearest = indices[:, :GALLERY_NEIGHBOURS]
    result.confusions[name, 'neighbours'] = metrics.confusion(labels, labels[nearest], num_classes)
    result.confusions[name, 'knn'] = metrics.confusion(labels, votes, num_classes)
    result.gallery = _gallery(name, dataset, nearest, similarities[:, :GALLERY_NEIGHBOURS])


def _gallery(name: str, dataset: Dataset, nearest: np.ndarray, similarities: np.ndarray) -> dict[str, np.ndarray]:
    """Returns some queries of every class, those with the fewest right neighbours first.

    The arrays are split (its name), query and neighbours (indices within the split, [Q] and [Q, k]), query_label and
    neighbour_labels, similarities [Q, k], query_image and neighbour_images (uint8, [Q, ...] and [Q, k, ...]).
    """
    right = np.sum(dataset.labels[nearest] == dataset.labels[:, None], axis=1)
    chosen = []
    for label in range(len(dataset.class_names)):
        members = np.flatnonzero(dataset.labels == label)
        # Among equally bad queries, those most certain of their wrong neighbours.
        ranked = members[np.lexsort((members, -similarities[members, 0], right[members]))]
        positions = {*range(_GALLERY_WORST), len(ranked) // 2, len(ranked) - 1}
        chosen += [ranked[position] for position in sorted(positions) if position < len(ranked)]
    query = np.array(sorted(chosen, key=lambda index: (right[index], index)))
    return {
        'split': np.array(name),
        'query': query,
        'neighbours': nearest[query],
        'query_label': dataset.labels[query],
        'neighbour_labels': dataset.labels[nearest[query]],
        'similarities': similarities[query],
        'query_image': dataset.images[query],
        'neighbour_images': dataset.images[nearest[query]],
    }


def save(run: RunFolder, epoch: int, evaluation: Evaluation, class_names: tuple[str, ...]) -> None:
    """Writes eval/<epoch>/: confusion.csv, gallery.npz and, last, metrics.json, which marks the whole as finished."""
    folder = run.evaluation(epoch)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator='\n')
    rows.writerow(('split', 'kind', 'class', 'other_class', 'count', 'row_percent'))
    for (split, kind), matrix in evaluation.confusions.items():
        percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        for row, name in enumerate(class_names):
            for column, other in enumerate(class_names):
                rows.writerow((split, kind, name, other, matrix[row, column], f'{percent[row, column]:.4f}'))
    write(folder / 'confusion.csv', table.getvalue())
    packed = io.BytesIO()
    np.savez_compressed(packed, **evaluation.gallery)
    write(folder / 'gallery.npz', packed.getvalue())
    write_json(folder / 'metrics.json', evaluation.figures)
