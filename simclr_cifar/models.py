"""Encoders: Flax Linen modules from float32 images [B, H, W, C] in [0, 1] to [B, embedding_dim]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from simclr_cifar.config import InputError


class Convolution(nn.Module):
    """3x3 convolution of stride 2 with 'SAME' padding and a bias; parameters named and shaped as `nn.Conv`'s."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel_shape = (3, 3, inputs.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), kernel_shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        # XLA:CPU runs a convolution inside a loop on one slow path (jax issue 12868), tens of times slower than the
        # same sum as a matrix product. Which one runs is settled when the program is lowered for its platform.
        outputs = lax.platform_dependent(inputs, kernel, cpu=_convolve_as_matmul, default=_convolve)
        return outputs + bias.reshape((1,) * (outputs.ndim - 1) + (-1,))


def _convolve(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(inputs, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


@jax.custom_vjp
def _convolve_as_matmul(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve_forward(inputs, kernel)[0]


def _convolve_forward(inputs, kernel):
    patches = _patches(inputs)
    size = jnp.empty((*inputs.shape[1:3], 0))  # Residuals are arrays.
    return patches @ kernel.reshape(-1, kernel.shape[-1]), (patches, kernel, size)


def _convolve_backward(residuals, slope):
    patches, kernel, size = residuals
    kernel_gradient = jnp.einsum('bhwk,bhwf->kf', patches, slope).reshape(kernel.shape)
    patches_gradient = slope @ kernel.reshape(-1, kernel.shape[-1]).T
    return _fold(patches_gradient, *size.shape[:2]), kernel_gradient


_convolve_as_matmul.defvjp(_convolve_forward, _convolve_backward)


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


class AveragePoolingCNN(nn.Module):
    """The reference encoder: strided convolutions with ReLU, global average pooling, a dense layer.

    Attributes:
      channels: of each convolution, in order.
      embedding_dim: width of the output.
    """

    channels: tuple[int, ...]
    embedding_dim: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = images
        for number, features in enumerate(self.channels):
            hidden = nn.relu(Convolution(features, name=f'convolution_{number}')(hidden))
        hidden = hidden.mean(axis=(1, 2))
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), (hidden.shape[-1], self.embedding_dim))
        return hidden @ kernel + self.param('bias', nn.initializers.zeros, (1, self.embedding_dim))


ENCODERS = {
    'average_pooling_cnn': lambda config: AveragePoolingCNN(tuple(config.channels), config.embedding_dim),
}


def make_encoder(config: ml_collections.ConfigDict) -> nn.Module:
    """Returns the encoder that the config names.

    Raises:
      InputError: there is none of that name.
    """
    if config.encoder not in ENCODERS:
        raise InputError(f'--config.encoder={config.encoder}: unknown encoder; there are {", ".join(ENCODERS)}')
    return ENCODERS[config.encoder](config)


def encode(encoder: nn.Module, params, images: jax.Array) -> jax.Array:
    """Returns the unit-norm embeddings of images.

    Args:
      encoder: one of ENCODERS.
      params: its parameters.
      images: uint8 [B, H, W, C].

    Returns:
      float32 [B, embedding_dim], of norm 1 (0 where the encoder's output is 0).
    """
    outputs = encoder.apply({'params': params}, images.astype(jnp.float32) / 255).astype(jnp.float32)
    # Inside the root, so that the gradient at 0 is finite.
    return outputs * lax.rsqrt(jnp.maximum(jnp.sum(outputs**2, axis=-1, keepdims=True), 1e-24))
