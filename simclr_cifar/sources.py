"""Data sets by name: those that TFDS has prepared, CIFAR-10's download, digits. The only module that knows TFDS."""

import functools
import hashlib
import importlib.util
import io
import json
import logging
import os
import pathlib
import re
import sys
import tarfile
import types
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
from PIL import Image

from simclr_cifar import cache, decoding, importing
from simclr_cifar.config import DatasetNotFound, InputError

CIFAR10_URL = 'https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz'

_RECORDS = 512  # read at a time
_FORMATS = ('array_record', 'parquet', 'tfrecord')  # of prepared files, which TFDS reads example by example
_KNOWN = "cifar10, digits, folder:PATH, images:PATH and, by TFDS's name, what it has prepared in --data_dir"


def load_digits(split: str, image_size: int) -> cache.Arrays:
    """Returns scikit-learn's 1,797 handwritten digits, 8x8 grey, in three channels; every fifth is for testing.

    Args:
      split: 'train' or 'test'.
      image_size: in pixels, which they are scaled to; 0: 32.

    Raises:
      InputError: scikit-learn cannot be imported.
    """
    size = image_size or 32
    digits = importing.module('sklearn.datasets', '--config.dataset=digits').load_digits()
    class_names = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    position_in_class = np.zeros(len(digits.target), int)
    for label in range(len(class_names)):
        members = np.flatnonzero(digits.target == label)
        position_in_class[members] = np.arange(len(members))
    kept = np.flatnonzero((position_in_class % 5 == 4) == (split == 'test'))
    grey = np.round(digits.images[kept] * (255 / 16)).astype(np.uint8)
    resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(resized)[..., None], 3, axis=-1)
    description = f"Handwritten digits, scikit-learn's embedded set of 1,797, resized from 8x8 to {size}x{size}."
    return images, digits.target[kept].astype(np.int32), class_names, description


