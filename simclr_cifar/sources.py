"""Where images come from: TFDS folders, the download, the embedded digits. The only module that knows TFDS.

A source is a function (split, data_dir, cache_dir) -> (images uint8 [N, H, W, C], labels int32 [N], class
names, a sentence that describes the images).
"""

import hashlib
import importlib.util
import io
import json
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib

import numpy as np

from simclr_cifar.config import InputError

CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'

Arrays = tuple[np.ndarray, np.ndarray, tuple[str, ...], str]


class DatasetNotFound(InputError):
    """The dataset is neither on disk nor to be downloaded."""


def _load_digits(split: str, data_dir: str | None, cache_dir: str | None) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey resized to 32x32x3; every fifth of a class is for testing."""
    del data_dir, cache_dir  # They come with scikit-learn.
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    class_names = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    position_in_class = np.zeros(len(digits.target), int)
    for label in range(len(class_names)):
        members = np.flatnonzero(digits.target == label)
        position_in_class[members] = np.arange(len(members))
    kept = np.flatnonzero((position_in_class % 5 == 4) == (split == 'test'))
    grey = np.round(digits.images[kept] * (255 / 16)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(resized)[..., None], 3, axis=-1)
    description = "Handwritten digits, scikit-learn's embedded set of 1,797, resized from 8x8 to 32x32."
    return images, digits.target[kept].astype(np.int32), class_names, description


def _load_cifar10(split: str, data_dir: str | None, cache_dir: str | None) -> Arrays:
    """CIFAR-10 as TFDS prepares it, through the cache."""
    given = '--data_dir' if data_dir else 'TFDS_DATA_DIR' if os.environ.get('TFDS_DATA_DIR') else None
    root = pathlib.Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
    if not given and not any(root.glob('cifar10/*/dataset_info.json')):
        prepare_cifar10(root)
    return _read_cached('cifar10', split, _find_prepared('cifar10', root, given or '--data_dir'), cache_dir)


DATASETS = {'cifar10': _load_cifar10, 'digits': _load_digits}


def _find_prepared(name: str, root: pathlib.Path, given: str) -> pathlib.Path:
    """Returns the newest prepared version's folder, or says in what way there is none."""
    remedy = (
        f'give the folder that holds {name}/ with --data_dir or TFDS_DATA_DIR, leave both out to download it, '
        'or train on --config.dataset=digits, which needs no files'
    )
    if not root.is_dir():
        raise DatasetNotFound(f'{given}={root}: there is no such folder; {remedy}')
    finished = [path.parent for path in root.glob(f'{name}/*/dataset_info.json')]
    versions = [path for path in finished if '.incomplete' not in path.name]
    if not versions:
        started = sorted((root / name).glob('*')) if (root / name).is_dir() else []
        if started:
            raise InputError(
                f'{given}={root}: {name} is half-prepared ({started[-1].name} has no dataset_info.json); '
                f'delete {root / name} and prepare it again, or {remedy}'
            )
        raise DatasetNotFound(f'{given}={root}: holds no {name}; {remedy}')
    return max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split('.')])


