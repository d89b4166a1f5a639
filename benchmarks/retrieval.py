"""Retrieval figures beside pytorch-metric-learning's AccuracyCalculator.

Libraries are imported where they are used: each contender's process has its own.
"""

import numpy as np

from benchmarks import harness, results
from benchmarks.harness import Contender, ContenderFailed

TITLE = 'Retrieval figures'
_NUM_CLASSES, _IMAGES_OF_CLASS = 10, 1000
_DIMENSIONS = (8, 128)
_TOLERANCE = 1e-6
_NAMES = {  # ours: theirs
    'precision_at_1': 'precision_at_1',
    'r_precision': 'r_precision',
    'map_at_r': 'mean_average_precision_at_r',
}
_NOTES = f"""\
A repetition scores {_NUM_CLASSES * _IMAGES_OF_CLASS:,} embeddings among one another, {_NUM_CLASSES} classes of
{_IMAGES_OF_CLASS:,}, the search for neighbours included. Both give precision at 1, R-Precision and MAP@R;
`simclr_cifar.metrics.retrieval` also gives precision at 10, recall at 1, 2, 4 and 8 and the vote of the 200 nearest.
AccuracyCalculator is asked for those three only, with k='max_bin_count' and a faiss IndexFlatIP.
"""


def embeddings(dimensions: int):
    """Returns (float32 [N, dimensions] of unit norm, scattered around a centre a class, labels int [N])."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(_NUM_CLASSES), _IMAGES_OF_CLASS)
    centres = rng.standard_normal((_NUM_CLASSES, dimensions), np.float32)
    scattered = centres[labels] + 1.5 * rng.standard_normal((len(labels), dimensions), np.float32)
    return scattered / np.linalg.norm(scattered, axis=1, keepdims=True), labels


def ours(dimensions: int):
    """A repetition returns the figures."""
    from simclr_cifar import metrics

    vectors, labels = embeddings(dimensions)
    return lambda: metrics.retrieval(vectors, labels)


def accuracy_calculator(dimensions: int):
    """A repetition returns the figures, under their names there."""
    import faiss
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import FaissKNN

    vectors, labels = (torch.from_numpy(part) for part in embeddings(dimensions))
    calculator = AccuracyCalculator(
        include=tuple(_NAMES.values()),
        k='max_bin_count',
        knn_func=FaissKNN(index_init_fn=faiss.IndexFlatIP),
    )
    return lambda: calculator.get_accuracy(vectors, labels, vectors, labels, ref_includes_query=True)


def measure() -> str:
    """Returns the section; the figures that both give are compared.

    Raises:
      ContenderFailed: they differ.
    """
    parts = [results.environment(), _NOTES.strip(), results.reading()]
    for dimensions in _DIMENSIONS:
        measured = harness.alternate(
            [
                Contender('simclr_cifar', 'benchmarks.retrieval:ours', {'dimensions': dimensions}),
                Contender(
                    'pytorch-metric-learning', 'benchmarks.retrieval:accuracy_calculator', {'dimensions': dimensions}
                ),
            ]
        )
        found, theirs = (measurement.figures for measurement in measured)
        difference = max(abs(found[name] - theirs[their_name]) for name, their_name in _NAMES.items())
        if not difference <= _TOLERANCE:
            raise ContenderFailed(f'figures differ by {difference}: ours {found}, theirs {theirs}')
        figures = ', '.join(f'{name} {found[name]:.4f}' for name in _NAMES)
        parts.append(
            f'{dimensions} dimensions: {figures}; the two differ by at most {difference:.0e}.\n\n'
            + results.comparison(measured, 'scoring')
        )
    return '\n\n'.join(parts)
