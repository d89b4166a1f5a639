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


def _convolve_as_matmul(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width, features_in, features = kernel.shape
    padding = lax.padtype_to_pads(inputs.shape[1:3], (height, width), (2, 2), 'SAME')
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    rows, columns = (-(-size // 2) for size in inputs.shape[1:3])
    shifted = [
        padded[:, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]
        for row in range(height)
        for column in range(width)
    ]
    patches = jnp.concatenate(shifted, axis=-1)
    return patches @ kernel.reshape(height * width * features_in, features)


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