def cache_root(cache_dir: str | None) -> pathlib.Path:
    """Returns the folder of what is kept between runs; None: simclr_cifar in the user's cache folder."""
    root = pathlib.Path(cache_dir or os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    return root if cache_dir else root / 'simclr_cifar'


def _read_cached(name: str, split: str, prepared: pathlib.Path, cache_dir: str | None) -> Arrays:
    """Returns the split from the cache, which is filled first where it holds no copy of these very files."""
    root = cache_root(cache_dir)
    shards = sorted(prepared.glob(f'{name}-{split}.*'))
    # The shards' bytes, not their times: a copied or moved dataset is still the same dataset.
    digest = hashlib.sha256(b'format 3')
    for path in [prepared / 'dataset_info.json', *sorted(prepared.glob('*.labels.txt')), *shards]:
        digest.update(path.name.encode())
        with path.open('rb') as file:
            digest.update(hashlib.file_digest(file, 'sha256').digest())
    folder = root / f'{name}-{split}-{digest.hexdigest()[:16]}'
    try:
        return _open_cache(folder)
    except (OSError, EOFError, ValueError, KeyError):
        pass  # Absent or damaged: decode.
    decoded = _decode(split, prepared)
    try:
        _write_cache(decoded, folder)
        return _open_cache(folder)
    except OSError as error:
        print(f'The decoded images are not kept for next time: {error}; choose --cache_dir', file=sys.stderr)
        return decoded


def _open_cache(folder: pathlib.Path) -> Arrays:
    images = np.load(folder / 'images.npy', mmap_mode='r', allow_pickle=False)
    labels = np.load(folder / 'labels.npy', allow_pickle=False)
    about = json.loads((folder / 'about.json').read_text())
    if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError('not a cache of this format')
    if about['checksums'] != _checksums(images, labels):
        raise ValueError('not as it was written')
    return images, labels, tuple(about['class_names']), about['description']


def _checksums(images: np.ndarray, labels: np.ndarray) -> list[int]:
    # Against accidents, and several times faster than a cryptographic one.
    return [zlib.crc32(np.ascontiguousarray(array)) for array in (images, labels)]


def _write_cache(decoded: Arrays, folder: pathlib.Path) -> None:
    """Writes into a sibling folder and renames it, so that no reader ever sees half a cache."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix='.partial-', dir=folder.parent))
    try:
        images, labels, class_names, description = decoded
        np.save(partial / 'images.npy', images)
        np.save(partial / 'labels.npy', labels)
        about = {'class_names': class_names, 'description': description, 'checksums': _checksums(images, labels)}
        (partial / 'about.json').write_text(json.dumps(about))
        shutil.rmtree(folder, ignore_errors=True)  # A damaged one.
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(split: str, prepared: pathlib.Path) -> Arrays:
    """Reads and decodes a prepared split. array_record needs no TensorFlow; tfrecord does."""
    import tensorflow_datasets as tfds
    from PIL import Image

    damaged = f'{prepared}: the {split} split is damaged or truncated ({{}}); delete the folder and prepare it again'
    try:
        builder = tfds.builder_from_directory(prepared)
        num_examples = builder.info.splits[split].num_examples
        if builder.info.file_format.value == 'tfrecord':
            if importlib.util.find_spec('tensorflow') is None:
                raise InputError(
                    f'{prepared} holds tfrecord files, which only TensorFlow reads; pip install tensorflow-cpu, '
                    'or give another --data_dir, or leave it out to download the dataset as array_record'
                )
            examples = list(tfds.as_numpy(builder.as_dataset(split=split)))
            images = [example['image'] for example in examples]
        else:
            source = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
            examples = source.__getitems__(range(num_examples))
            images = [np.asarray(Image.open(io.BytesIO(example['image']))) for example in examples]
        if len(examples) != num_examples:
            raise ValueError(f'{len(examples)} of {num_examples} examples')
        labels = np.array([example['label'] for example in examples], np.int32)
        class_names = tuple(builder.info.features['label'].names)
    except InputError:
        raise
    except Exception as error:  # Each reader has errors of its own for a damaged file.
        raise InputError(damaged.format(str(error).splitlines()[0] if str(error) else type(error).__name__)) from error
    if len({image.shape for image in images}) != 1:
        raise InputError(f'{prepared}: the images differ in size; this project reads images of one size')
    images = np.stack(images)
    images = images if images.ndim == 4 else images[..., None]
    return images, labels, class_names, builder.info.description.strip()


def prepare_cifar10(root: pathlib.Path) -> None:
    """Downloads CIFAR-10's binary archive, checked against TFDS's checksum, and prepares it as array_record."""
    import requests
    import tensorflow_datasets as tfds

    label_names = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']

    # TFDS's own builder of this name writes through TensorFlow; this one yields encoded images and needs none.
    with tfds.core.registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            """CIFAR-10, 60,000 colour images of 32x32 in 10 classes (Krizhevsky, 2009)."""

            VERSION = tfds.core.Version('3.0.2')

            def _info(self):
                features = {
                    'id': tfds.features.Text(),
                    'image': tfds.features.Image(shape=(32, 32, 3)),
                    'label': tfds.features.ClassLabel(names=label_names),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    description=self.__doc__,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=('image', 'label'),
                    homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
                )

            def _split_generators(self, dl_manager):
                archive = dl_manager.download(CIFAR10_URL)
                train = [f'data_batch_{number}.bin' for number in range(1, 6)]
                return {
                    'train': self._generate_examples(archive, 'train', train),
                    'test': self._generate_examples(archive, 'test', ['test_batch.bin']),
                }

            def _generate_examples(self, archive, split, names):
                from PIL import Image

                number = 0
                with tarfile.open(archive) as members:
                    for name in names:
                        batch = members.extractfile(f'cifar-10-batches-bin/{name}').read()
                        for row in np.frombuffer(batch, np.uint8).reshape(-1, 1 + 3 * 32 * 32):
                            encoded = io.BytesIO()
                            Image.fromarray(row[1:].reshape(3, 32, 32).transpose(1, 2, 0)).save(encoded, 'png')
                            encoded.seek(0)
                            yield number, {'id': f'{split}_{number:05d}', 'image': encoded, 'label': int(row[0])}
                            number += 1

    # TFDS would go on trying for minutes where there is no network.
    try:
        urllib.request.urlopen(urllib.request.Request(CIFAR10_URL, method='HEAD'), timeout=10).close()
        print(f'Downloading CIFAR-10 (163 MiB) into {root}', file=sys.stderr)
        Cifar10(data_dir=root, file_format='array_record').download_and_prepare()
    except (
        urllib.error.URLError,
        TimeoutError,
        requests.RequestException,
        tfds.core.download.util.DownloadError,
        tfds.core.download.download_manager.NonMatchingChecksumError,
        tarfile.TarError,
        KeyError,  # The archive lacks a member.
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DatasetNotFound(
            f'cifar10 is not in {root} and could not be downloaded from {CIFAR10_URL} ({reason}); give a prepared copy '
            'with --data_dir or TFDS_DATA_DIR, try again with a network, or train on --config.dataset=digits, '
            'which needs no files'
        ) from error
