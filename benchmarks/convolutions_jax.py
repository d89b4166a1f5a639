"""ResNet-18's forward and backward pass in JAX, by the way it convolves."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import convolutions as benchmark
from simclr_cifar import convolutions, pieces


def _windows(inputs, stride):
    """What each of a kernel's nine weights meets, [B, h, w, C], row by row of the kernel."""
    batch, height, width, channels = inputs.shape
    before = 1 if stride == 1 else 0  # 'SAME', even sizes
    padded = jnp.pad(inputs, ((0, 0), (before, 1), (before, 1), (0, 0)))
    return [
        lax.slice(
            padded,
            (0, row, column, 0),
            (batch, row + height - stride + 1, column + width - stride + 1, channels),
            (1, stride, stride, 1),
        )
        for row in range(3)
        for column in range(3)
    ]


def _patches(inputs, kernel, stride):
    return jnp.concatenate(_windows(inputs, stride), axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _nine_products(inputs, kernel, stride):
    factors = kernel.reshape(9, *kernel.shape[2:])
    return sum(window @ factor for window, factor in zip(_windows(inputs, stride), factors, strict=True))


def _normalized(hidden):
    mean, variance = hidden.mean(axis=(0, 1, 2)), hidden.var(axis=(0, 1, 2))
    # Else XLA:CPU takes the root again for every element.
    mean, factor = lax.optimization_barrier((mean, lax.rsqrt(variance + 1e-5)))
    return (hidden - mean) * factor


def _features(convolve, kernels, images):
    kernels = iter(kernels)

    def convolution(hidden, stride):
        kernel = next(kernels)
        if len(kernel) == 1:
            # Centred as the 3x3 beside it: 'SAME' of stride 2 begins with the second row.
            return _normalized(hidden[:, stride - 1 :: stride, stride - 1 :: stride] @ kernel[0, 0])
        return _normalized(convolve(hidden, kernel, stride))

    hidden = jax.nn.relu(convolution(images, 1))
    for _, stride in benchmark.blocks():
        inner = jax.nn.relu(convolution(hidden, stride))
        inner = convolution(inner, 1)
        hidden = jax.nn.relu(inner + (hidden if stride == 1 else convolution(hidden, stride)))
    return hidden.mean(axis=(1, 2))


def both_passes(way: str, batch: int, dtype: str, at_once: bool = False):
    """A repetition is one forward and backward pass; returns 'loss' and 'gradients', the norm of each kernel's.

    Args:
      way: 'ours', 'lax_conv', 'patches' or 'nine_products'.
      batch: number of images.
      dtype: of images and kernels.
      at_once: convolves the whole batch at once rather than a few images at a time.
    """
    convolve = {'lax_conv': convolutions._by_definition, 'patches': _patches, 'nine_products': _nine_products}.get(way)
    if way == 'ours':
        convolve = convolutions.convolve
        if at_once:
            convolutions._FLOATS_AT_ONCE = 2**62  # in this process
    elif not at_once:
        whole = convolve

        def convolve(inputs, kernel, stride):
            patches = 9 * kernel.shape[2] * (inputs.shape[1] // stride) ** 2
            size = pieces.largest_divisor(batch, convolutions._FLOATS_AT_ONCE // patches)
            return pieces.concatenated(lambda images: whole(images, kernel, stride), inputs, size)

    kernels, images, slope = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), benchmark.weights_and_images(batch))

    @jax.jit
    @jax.value_and_grad
    def passes(kernels):
        return jnp.sum(_features(convolve, kernels, images) * slope, dtype=jnp.float32)

    def run():
        loss, gradient = jax.block_until_ready(passes(kernels))
        norms = [float(jnp.linalg.norm(leaf.astype(jnp.float32))) for leaf in gradient]
        return {'loss': float(loss), 'gradients': np.array(norms)}

    return run
