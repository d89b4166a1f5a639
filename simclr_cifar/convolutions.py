"""3x3 convolutions, of stride 1 or 2, as sums that XLA is fast at on each platform.

XLA:CPU runs a convolution inside a loop on one slow path (jax issue 12868), and a kernel's gradient on a slow one
anywhere. The same sums as matrix products are many times faster, a few images at a time, so that the caches hold what
the products read: for stride 2 the patches that the outputs see; for stride 1 the tiles of Winograd's F(2x2, 3x3),
which take 16 multiplications where the definition takes 36 (Lavin and Gray, 2015, arXiv:1509.09308).

On a GPU a convolution of a few images takes less time than the host needs to launch cuDNN, which runs outside of the
step's CUDA graphs, and cuDNN has no fast form for kernels that differ between seeds; products have neither trouble.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_cifar import pieces

_FLOATS_AT_ONCE = 2**21
IMAGES_IN_PRODUCTS_ON_A_GPU = 128  # of 160 either way takes as long, of 1280 cuDNN half as long
# Winograd's, along one axis: from a kernel's 3 weights to the 4 factors of a tile.
_FACTORS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def convolve(inputs: jax.Array, kernel: jax.Array, stride: int, padding: str = 'SAME') -> jax.Array:
    """Returns the convolution, [B, ceil(H / stride), ceil(W / stride), F] in the inputs' dtype.

    The two paddings differ where the stride is 2 and a side is even: the outputs then see inputs that lie one apart.

    Args:
      inputs: float [B, H, W, C].
      kernel: float [3, 3, C, F].
      stride: 1 or 2.
      padding: 'SAME' pads as few zeros as needed, and an odd one at the far edge, as Keras does; 'BOTH' pads one zero
        at each edge, as PyTorch's `padding=1` and the code of ResNet's authors do.
    """

    def on_a_cpu(inputs, kernel):
        form = {1: _winograd, 2: _strided}[stride]
        mirrored = [axis for axis in (1, 2) if stride == 2 and padding == 'BOTH' and inputs.shape[axis] % 2 == 0]
        # A mirrored image has its far edges where 'BOTH' needs the one zero that 'SAME' pads.
        inputs, kernel = jnp.flip(inputs, mirrored), jnp.flip(kernel, [axis - 1 for axis in mirrored])
        return jnp.flip(form(inputs.astype(jnp.float32), kernel.astype(jnp.float32)), mirrored).astype(inputs.dtype)

    # Settled when the program is lowered for its platform.
    elsewhere = functools.partial(_by_definition, stride=stride, padding=padding)
    if not isinstance(inputs.shape[0], int):  # An exported program's batch, of any size, has no equal pieces.
        return elsewhere(inputs, kernel)
    forms = {'cpu': on_a_cpu}
    if stride == 2 and padding == 'SAME' and len(inputs) <= IMAGES_IN_PRODUCTS_ON_A_GPU:
        forms['cuda'] = _strided
    return lax.platform_dependent(inputs, kernel, **forms, default=elsewhere)


def _by_definition(inputs, kernel, stride, padding='SAME'):
    layout, zeros = ('NHWC', 'HWIO', 'NHWC'), [(1, 1), (1, 1)] if padding == 'BOTH' else padding
    return lax.conv_general_dilated(inputs, kernel, (stride, stride), zeros, dimension_numbers=layout)


def _images_at_once(inputs, kernel, stride):
    batch, height, width, _ = inputs.shape
    _, _, channels, features = kernel.shape
    of_output = {1: 4 * max(channels, features), 2: max(9 * channels, features)}[stride]
    of_image = -(-height // stride) * -(-width // stride) * of_output
    return pieces.largest_divisor(batch, _FLOATS_AT_ONCE // of_image)


@jax.custom_vjp
def _winograd(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 1: outputs two by two, from tiles of four by four inputs that lie two apart."""
    _, height, width, _ = inputs.shape
    factors = list(jnp.einsum('ai,bj,ijcf->abcf', _FACTORS, _FACTORS, kernel).reshape(16, *kernel.shape[2:]))

    def convolved(images):
        products = [tiles @ factor for tiles, factor in zip(_input_tiles(images), factors, strict=True)]
        return _outputs(products, images.shape)[:, :height, :width]

    return pieces.concatenated(convolved, inputs, _images_at_once(inputs, kernel, 1))


def _winograd_backward(residuals, slope):
    inputs, kernel = residuals
    inputs_gradient = _winograd(slope, kernel[::-1, ::-1].swapaxes(2, 3))

    def factors_gradient(images_and_slope):
        images, slope = images_and_slope
        return [tiles.T @ slopes for tiles, slopes in zip(_input_tiles(images), _slope_tiles(slope), strict=True)]

    gradient = pieces.summed(factors_gradient, (inputs, slope), _images_at_once(inputs, kernel, 1))
    gradient = jnp.stack(gradient).reshape(4, 4, *kernel.shape[2:])
    return inputs_gradient, jnp.einsum('ai,bj,abcf->ijcf', _FACTORS, _FACTORS, gradient)


_winograd.defvjp(lambda inputs, kernel: (_winograd(inputs, kernel), (inputs, kernel)), _winograd_backward)


