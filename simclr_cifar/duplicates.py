"""Test images that have a near-duplicate in the training set: the same photograph, shifted, mirrored or retouched."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_cifar import neighbours

# By eye some 97 % of CIFAR-10's pairs above it show the same scene, and three in four of those just below it.
THRESHOLD = 0.82

_CANDIDATES = 10  # Training images compared with a test image, and as many with its mirror image.
_THUMBNAIL, _SHIFT = 8, 3  # Pixels along a side, and in each direction.
_BATCH = 256
# Standard deviations in pixels: what is finer is re-encoding, what is coarser any two skies share.
_FINE, _COARSE, _NEIGHBOURHOOD = 0.8, 3.0, 2.0
_NOISE = 2.0  # Grey levels: less contrast than this is no texture.
_LEAST_ENERGY = 0.01  # Added to the mean square of a texture, so that rounding errors of flat images do not match.


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Test images with a near-duplicate among the training images.

    Attributes:
      test: int32 [K], ascending indices of test images.
      train: int32 [K], the most similar training image of each.
      similarity: float32 [K], from THRESHOLD to 1.
    """

    test: np.ndarray
    train: np.ndarray
    similarity: np.ndarray


def near_duplicates(test_images: np.ndarray, train_images: np.ndarray) -> Duplicates:
    """Finds the test images whose texture a training image or its mirror image shows too, up to a shift of 3 pixels.

    What such images do to test figures: Barz and Denzler, "Do we train on test data?", Journal of Imaging 2020.

    Args:
      test_images: uint8 [M, H, W, C], sides of at least 16 pixels.
      train_images: uint8 [N, H, W, C].
    """
    if not len(test_images) or not len(train_images):
        return Duplicates(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    gallery, spectra, energies = _in_batches(functools.partial(_describe, margin=0), train_images)

    def compare(query, query_energy, nearest):
        return _similarity(query, query_energy, spectra[nearest], energies[nearest], width=train_images.shape[2])

    k = min(_CANDIDATES, len(train_images))
    candidates, similarities = [], []
    for mirrored in (False, True):
        queries, *textures = _in_batches(functools.partial(_describe, margin=_SHIFT, mirrored=mirrored), test_images)
        _, nearest = neighbours.top_k(queries, gallery, k)
        candidates.append(nearest)
        similarities.append(_in_batches(compare, *textures, nearest))
    candidates, similarities = np.concatenate(candidates, axis=1), np.concatenate(similarities, axis=1)
    best = similarities.argmax(axis=1)[:, None]
    similarity, train = (np.take_along_axis(of, best, axis=1)[:, 0] for of in (similarities, candidates))
    found = np.flatnonzero(similarity >= THRESHOLD)
    return Duplicates(found.astype(np.int32), train[found], similarity[found])


def _in_batches(function: Callable, *arrays: np.ndarray):
    """Returns the function's results, a tree of arrays [N, ...], for the rows of all arrays, given _BATCH at a time."""
    count, whole = len(arrays[0]), None
    for start in range(0, count, _BATCH):
        rows = [array[start : start + _BATCH] for array in arrays]
        padded = [np.pad(row, [(0, _BATCH - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows]
        results = jax.tree.map(np.asarray, function(*padded))
        if whole is None:
            whole = jax.tree.map(lambda part: np.empty((count, *part.shape[1:]), part.dtype), results)
        jax.tree.map(lambda to, part, at=start: np.copyto(to[at : at + _BATCH], part[: count - at]), whole, results)
    return whole


def _smooth(images: jax.Array, deviation: float) -> jax.Array:
    """A Gaussian's local linear regression along rows and columns, which leaves slopes alone, at the border too."""
    weights = []
    for size in images.shape[1:3]:
        distance = np.subtract.outer(np.arange(size), np.arange(size))
        weight = np.exp(-0.5 * (distance / deviation) ** 2)
        moment = [(weight * distance**power).sum(axis=1, keepdims=True) for power in range(3)]
        weight *= (moment[2] - moment[1] * distance) / (moment[0] * moment[2] - moment[1] ** 2)
        weights.append(weight.astype(np.float32))
    return jnp.einsum('yv,xw,nvwc->nyxc', *weights, images, precision=lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=('margin', 'mirrored'))
def _describe(images: jax.Array, margin: int, mirrored: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns thumbnails [N, D], textures' spectra [N, C, H, W // 2 + 1], the windows' energies [N, shifts or 1]."""
    images = (images[:, :, ::-1] if mirrored else images).astype(jnp.float32)
    count, height, width, channels = images.shape
    thumbnail = jax.image.resize(images, (count, _THUMBNAIL, _THUMBNAIL, channels), 'linear').reshape(count, -1)
    thumbnail -= thumbnail.mean(axis=1, keepdims=True)
    thumbnail /= jnp.linalg.norm(thumbnail, axis=1, keepdims=True) + 1e-6
    detail = _smooth(images, _FINE) - _smooth(images, _COARSE)
    # Over the contrast around it, so that one strong edge, a horizon or a silhouette, does not outweigh all else.
    contrast = jnp.maximum(_smooth((detail**2).mean(axis=3, keepdims=True), _NEIGHBOURHOOD), 0)
    texture = detail / jnp.sqrt(contrast + _NOISE**2)
    texture -= texture.mean(axis=(1, 2), keepdims=True)  # A bow, as of a vignette, is equal detail everywhere.
    texture = texture[:, margin : height - margin, margin : width - margin]
    energy, window = (texture**2 + _LEAST_ENERGY).sum(axis=3), (1, height - 2 * _SHIFT, width - 2 * _SHIFT)
    energies = lax.reduce_window(energy, 0.0, lax.add, window, (1, 1, 1), 'VALID')
    return thumbnail, jnp.fft.rfft2(texture.transpose(0, 3, 1, 2), (height, width)), energies.reshape(count, -1)


@functools.partial(jax.jit, static_argnames='width')
def _similarity(query, query_energy, spectra, energies, width):
    """What _describe returns, of N queries and of k candidates of each -> best cosines over shifts float32 [N, k]."""
    spectrum = (query.conj()[:, None] * spectra).sum(axis=2)
    products = jnp.fft.irfft2(spectrum, (spectrum.shape[2], width))[:, :, : 2 * _SHIFT + 1, : 2 * _SHIFT + 1]
    return (products.reshape(energies.shape) / jnp.sqrt(energies * query_energy[:, None])).max(axis=2)
