"""A dataset's split as arrays in memory; class subsets by name; splits carved off."""

import dataclasses
import math

import ml_collections
import numpy as np

from simclr_cifar import cache, folders, sampling, shares, sources
from simclr_cifar.config import FOLDER, IMAGES, InputError


class Rows:
    """Rows of an array, copied when they are indexed, along the first axis: a memory-mapped array stays on disk.

    Args:
      array: [N, ...], or rows of one.
      indices: int [M], in any order.
    """

    def __init__(self, array: 'np.ndarray | Rows', indices: np.ndarray):
        if isinstance(array, Rows):
            array, indices = array._array, array._indices[indices]
        self._array, self._indices = array, indices

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._indices), *self._array.shape[1:]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, key) -> np.ndarray:
        return np.asarray(self._array[self._indices[key]])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a dataset.

    Attributes:
      name: the dataset's name.
      images: uint8 [N, H, W, C], to be indexed along the first axis; possibly memory-mapped and read-only.
      labels: int32 [N], each in [0, len(class_names)).
      class_names: what a person calls each label.
      description: what the images are and which copy of them this is.
    """

    name: str
    images: np.ndarray | Rows
    labels: np.ndarray
    class_names: tuple[str, ...]
    description: str

    @property
    def has_classes(self) -> bool:
        """Whether there are several, so that a label tells anything."""
        return len(self.class_names) > 1

    def take(self, indices: np.ndarray) -> 'Dataset':
        """Returns the dataset of these images, int [M], in this order."""
        return dataclasses.replace(self, images=Rows(self.images, indices), labels=self.labels[indices])


def load(
    name: str, split: str, data_dir: str | None = None, cache_dir: str | None = None, image_size: int = 0
) -> Dataset | None:
    """Returns a whole split, decoded; None: the dataset has no test split.

    Args:
      name: 'cifar10', 'digits', 'folder:PATH' of images in a sub-folder for each class, 'images:PATH' of images of no
        class, or another dataset's name in TFDS.
      split: 'train' or 'test'.
      data_dir: where TFDS keeps its datasets; None: the environment's TFDS_DATA_DIR, else TFDS's own default, the one
        place that a missing dataset is downloaded to.
      cache_dir: where decoded images are kept between runs; None: simclr_cifar in the user's cache folder.
      image_size: height and width in pixels that images are scaled to; 0: as they are.

    Raises:
      InputError: unknown name; data_dir missing, empty, half-prepared, truncated or unreadable; images of several
        sizes, without an image_size.
    """
    if name == 'digits':
        arrays = sources.load_digits(split, image_size)
    elif name.startswith((FOLDER, IMAGES)):
        arrays = folders.load(name, split, cache_dir, image_size)
    else:
        arrays = sources.load_prepared(name, split, data_dir, cache_dir, image_size)
    return arrays and Dataset(name, *arrays)


def select(dataset: Dataset, classes: str = '', num_classes: int = 0, at_least: int = 2) -> Dataset:
    """Returns the images of some classes, relabelled 0..C-1 in the order named.

    Args:
      dataset: any dataset.
      classes: comma-separated class names, in any order; '' leaves the choice to num_classes.
      num_classes: the first so many classes in the dataset's own order; 0: all of them.
      at_least: how many classes are needed.

    Raises:
      InputError: an unknown or repeated name, both arguments at once, too few classes or more than there are.
    """
    known = dataset.class_names
    if classes and num_classes:
        raise InputError(f'--classes={classes} and --num_classes={num_classes}: give one of the two')
    if classes:
        chosen = [name.strip() for name in classes.split(',')]
        for name in chosen:
            if name not in known:
                raise InputError(
                    f'--classes={classes}: {dataset.name} has no class {name!r}; it has {", ".join(known)}'
                )
            if chosen.count(name) > 1:
                raise InputError(f'--classes={classes}: the class {name!r} is named twice')
    else:
        if num_classes > len(known):
            there = f'{len(known)} classes' if dataset.has_classes else f'one class, {known[0]!r}'
            raise InputError(f'--num_classes={num_classes}: {dataset.name} has only {there}')
        chosen = list(known[: num_classes or len(known)])
    if len(chosen) < at_least:
        flag = f'--classes={classes}' if classes else f'--num_classes={num_classes}'
        if len(known) == 1:
            flag = f'--config.dataset={dataset.name}'
        raise InputError(
            f'{flag}: contrasting needs at least {at_least} classes, and there is one, {chosen[0]!r}; give more, of a '
            'folder as sub-folders; or tell images from each other alone, as configs/simclr_r18.py does, with '
            '--config.pairs=views --config.augmentation=simclr --config.negatives=batch --config.groups_per_batch=16'
        )
    return _only(dataset, chosen)


def _only(dataset: Dataset, class_names: list[str]) -> Dataset:
    relabelled = np.full(len(dataset.class_names), -1, np.int32)
    for label, name in enumerate(class_names):
        relabelled[dataset.class_names.index(name)] = label
    labels = relabelled[dataset.labels]
    kept = np.flatnonzero(labels >= 0)
    return dataclasses.replace(dataset, labels=labels, class_names=tuple(class_names)).take(kept)


def carve(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Splits off a fraction of each class, drawn without replacement and fixed by the seed.

    Returns:
      (the rest, the part carved off), each in the dataset's order.
    """
    drawn = _draw(dataset, shares.carved(_counts(dataset), fraction), seed)
    return dataset.take(np.flatnonzero(~drawn)), dataset.take(np.flatnonzero(drawn))


