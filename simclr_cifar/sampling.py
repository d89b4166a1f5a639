"""Which images make a batch: drawn on the device, from nothing but a key, a step and a group's number."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class ClassIndex:
    """Where each class's images are.

    Attributes:
      order: int32 [N], the images' indices, class after class.
      starts: int32 [C], where each class begins in `order`.
      counts: int32 [C], how many images each class has.
    """

    order: jax.Array
    starts: jax.Array
    counts: jax.Array


def class_index(labels: np.ndarray, num_classes: int) -> ClassIndex:
    """Returns the index of labels, int [N], each in [0, num_classes)."""
    counts = np.bincount(labels, minlength=num_classes).astype(np.int32)
    return ClassIndex(
        order=np.argsort(labels, kind='stable').astype(np.int32),
        starts=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
    )


def pairs(key: jax.Array, step: jax.Array, groups: jax.Array, index: ClassIndex) -> tuple[jax.Array, jax.Array]:
    """Draws one anchor and one positive per class: two different images of it, uniformly.

    A group's pairs depend on (key, step, its number) alone, so they are the same on any number of devices.

    Args:
      key: the stream's key.
      step: int32 scalar.
      groups: int32 [G], the numbers of the groups within the global batch.
      index: the training images', with at least 2 of each class.

    Returns:
      (anchors, positives): int32 [G, C] each, indices of images.
    """

    index = jax.tree.map(jnp.asarray, index)

    def group_pairs(group):
        group_key = jax.random.fold_in(jax.random.fold_in(key, step), group)
        # The positive is drawn among the others: numbers from the anchor's on stand for the next image.
        choices = jnp.stack([index.counts, index.counts - 1])
        anchor, other = jax.random.randint(group_key, choices.shape, 0, choices)
        positive = jnp.where(other >= anchor, other + 1, other)
        return index.order[index.starts + anchor], index.order[index.starts + positive]

    return jax.vmap(group_pairs)(groups)