def _input_tiles(inputs):
    """[B, H, W, C] -> 16 arrays [B * ceil(H / 2) * ceil(W / 2), C], one of each place in the transformed tile."""

    def along(axis, array):
        end = array.shape[axis] - 3
        first, second, third, fourth = (
            lax.slice_in_dim(array, start, start + end, stride=2, axis=axis) for start in range(4)
        )
        return first - third, second + third, third - second, second - fourth

    _, height, width, channels = inputs.shape
    padded = jnp.pad(inputs, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    return [tiles.reshape(-1, channels) for rows in along(1, padded) for tiles in along(2, rows)]


def _outputs(products, shape):
    """16 arrays [B * ceil(H / 2) * ceil(W / 2), F] -> [B, 2 ceil(H / 2), 2 ceil(W / 2), F]; shape is (B, H, W, C)."""

    def along(first, second, third, fourth):
        return first + second + third, second - third - fourth

    rows, columns = -(-shape[1] // 2), -(-shape[2] // 2)
    products = [product.reshape(-1, rows, columns, product.shape[-1]) for product in products]
    in_rows = [along(*products[start : start + 4]) for start in range(0, 16, 4)]
    left, right = (along(*side) for side in zip(*in_rows, strict=True))
    top, bottom = (jnp.stack(half, axis=3) for half in zip(left, right, strict=True))
    return jnp.stack([top, bottom], axis=2).reshape(-1, 2 * rows, 2 * columns, products[0].shape[-1])


def _slope_tiles(slope):
    """The transpose of `_outputs`: [B, H, W, F] -> 16 arrays [B * ceil(H / 2) * ceil(W / 2), F]."""

    def along(axis, array):
        first, second = (lax.slice_in_dim(array, start, None, stride=2, axis=axis) for start in range(2))
        return first, first + second, first - second, -second

    _, height, width, features = slope.shape
    padded = jnp.pad(slope, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    return [tiles.reshape(-1, features) for rows in along(1, padded) for tiles in along(2, rows)]


@jax.custom_vjp
def _strided(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Stride 2: a product of the patches that the outputs see."""
    return _strided_forward(inputs, kernel)[0]


def _strided_forward(inputs, kernel):
    size = _images_at_once(inputs, kernel, 2)
    weights = kernel.reshape(-1, kernel.shape[-1])
    if size == len(inputs):
        patches = _patches(inputs)
        return patches @ weights, (inputs, patches, kernel)
    # Patches of all are made again rather than kept.
    return pieces.concatenated(lambda images: _patches(images) @ weights, inputs, size), (inputs, None, kernel)


def _strided_backward(residuals, slope):
    inputs, patches, kernel = residuals
    size = _images_at_once(inputs, kernel, 2)

    def inputs_gradient(slope):
        return _fold(slope @ kernel.reshape(-1, kernel.shape[-1]).T, *inputs.shape[1:3])

    def kernel_gradient(images_and_slope):
        images, slope = images_and_slope
        seen = _patches(images) if patches is None else patches
        return jnp.einsum('bhwk,bhwf->kf', seen, slope).reshape(kernel.shape)

    return pieces.concatenated(inputs_gradient, slope, size), pieces.summed(kernel_gradient, (inputs, slope), size)


_strided.defvjp(_strided_forward, _strided_backward)


def _patches(inputs: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 9 C]: what each output of the convolution sees, row by row.

    In two steps, of columns and of rows: fewer and larger operations than nine slices, which XLA divides over cores.
    """
    batch, height, width, channels = inputs.shape
    rows, columns = -(-height // 2), -(-width // 2)
    inputs = jnp.pad(inputs, ((0, 0), (height % 2, 0), (width % 2, 0), (0, 0)))
    pairs = inputs.reshape(batch, 2 * rows, columns, 2 * channels)
    third = jnp.pad(pairs[:, :, 1:, :channels], ((0, 0), (0, 0), (0, 1), (0, 0)))
    triples = jnp.concatenate([pairs, third], axis=-1).reshape(batch, rows, 2, columns, 3 * channels)
    third = jnp.pad(triples[:, 1:, 0], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.concatenate([triples[:, :, 0], triples[:, :, 1], third], axis=-1)


def _fold(patches: jax.Array, height: int, width: int) -> jax.Array:
    """The transpose of `_patches`: every input's sum over the patches that it is in."""
    batch, rows, columns, size = patches.shape
    padded = jnp.pad(patches, ((0, 0), (1, 0), (1, 0), (0, 0))).reshape(batch, rows + 1, columns + 1, 3, 3, size // 9)

    def of_kernel(row, column):
        # The kernel's third row and column see the first of the next patch.
        down, right = (slice(None, -1) if number == 2 else slice(1, None) for number in (row, column))
        return padded[:, down, right, row, column]

    even = [of_kernel(0, 0) + of_kernel(0, 2) + of_kernel(2, 0) + of_kernel(2, 2), of_kernel(0, 1) + of_kernel(2, 1)]
    odd = [of_kernel(1, 0) + of_kernel(1, 2), of_kernel(1, 1)]
    folded = jnp.stack([jnp.stack(even, axis=3), jnp.stack(odd, axis=3)], axis=2)
    return folded.reshape(batch, 2 * rows, 2 * columns, size // 9)[:, height % 2 :, width % 2 :]
