"""A deeper encoder on a CPU: ResNet-18's forward and backward pass, by several ways to convolve and in PyTorch."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from benchmarks import harness, results
from benchmarks.harness import Contender, ContenderFailed

TITLE = 'A deeper encoder: ways to convolve'
IMAGE_SIZE = 32
_REPEATS = 3
_TOLERANCE = 1e-3  # of loss and gradients, relative
_BATCHES = {'float32': 256, 'bfloat16': 32}
_NOTES = """\
A repetition is the forward and backward pass of a ResNet-18 with the CIFAR stem (3x3, no pooling; batch normalization
by the batch) on so many random images, one jitted program. The limit is what the convolutions' multiply-adds by their
definition take at the rate of a float32 product of 2048 x 2048 matrices, measured in the same turns; Winograd's form
takes fewer.

- *simclr_cifar*: `convolutions.convolve`. *The whole batch*: the same, not a few images at a time.
- *lax.conv*: as XLA differentiates it. In a loop, such as an epoch's, it is slower still: 8 images of 32x32x64, forward
  and kernel's gradient, take 0.508 s for 0.050 (median of 3).
- *Patches*: a product of all that the outputs see. *Nine products*: of the shifted inputs, one for each weight.
  *A few at a time*: as many images as have two million floats of patches, made again for the gradient.
- *PyTorch*: eager, channels_last.

In bfloat16 ours is computed in float32, as these cores have no instructions for it.
"""


def blocks() -> list[tuple[int, int]]:
    """Returns (width, stride) of ResNet-18's blocks, in order."""
    return [(width, 2 if width > 64 and not first else 1) for width in (64, 128, 256, 512) for first in (0, 1)]


def layers() -> Iterator[tuple[int, int, int, int, int]]:
    """Yields (kernel size, stride, channels in, channels out, output height) of ResNet-18's convolutions, as called."""
    yield 3, 1, 3, 64, IMAGE_SIZE
    channels, size = 64, IMAGE_SIZE
    for width, stride in blocks():
        size //= stride
        yield 3, stride, channels, width, size
        yield 3, 1, width, width, size
        if stride == 2:
            yield 1, stride, channels, width, size
        channels = width


def multiply_adds() -> int:
    """Returns those of one image's convolutions, forward and backward; the first needs no gradient of its input."""
    of_layers = [size**2 * inward * outward * height**2 for size, _, inward, outward, height in layers()]
    return 3 * sum(of_layers) - of_layers[0]


def weights_and_images(batch: int):
    """Returns (kernels HWIO, images NHWC, the loss's slope by the features): NumPy arrays, float32, always the same."""
    rng = np.random.default_rng(0)
    kernels = [
        rng.normal(size=(size, size, inward, outward), scale=(2 / (size**2 * inward)) ** 0.5).astype(np.float32)
        for size, _, inward, outward, _ in layers()
    ]
    images = rng.normal(size=(batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)
    return kernels, images, rng.normal(size=(batch, 512)).astype(np.float32)


_JAX, _TORCH = 'benchmarks.convolutions_jax:both_passes', 'benchmarks.convolutions_torch:both_passes'
_CONTENDERS = [
    Contender('simclr_cifar', _JAX, {'way': 'ours'}),
    Contender('the same, the whole batch', _JAX, {'way': 'ours', 'at_once': True}),
    Contender('lax.conv', _JAX, {'way': 'lax_conv', 'at_once': True}),
    Contender('patches, a few at a time', _JAX, {'way': 'patches'}),
    Contender('patches, the whole batch', _JAX, {'way': 'patches', 'at_once': True}),
    Contender('nine products, a few at a time', _JAX, {'way': 'nine_products'}),
    Contender('nine products, the whole batch', _JAX, {'way': 'nine_products', 'at_once': True}),
    Contender('PyTorch', _TORCH),
]


def measure() -> str:
    """Returns the section: checks that all compute the same, then times them."""
    parts = [
        results.environment(),
        _NOTES.strip(),
        results.reading(_REPEATS),
    ]
    for dtype, batch in _BATCHES.items():
        contenders = [
            dataclasses.replace(one, arguments=one.arguments | {'dtype': dtype, 'batch': batch}) for one in _CONTENDERS
        ]
        *measured, products = harness.alternate([*contenders, harness.PRODUCTS], _REPEATS)
        agreement = _compare(measured) if dtype == 'float32' else ''
        rate = harness.operations_per_second(products)
        operations = 2 * multiply_adds() * batch
        speeds = ', '.join(f'{one.title} {operations / one.median / 1e9:.0f}' for one in measured)
        parts.append(
            f'{dtype}, {batch} images: {operations / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, a limit of '
            f'{operations / rate:.2f} s.{agreement}\n\n'
            + results.comparison(measured, 'pass', operations / rate)
            + f'\n\nIn GFLOP/s of the definition: {speeds}.'
        )
    return '\n\n'.join(parts)


def _compare(measured: list[harness.Measurement]) -> str:
    """Returns what all agree to.

    Raises:
      ContenderFailed: one's figures are not ours.
    """
    ours, worst = measured[0].figures, 0.0
    for one in measured[1:]:
        for name, figures in one.figures.items():
            difference = np.max(np.abs(figures / ours[name] - 1))
            if not difference <= _TOLERANCE:
                raise ContenderFailed(f'{one.title}: {name} {figures}, ours {ours[name]}')
            worst = max(worst, difference)
    return f" Losses and norms of the kernels' gradients differ from ours by at most {worst:.0e} of them."
