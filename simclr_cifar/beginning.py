"""What is checked and written before a run is trained: that it can be, on which images, and on which it was begun."""

import importlib.metadata
import os
import platform
import zlib

import jax
import ml_collections
import numpy as np

from simclr_cifar import augment, data, models, objectives, parallel, processes, stored, views
from simclr_cifar.config import InputError
from simclr_cifar.data import Dataset
from simclr_cifar.files import Folder, RunFolder, git_commit, numbered, write_json

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
      InputError: it has others, or the folder holds something else.
    """
    if run.config.exists():
        require_same_images(run, splits)
    else:
        require_free(run)
        write_json(run.config, _describe(name, config, splits))


def require_free(folder: Folder) -> None:
    """Checks that a folder holds a run or a study, or nothing: nobody's files are to lie among a run's.

    Raises:
      InputError: it holds something else.
    """
    if folder.config.exists():
        return
    try:
        names = sorted(path.name for path in folder.path.iterdir())
    except OSError:  # It is not there, no folder, or not to be read: locking it makes it, or says why it cannot.
        return
    # Hidden files are the lock's and those of desktops; a file system's root has a folder of its own.
    others = [name for name in names if not name.startswith('.') and name != 'lost+found']
    if others:
        raise InputError(
            f'{folder.flag}={folder.path}: is no run and holds other files ({", ".join(others[:3])}'
            f'{" ..." if len(others) > 3 else ""}); choose an empty folder, or one that is not there yet'
        )


def is_finished(run: RunFolder, config: ml_collections.ConfigDict) -> bool:
    """Whether a run has the final figures of its last epoch, and weights; its checkpoints may be gone."""
    if not (run.metrics.exists() and run.weights.exists()):
        return False
    figures = run.read_json(run.metrics)
    return 'epoch' in figures and figures.get('last_epoch') == config.num_epochs


def require_resumable(run: RunFolder, config: ml_collections.ConfigDict) -> None:
    """Checks that a run that is not finished can be trained from where it was left, and tells what makes it differ.

    Raises:
      InputError: it cannot: its config means something else now, or its checkpoints are gone.
    """
    stored.require_same_meaning(run, config, resumed=True)
    epochs = numbered(run.checkpoints)
    if run.weights.exists() and not epochs:
        raise InputError(
            f'{run.flag}={run.path}: holds the weights of a run that is not finished, and no checkpoint to go on from; '
            'put its checkpoints back, or choose another folder to train anew'
        )
    before, now = run.read_json(run.config).get('arithmetic', {}), _arithmetic(config)
    differing = [
        f'{name} was {before[name]}, is {now[name]}' for name in now if before.get(name, now[name]) != now[name]
    ]
    if differing and epochs:
        print(
            f'{run.path}: {"; ".join(differing)}: the parameters will not be bit for bit those of a run that was never '
            'interrupted',
            flush=True,
        )


def require_same_images(run: RunFolder, splits: dict[str, Dataset]) -> None:
    """Checks that the splits are of the classes, and of as many images, that config.json tells of.

    Raises:
      InputError: they are not.
    """
    before, images = run.read_json(run.config), _count(splits)
    # Earlier versions counted the images of unseen classes with fewer than a pair of them, too.
    recorded, unseen = before.get('images'), splits['unseen'].class_names if 'unseen' in splits else ()
    if isinstance(recorded, dict) and 'unseen' in recorded:
        too_small = set(before.get('unseen_class_names') or ()) - set(unseen)
        if 0 <= recorded['unseen'] - images.get('unseen', 0) <= len(too_small):
            images['unseen'] = recorded['unseen']
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
        'format': stored.FORMAT,
        'name': name,
        'fingerprint': stored.fingerprint(config),
        'config': stored.to_json(config),
        'description': splits['train'].description,
        'class_names': list(class_names),
        'unseen_class_names': list(splits['unseen'].class_names) if 'unseen' in splits else [],
        'chance_loss': chance_loss,
        'chance_accuracy': chance_accuracy,
        'images': _count(splits),
        'image_shape': list(splits['train'].images.shape[1:]),
        'devices': parallel.describe(parallel.make_mesh(config.groups_per_batch)),
        'arithmetic': _arithmetic(config),
        'versions': {
            'python': platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        'git_commit': git_commit(),
    }


def _arithmetic(config: ml_collections.ConfigDict) -> dict:
    """Returns what a run's bits depend on beside its config, its images and this code."""
    mesh = parallel.make_mesh(config.groups_per_batch)
    return {
        'jax': jax.__version__,
        'prng': jax.config.jax_default_prng_impl,
        'threefry_partitionable': jax.config.jax_threefry_partitionable,
        'device': mesh.devices.flat[0].device_kind,
        'devices': mesh.size,
        'cores': os.cpu_count(),
    }
