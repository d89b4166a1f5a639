"""What is checked and written before a run is trained: that it can be, on which images, and on which it was begun."""

import importlib.metadata
import platform
import zlib

import ml_collections
import numpy as np

from simclr_cifar import augment, data, models, objectives, parallel, processes, views
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError
from simclr_cifar.data import Dataset
from simclr_cifar.files import RunFolder, git_commit, write_json

_COMPARED = 100  # images, of every split


def require_trainable(config: ml_collections.ConfigDict, training: Dataset) -> None:
    """Checks that the config can be trained on these images, by these processes.

    Raises:
      InputError: what it names there is not, the embeddings or images are too small, or too few for batches without
        replacement; or the processes cannot share its batches.
    """
    parallel.make_mesh(config.groups_per_batch)
    objectives.require_fit(config, len(training.class_names))
    models.require_fit(config, training.images.shape[1:])
    augment.require_fit(config, training.images.shape[1:])
    if not training.has_classes:
        views.require_fit(config)
    if not config.with_replacement:
        data.require_images(training, config)


def begin(run: RunFolder, name: str, config: ml_collections.ConfigDict, splits: dict[str, Dataset]) -> None:
    """Writes config.json, name being that of the config file, or checks that the run there has the same images.

    Raises:
      InputError: it has others.
    """
    if run.config.exists():
        require_same_images(run, splits)
    else:
        write_json(run.config, _describe(name, config, splits))


def require_same_images(run: RunFolder, splits: dict[str, Dataset]) -> None:
    """Checks that the splits are of the classes, and of as many images, that config.json tells of.

    Raises:
      InputError: they are not.
    """
    before, images = run.read_json(run.config), _count(splits)
    # Earlier versions counted the images of unseen classes with fewer than a pair of them, too.
    stored, unseen = before.get('images'), splits['unseen'].class_names if 'unseen' in splits else ()
    if isinstance(stored, dict) and 'unseen' in stored:
        too_small = set(before.get('unseen_class_names') or ()) - set(unseen)
        if 0 <= stored['unseen'] - images.get('unseen', 0) <= len(too_small):
            images['unseen'] = stored['unseen']
    for about, now in (('class_names', list(splits['train'].class_names)), ('images', images)):
        if before.get(about) != now:
            raise InputError(
                f'--workdir={run.path}: is of other images ({about}: {before.get(about)}, now {now}); choose another '
                'folder, or the images as they were'
            )


def _count(splits: dict[str, Dataset]) -> dict[str, int]:
    return {split: len(dataset.labels) for split, dataset in splits.items()}


def require_same_everywhere(splits: dict[str, Dataset]) -> None:
    """Checks that the processes that train together have read the same, as far as labels and some images tell.

    Raises:
      InputError: they have not; in all of them.
    """
    told = []
    for dataset in splits.values():
        some = dataset.images[np.linspace(0, len(dataset.labels) - 1, min(len(dataset.labels), _COMPARED)).astype(int)]
        told += [
            list(dataset.class_names),
            list(dataset.images.shape),
            zlib.crc32(dataset.labels.tobytes()),
            zlib.crc32(some.tobytes()),
        ]
    if not processes.everywhere(told == processes.agree(told)):
        raise InputError(
            '--config.dataset: the processes do not read the same images; see that the same files, all of them '
            'readable, are on every host'
        )


def _describe(name: str, config: ml_collections.ConfigDict, splits: dict[str, Dataset]) -> dict:
    packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'tensorflow-datasets', 'numpy')
    class_names = splits['train'].class_names
    chance_loss, chance_accuracy = objectives.chance(config, len(class_names))
    return {
        'name': name,
        'fingerprint': config_lib.fingerprint(config),
        'config': config_lib.to_json(config),
        'description': splits['train'].description,
        'class_names': list(class_names),
        'unseen_class_names': list(splits['unseen'].class_names) if 'unseen' in splits else [],
        'chance_loss': chance_loss,
        'chance_accuracy': chance_accuracy,
        'images': _count(splits),
        'image_shape': list(splits['train'].images.shape[1:]),
        'devices': parallel.describe(parallel.make_mesh(config.groups_per_batch)),
        'versions': {
            'python': platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        'git_commit': git_commit(),
    }
