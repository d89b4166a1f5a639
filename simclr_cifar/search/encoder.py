"""Encoders to search with: a run of this project, which needs JAX, or what was exported of one, which does not."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

from simclr_cifar import decoding
from simclr_cifar.config import InputError

BATCH = 256  # pictures that are embedded at a time

Picture = str | os.PathLike | BinaryIO | np.ndarray


class Encoder:
    """From pictures to unit-norm embeddings.

    Attributes:
      source: where it was loaded from, an absolute path.
      fingerprint: the same for the same weights, in whichever form they come.
      image_shape: (H, W, 3) of the pictures that it takes.
      embedding_dim: D.
      class_names: of what it was trained on.
    """

    def __init__(self, source: pathlib.Path, about: dict, function: Callable[[np.ndarray], np.ndarray]):
        self.source = str(source.absolute())
        self.fingerprint, self.class_names = about['fingerprint'], list(about['class_names'])
        self.image_shape, self.embedding_dim = tuple(about['image_shape']), about['embedding_dim']
        self._function = function

    def embed(self, pictures: np.ndarray | Sequence[Picture]) -> np.ndarray:
        """Returns the embeddings of pictures, float32 [N, D], of norm 1.

        Args:
          pictures: uint8 [N, H, W, 3] as image_shape tells; or files, read as `decoding.decode` reads them.

        Raises:
          InputError: a file is missing or no picture, or the array is of another shape or dtype.
        """
        parts = [self._embed_batch(pictures[first : first + BATCH]) for first in range(0, len(pictures), BATCH)]
        return np.concatenate(parts) if parts else np.zeros((0, self.embedding_dim), np.float32)

    def read(self, picture: Picture) -> np.ndarray:
        """Returns a file's picture as the encoder takes it: upright, its centre scaled, uint8 [H, W, 3].

        Raises:
          InputError: the file is missing, or no picture.
        """
        if isinstance(picture, np.ndarray):
            return picture
        name = 'what was given' if hasattr(picture, 'read') else ascii(os.fspath(picture))
        try:
            with contextlib.nullcontext(picture) if hasattr(picture, 'read') else open(picture, 'rb') as file:
                return decoding.decode(file, self.image_shape[0])
        except OSError as error:
            raise InputError(f'{name} cannot be read ({error.strerror}); give a picture') from error
        except decoding.BrokenImage as error:
            raise InputError(f'{name} is no picture ({error}); give another') from error

    def _embed_batch(self, batch: np.ndarray | Sequence[Picture]) -> np.ndarray:
        pictures = [self.read(picture) for picture in batch]
        for one in pictures:
            if one.dtype != np.uint8 or one.shape != self.image_shape:
                wanted = list(self.image_shape)
                raise InputError(
                    f'a picture must be uint8 {wanted}, not {one.dtype} {list(one.shape)}; or give its file'
                )
        # Programs are compiled for two sizes only: one picture, and many.
        size = 1 if len(pictures) == 1 else BATCH
        filling = [np.zeros(self.image_shape, np.uint8)] * (size - len(pictures))
        return self._function(np.stack(pictures + filling))[: len(pictures)]


def load_encoder(source: str | os.PathLike) -> Encoder:
    """Returns an encoder, from a run's folder or from an .onnx file that `simclr_cifar.export` wrote.

    Args:
      source: the folder, or the file, with which JAX is not needed.

    Raises:
      InputError: there is no such run or file, it is damaged, or onnxruntime is not installed.
    """
    source = pathlib.Path(os.path.expanduser(source))
    encoder = _from_onnx(source) if source.suffix == '.onnx' else _from_run(source)
    if encoder.image_shape[1:] != (encoder.image_shape[0], 3):
        raise InputError(
            f'{source}: takes pictures of {list(encoder.image_shape)}; give an encoder of square ones in colour'
        )
    return encoder


def _from_run(source: pathlib.Path) -> Encoder:
    try:
        import jax
    except ImportError as error:
        raise InputError(
            f'--checkpoint={source}: a run needs JAX (pip install -r requirements.txt); or export it elsewhere and '
            'give --encoder=FILE.onnx'
        ) from error
    from simclr_cifar import trained
    from simclr_cifar.files import RunFolder

    run = trained.load(RunFolder(source, '--checkpoint'))
    embed = jax.jit(run.embed)
    about = {
        'fingerprint': run.fingerprint,
        'class_names': run.class_names,
        'image_shape': run.image_shape,
        'embedding_dim': jax.eval_shape(run.embed, np.zeros((1, *run.image_shape), np.uint8)).shape[1],
    }
    return Encoder(source, about, lambda pictures: np.asarray(embed(pictures)))


def _from_onnx(source: pathlib.Path) -> Encoder:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f'--encoder={source}: needs onnxruntime; pip install -r requirements-search.txt') from error
    if not source.is_file():
        raise InputError(f'--encoder={source}: there is no such file; give one that simclr_cifar.export wrote')
    try:
        session = onnxruntime.InferenceSession(source, providers=onnxruntime.get_available_providers())
        about = json.loads(session.get_modelmeta().custom_metadata_map['about'])
        return Encoder(source, about, lambda pictures: session.run(None, {'images': pictures})[0])
    except Exception as error:  # The runtime has errors of many kinds.
        raise InputError(
            f'--encoder={source}: is damaged, or not of simclr_cifar.export; export the run again'
        ) from error
