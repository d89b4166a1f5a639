"""Images without classes: an encoder is scored by whether it knows an image again in another augmented view of it."""

import dataclasses
from collections.abc import Callable

import ml_collections
import numpy as np

from simclr_cifar import augment, neighbours, representation
from simclr_cifar.config import InputError
from simclr_cifar.data import Dataset, Rows


@dataclasses.dataclass(frozen=True)
class View:
    """A view of every image, augmented when it is read; the same at every reading and in every run.

    Attributes:
      see: as of `augment.make_see`.
      images: uint8 [N, H, W, C].
      epoch: which view, as of that epoch.
    """

    see: Callable
    images: np.ndarray | Rows
    epoch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.see(np.asarray(self.images[rows]), rows.start or 0, self.epoch)


def require_fit(config: ml_collections.ConfigDict) -> None:
    """Checks that an image's views differ.

    Raises:
      InputError: they do not, to embeddings of an image and its mirror image.
    """
    if config.flip_averaging and set(augment.operations(config)) <= {'flip', 'alternating_flip'}:
        raise InputError(
            f'--config.augmentation={config.augmentation}: only flips, to which --config.flip_averaging is blind, and '
            "images without classes are told from each other by their views; add another operation, as in 'simclr'"
        )


def with_views(config: ml_collections.ConfigDict, splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Returns the splits and, of those that are scored, two views, as '<split>, view 0' and '<split>, view 1'."""
    see = augment.make_see(config)
    seen = {
        f'{name}, view {epoch}': dataclasses.replace(dataset, images=View(see, dataset.images, epoch))
        for name, dataset in splits.items()
        if name not in ('train', 'unseen')
        for epoch in range(2)
    }
    return splits | seen


def known_again(name: str, embed: Callable) -> np.ndarray:
    """Returns whether each image's one view finds its other view as the nearest of all images' other views: bool [N].

    Args:
      name: of the split.
      embed: name of a split of `with_views` -> its embeddings, float32 [N, D], unit norm.
    """
    found = neighbours.top_k(embed(f'{name}, view 0'), embed(f'{name}, view 1'), 1)[1][:, 0]
    return found == np.arange(len(found))


def figures(name: str, embed: Callable) -> dict[str, float]:
    """Returns what tells one way to embed from another: view_accuracy, the share that is `known_again`."""
    return {'view_accuracy': float(np.mean(known_again(name, embed)))}


def all_figures(name: str, embed: Callable) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns (figures, figures of each image) of a split.

    Beside view_accuracy they are view_alignment, the mean squared distance of an image's two views, and uniformity and
    effective_rank of the images as they are.
    """
    known = known_again(name, embed)
    apart = embed(f'{name}, view 0') - embed(f'{name}, view 1')
    of_split = {
        'view_accuracy': float(np.mean(known)),
        'view_alignment': float(np.mean(np.sum(apart**2, axis=1, dtype=np.float64))),
        'uniformity': representation.uniformity(embed(name)),
        'effective_rank': representation.effective_rank(embed(name)),
    }
    return of_split, {'view_accuracy': known.astype(np.float32)}
