"""Which images make a batch: drawn on the device, from nothing but a key, a step and a group's number.

A group is a pair of images for each of C classes. Where classes are not told, all images are of one.
"""

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax


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


def draw(key: jax.Array, step: jax.Array, groups: jax.Array, index: ClassIndex, images: int = 2) -> jax.Array:
    """Draws one image or two different ones of each class for each group, uniformly.

    A group's images depend on (key, step, its number) alone, so they are the same on any number of devices.

    Args:
      key: the stream's key.
      step: int32 scalar.
      groups: int32 [G], the numbers of the groups within the global batch.
      index: the training images', with at least so many of each class.
      images: 1 or 2 of each class.

    Returns:
      int32 [images, G, C], indices of images.
    """
    index = jax.tree.map(jnp.asarray, index)
    # The second is drawn among the others: numbers from the first's on stand for the next image.
    choices = jnp.stack([index.counts, index.counts - 1][:images])

    def of_group(group):
        group_key = jax.random.fold_in(jax.random.fold_in(key, step), group)
        first, *other = jax.random.randint(group_key, choices.shape, 0, choices)
        drawn = [first] + [jnp.where(number >= first, number + 1, number) for number in other]
        return index.order[index.starts[None] + jnp.stack(drawn)]

    return jax.vmap(of_group, out_axes=1)(groups)


def shuffle(key: jax.Array, epoch: jax.Array, index: ClassIndex) -> ClassIndex:
    """Returns the index with every class's images in an order drawn uniformly, of (key, epoch) alone."""
    index = jax.tree.map(jnp.asarray, index)
    ranks = jax.random.bits(jax.random.fold_in(key, epoch), index.order.shape)
    classes = jnp.searchsorted(index.starts, jnp.arange(len(ranks)), side='right')
    return index.replace(order=lax.sort((classes, ranks, index.order), num_keys=2)[2])


def deal(index: ClassIndex, step: jax.Array, groups: jax.Array, groups_per_batch: int, images: int = 2) -> jax.Array:
    """Deals images out in their index's order, so many of each class to every group of an epoch, each image once.

    Args:
      index: as of `shuffle`, with images for all of the epoch's groups in each class.
      step: int32 scalar, within the epoch.
      groups: int32 [G], the numbers of the groups within the global batch.
      groups_per_batch: of the global batch.
      images: how many of each class.

    Returns:
      int32 [images, G, C], indices of images.
    """
    first = images * (step * groups_per_batch + groups)
    numbers = jnp.arange(images)[:, None, None] + first[None, :, None]
    return index.order[index.starts[None, None] + numbers]


def images_of_class(config: ml_collections.ConfigDict) -> int:
    """Returns how many images of a class make a pair: two, or one that is seen twice."""
    return 2 if config.pairs == 'class' else 1


def epoch_pairs(
    config: ml_collections.ConfigDict, key: jax.Array, first_step: jax.Array, groups: jax.Array, index: ClassIndex
) -> jax.Array:
    """Draws all pairs of an epoch.

    Args:
      config: the run's.
      key: the stream's key.
      first_step: int32 scalar, the epoch's first.
      groups: int32 [G], the numbers of the groups within the global batch.
      index: the training images', by classes; where pairs are views, by which classes is not looked at.

    Returns:
      int32 [batches_per_epoch, 2, G, C], indices of images; C is 1 where pairs are views of any image.
    """
    index = jax.tree.map(jnp.asarray, index)
    if config.pairs == 'views':
        index = index.replace(starts=jnp.zeros(1, jnp.int32), counts=jnp.sum(index.counts)[None])
    images, steps = images_of_class(config), jnp.arange(config.batches_per_epoch)
    if config.with_replacement:
        drawn = jax.vmap(lambda step: draw(key, first_step + step, groups, index, images))(steps)
    else:
        index = shuffle(key, first_step // config.batches_per_epoch, index)
        drawn = jax.vmap(lambda step: deal(index, step, groups, config.groups_per_batch, images))(steps)
    return jnp.broadcast_to(drawn, (len(steps), 2, *drawn.shape[2:]))


def labels(config: ml_collections.ConfigDict, pairs: jax.Array) -> jax.Array:
    """Returns what tells who is alike: the class of each pair, or its image where pairs are views of any image.

    Args:
      config: the run's.
      pairs: int32 [G, 2, C], indices of images.

    Returns:
      int32 [G, C].
    """
    first = pairs[:, 0]
    return first if config.pairs == 'views' else jnp.broadcast_to(jnp.arange(first.shape[1]), first.shape)