def load_prepared(
    name: str, split: str, data_dir: str | None, cache_dir: str | None, image_size: int
) -> cache.Arrays | None:
    """Returns a split of a dataset of images and labels that TFDS has prepared, through the cache; None: it has none.

    Args:
      name: as TFDS's, 'cifar100' or 'imagenette/160px'; 'cifar10' is downloaded where it is missing.
      split: 'train' or 'test', which is the dataset's 'validation' split where it has no other.
      data_dir, cache_dir: as `data.load`.
      image_size: as `decoding.decode`.

    Raises:
      InputError: as `data.load`; or a library that reads it cannot be imported.
    """
    if not re.fullmatch(r'[a-z]\w{,99}(/[a-zA-Z0-9][\w.-]{,99})?', name):
        raise InputError(f'--config.dataset={name}: unknown dataset; there are {_KNOWN}')
    given = '--data_dir' if data_dir else 'TFDS_DATA_DIR' if os.environ.get('TFDS_DATA_DIR') else None
    root = pathlib.Path(os.path.expanduser(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'))
    if name == 'cifar10' and not given and not any(root.glob('cifar10/*/dataset_info.json')):
        prepare_cifar10(root)
    prepared = _find_prepared(name, root, given or '--data_dir')
    split = _stored_split(prepared, split)
    if split is None:
        return None
    # The files' bytes, not their times: a copied or moved dataset is still the same dataset.
    digest = hashlib.sha256(f'format 4, {image_size}'.encode())
    names = 'dataset_info.json', '*.labels.txt', f'*-{split}.*'
    try:
        for path in [path for pattern in names for path in sorted(prepared.glob(pattern))]:
            digest.update(path.name.encode())
            with path.open('rb') as file:
                digest.update(hashlib.file_digest(file, 'sha256').digest())
    except OSError as error:
        raise _unreadable(prepared, split, error) from error
    key = f'{name.replace("/", "-")}-{split}-{digest.hexdigest()[:16]}'
    return cache.through(cache_dir, key, functools.partial(_decode, name, split, prepared, image_size))


def _find_prepared(name: str, root: pathlib.Path, given: str) -> pathlib.Path:
    """Returns the newest prepared version's folder, or says in what way there is none."""
    remedy = f'give the folder that holds {name}/ with --data_dir or TFDS_DATA_DIR, '
    if name == 'cifar10':
        missing = DatasetNotFound
        remedy += 'leave both out to download it, or train on --config.dataset=digits, which needs no files'
    else:
        missing = InputError
        remedy += f'or choose another --config.dataset; there are {_KNOWN}'
        given = f'--config.dataset={name}: {given}'
    if not root.is_dir():
        raise missing(f'{given}={root}: there is no such folder; {remedy}')
    finished = [path.parent for path in root.glob(f'{name}/*/dataset_info.json')]
    versions = [path for path in finished if '.incomplete' not in path.name]
    if not versions:
        configs = sorted(f'{name}/{path.parts[-3]}' for path in root.glob(f'{name}/*/*/dataset_info.json'))
        if configs:
            raise InputError(f'--config.dataset={name}: comes in several kinds; give one of {", ".join(configs)}')
        started = sorted((root / name).glob('*')) if (root / name).is_dir() else []
        if started:
            raise InputError(
                f'{given}={root}: {name} is half-prepared ({started[-1].name} has no dataset_info.json); '
                f'delete {root / name} and prepare it again, or {remedy}'
            )
        raise missing(f'{given}={root}: holds no {name}; {remedy}')
    return max(versions, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split('.')])


def _tfds(what: str) -> types.ModuleType:
    """Returns TFDS, whole: if an import in it fails, TFDS logs that itself and goes on without half of its names."""
    disabled = logging.root.manager.disable
    logging.disable()  # It would log a traceback; the line that says the same follows.
    try:
        importing.module('tensorflow_datasets.public_api', what)
    finally:
        logging.disable(disabled)
    return importing.module('tensorflow_datasets', what)


def _unreadable(prepared: pathlib.Path, split: str, error: Exception) -> InputError:
    """Returns the line about files that were not read: they are damaged only if reading them is what failed."""
    if failed := importing.failure(error, str(prepared)):
        return failed
    if isinstance(error, OSError) and error.errno and not isinstance(error, FileNotFoundError):
        return InputError(f'{prepared}: {error.filename or split} cannot be read ({error.strerror}); see to it')
    return _damaged(prepared, split, error)


def _damaged(prepared: pathlib.Path, split: str, reason: object) -> InputError:
    reason = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return InputError(
        f'{prepared}: the {split} split is damaged or truncated ({reason}); delete the folder and prepare it again'
    )


def _stored_split(prepared: pathlib.Path, split: str) -> str | None:
    """Returns the split's name in this dataset, or None where it has none of its own for testing."""
    try:
        stored = [
            str(of_split['name']) for of_split in json.loads((prepared / 'dataset_info.json').read_text())['splits']
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(prepared, split, error) from error
    if split == 'train' and split not in stored:
        raise InputError(f'{prepared}: has no train split but {", ".join(stored)}; choose another --config.dataset')
    return next((name for name in ([split] if split == 'train' else ['test', 'validation']) if name in stored), None)


def _decode(name: str, split: str, prepared: pathlib.Path, image_size: int) -> cache.Decoded:
    """Returns a prepared split, to be decoded. array_record needs no TensorFlow; tfrecord does."""
    tfds = _tfds(f'--config.dataset={name}')
    try:
        info = tfds.builder_from_directory(prepared).info
        image, label = (dict(info.features).get(feature) for feature in ('image', 'label'))
    except MemoryError:
        raise
    except Exception as error:  # Whatever is wrong in those files.
        raise _unreadable(prepared, split, error) from error
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise InputError(
            f'--config.dataset={name}: has {", ".join(sorted(info.features))}, not image and label; choose another'
        )
    if info.file_format.value not in _FORMATS:
        raise InputError(
            f'{prepared} holds {info.file_format.value} files, which cannot be read one by one; prepare the dataset as '
            'array_record, or give another --data_dir'
        )
    if info.file_format.value == 'tfrecord' and importlib.util.find_spec('tensorflow') is None:
        raise InputError(
            f'{prepared} holds tfrecord files, which only TensorFlow reads; pip install tensorflow-cpu, 2.20 or '
            'later, or give another --data_dir, or leave it out to download the dataset as array_record'
        )

    def encoded() -> Iterator[decoding.Encoded]:
        number = -1
        for number, example in enumerate(_examples(split, prepared)):
            if not 0 <= example['label'] < len(label.names):
                raise InputError(f'--config.dataset={name}: its {split} images have no labels; choose another')
            opened = functools.partial(io.BytesIO, example['image'])
            yield decoding.Encoded(f'image {number}', opened, int(example['label']))
        if number + 1 != info.splits[split].num_examples:
            raise _damaged(prepared, split, f'{number + 1} of {info.splits[split].num_examples} examples')

    def refuse(image: str, error: decoding.BrokenImage) -> None:
        raise _damaged(prepared, split, f'{image}: {error}')

    pieces = decoding.decode_pieces(encoded(), image_size, refuse)
    return cache.Decoded(pieces, tuple(label.names), (info.description or name).strip())


def _examples(split: str, prepared: pathlib.Path) -> Iterator[dict]:
    """Yields the examples of a prepared split, with images as their files' bytes."""
    tfds = _tfds(str(prepared))
    decoders = {'image': tfds.decode.SkipDecoding()}
    try:
        builder = tfds.builder_from_directory(prepared)
        if builder.info.file_format.value == 'tfrecord':
            yield from tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
            return
        source = builder.as_data_source(split=split, decoders=decoders)
        for first in range(0, len(source), _RECORDS):
            yield from source.__getitems__(range(first, min(first + _RECORDS, len(source))))
    except MemoryError:
        raise
    except Exception as error:  # Each reader has errors of its own for a damaged file.
        raise _unreadable(prepared, split, error) from error


def prepare_cifar10(root: pathlib.Path) -> None:
    """Downloads CIFAR-10's binary archive, checked against TFDS's checksum, and prepares it as array_record.

    Raises:
      DatasetNotFound: it cannot be downloaded.
      InputError: a library that this needs cannot be imported, or the folder cannot be written.
    """
    what = '--config.dataset=cifar10'
    requests, tfds = importing.module('requests', what), _tfds(what)
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
    except OSError as error:  # Not of the network, whose errors are above: of the folder.
        raise InputError(
            f'{root}: cifar10 cannot be written there ({error.strerror or error}); make room, or allow it to be '
            'written, or give a prepared copy with --data_dir or TFDS_DATA_DIR'
        ) from error
