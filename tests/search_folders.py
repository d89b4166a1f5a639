"""Folders of pictures to be searched, and an encoder of them that is quick and knows no JAX."""

import pathlib

import numpy as np
from PIL import Image

from simclr_cifar.search import Encoder

SIDE, DIMENSIONS = 8, 5
_PROJECTION = np.random.default_rng(0).normal(size=(SIDE * SIDE * 3, DIMENSIONS)).astype(np.float32)


class Counting:
    """An encoder's function that knows which pictures it has embedded, by their mean, and can be told to stop."""

    def __init__(self):
        self.means, self.most = [], float('inf')

    def __call__(self, pictures):
        flat = pictures.reshape(len(pictures), -1).astype(np.float32) / 255 - 0.5
        self.means += [mean for mean in pictures.reshape(len(pictures), -1).mean(axis=1) if mean]  # 0 fills up.
        if len(self.means) > self.most:
            raise KeyboardInterrupt
        outputs = flat @ _PROJECTION
        return outputs / np.linalg.norm(outputs, axis=1, keepdims=True)


def make_encoder(fingerprint='0123', function=None) -> Encoder:
    about = {'fingerprint': fingerprint, 'class_names': ['a'], 'image_shape': (SIDE, SIDE, 3)}
    function = function or Counting()
    encoder = Encoder(pathlib.Path('made'), about | {'embedding_dim': DIMENSIONS}, function)
    encoder.counted = function
    return encoder


def pixels(number):
    return np.random.default_rng(number).integers(1, 256, (SIDE, SIDE, 3), np.uint8)


def write_picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path, format='PNG')
    return path


def make_folder(root, count=12, classes=('cat', 'dog', '')):
    """count pictures in sub-folders of the classes, in turn; returns their paths, sorted."""
    paths = [
        write_picture(root / classes[number % len(classes)] / f'{number:04}.png', number) for number in range(count)
    ]
    return sorted(map(str, paths))
