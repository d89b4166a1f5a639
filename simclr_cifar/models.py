"""Encoders: Flax Linen modules from float32 images [B, H, W, C] in [0, 1] to [B, embedding_dim]."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax import lax

from simclr_cifar import convolutions
from simclr_cifar.config import InputError


class Convolution(nn.Module):
    """3x3 convolution with 'SAME' padding and a bias; parameters named and shaped as `nn.Conv`'s."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel_shape = (3, 3, inputs.shape[-1], self.features)
        kernel = self.param('kernel', nn.initializers.glorot_uniform(), kernel_shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        outputs = convolutions.convolve(inputs, kernel, self.stride)
        return outputs + bias.reshape((1,) * (outputs.ndim - 1) + (-1,))


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
            hidden = nn.relu(Convolution(features, stride=2, name=f'convolution_{number}')(hidden))
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