def sample(dataset: Dataset, counts: np.ndarray, seed: int) -> Dataset:
    """Returns so many images of each class, int [C], drawn without replacement and fixed by the seed."""
    return dataset.take(np.flatnonzero(_draw(dataset, counts, seed)))


def _draw(dataset: Dataset, counts: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(dataset.labels), bool)
    for label, count in enumerate(counts):
        drawn[rng.permutation(np.flatnonzero(dataset.labels == label))[:count]] = True
    return drawn


def require_pairs(dataset: Dataset, split: str, remedy: str = '') -> None:
    """Checks that every class can give an anchor and a positive.

    Args:
      dataset: the split's images.
      split: its name.
      remedy: what to do about a class that cannot; '': to add to it or to leave it out.

    Raises:
      InputError: naming the first class with fewer than 2 images.
    """
    for name, count in zip(dataset.class_names, _counts(dataset), strict=True):
        if count < shares.PAIR:
            leave_out = 'leave the class out with --classes, or ' if dataset.has_classes else ''
            raise InputError(
                f'--config.dataset={dataset.name}: the class {name!r} has {count} {split} image(s), a pair needs '
                f'{shares.PAIR}; {remedy or f"{leave_out}add to it"}'
            )


def _counts(dataset: Dataset) -> np.ndarray:
    """Returns how many images there are of each class, int [C]."""
    return np.bincount(dataset.labels, minlength=len(dataset.class_names))


def require_images(dataset: Dataset, config: ml_collections.ConfigDict) -> None:
    """Checks that there are images for an epoch that draws none twice.

    Raises:
      InputError: naming how many are needed and what there are.
    """
    counts = _counts(dataset)
    available, where = np.min(counts), f'of {dataset.class_names[np.argmin(counts)]!r}'
    if config.pairs == 'views':
        available, where = len(dataset.labels), 'in all'
    needed = sampling.images_of_class(config) * config.groups_per_batch * config.batches_per_epoch
    if needed > available:
        raise InputError(
            f'--config.groups_per_batch={config.groups_per_batch}: {config.batches_per_epoch} batches draw {needed:,} '
            f'images of a class, without replacement, and there are {available:,} {where}; lower it or '
            '--config.batches_per_epoch, or set --config.with_replacement'
        )


def load_splits(
    config: ml_collections.ConfigDict, data_dir: str | None = None, cache_dir: str | None = None
) -> dict[str, Dataset]:
    """Returns the splits that a config asks for.

    They are 'train' and 'test'; with a validation_fraction 'validation', carved from the whole dataset's training
    images, so that a class's are the same in every subset, and 'train_sample', as many training images of each class;
    and, where classes are left out, 'unseen', the test images of those that have 2 or more. With a test_fraction, and
    where the dataset has no test images, these too are carved from the training images. A class without any image is
    none, and is told of.

    Raises:
      InputError: as `load`, `select` and `require_pairs`.
    """
    where = data_dir, cache_dir, config.image_size
    whole = {'train': load(config.dataset, 'train', *where)}
    test = None if config.test_fraction else load(config.dataset, 'test', *where)
    if test:
        whole['test'] = test
    whole = _without_empty_classes(whole)
    own = {split: dict(zip(dataset.class_names, _counts(dataset), strict=True)) for split, dataset in whole.items()}
    if not test:
        fraction = config.test_fraction or shares.TEST_FRACTION
        note = f'Of the training images {fraction:.0%} stand in for the test images.'
        training = dataclasses.replace(whole['train'], description=f'{whole["train"].description} {note}')
        whole['train'], whole['test'] = carve(training, fraction, config.split_seed)
    if config.validation_fraction:
        whole['train'], whole['validation'] = carve(whole['train'], config.validation_fraction, config.split_seed)
    at_least = 1 if config.pairs == 'views' else 2
    splits = {split: select(dataset, config.classes, config.num_classes, at_least) for split, dataset in whole.items()}
    for split, dataset in splits.items():
        if np.any(_counts(dataset) < shares.PAIR):
            counts = [np.array([of_split[name] for name in dataset.class_names]) for of_split in own.values()]
            remedy = shares.remedy(config, dataset.class_names, counts[0], counts[1] if test else None)
            require_pairs(dataset, split, remedy)
    if config.validation_fraction:
        counts = np.minimum(*(np.bincount(splits[split].labels) for split in ('train', 'validation')))
        splits['train_sample'] = sample(splits['train'], counts, config.split_seed)
    left_out = [name for name in whole['test'].class_names if name not in splits['test'].class_names]
    of_test = dict(zip(whole['test'].class_names, _counts(whole['test']), strict=True))
    unseen = [name for name in left_out if of_test[name] >= shares.PAIR]
    if unseen != left_out:
        few = ', '.join(f'{name!a} ({of_test[name]})' for name in left_out if name not in unseen)
        cache.tell_left_out([f'of the unseen classes, those with fewer than {shares.PAIR} test images: {few}'])
    if unseen:
        splits['unseen'] = _only(whole['test'], unseen)
    return splits


def _without_empty_classes(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """Returns the splits without the classes that have no image in any of them, and tells which these are."""
    class_names = splits['train'].class_names
    kept = np.sum([_counts(dataset) for dataset in splits.values()], axis=0) > 0
    if np.all(kept):
        return splits
    empty = [name for name, has_images in zip(class_names, kept, strict=True) if not has_images]
    cache.tell_left_out([f'the class {name!a}: none of its images can be read, or it has none' for name in empty])
    remaining = [name for name in class_names if name not in empty]
    return {split: _only(dataset, remaining) for split, dataset in splits.items()}
