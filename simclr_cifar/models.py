"""Models: an encoder by name and a head, from images to unit-norm embeddings."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from simclr_cifar.config import InputError
from simclr_cifar.encoders import AveragePoolingCNN, ResNet, WhitenedCNN
from simclr_cifar.layers import BatchNorm, Dense

# Whose statistics stand for all training images', where a layer has some that are not trained.
_IMAGES_OF_STATISTICS = 5000


class Head(nn.Module):
    """Fully connected layers from features to embeddings, ReLU between them.

    Attributes:
      channels: of the hidden layers.
      embedding_dim: width of the output.
      batch_norm: whether each layer is followed by BatchNorm, the last too, which spreads embeddings from the start.
      batch_norm_momentum: of the running averages.
    """

    channels: tuple[int, ...]
    embedding_dim: int
    batch_norm: bool
    batch_norm_momentum: float

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        hidden = features
        for number, width in enumerate((*self.channels, self.embedding_dim)):
            hidden = nn.relu(hidden) if number else hidden
            hidden = Dense(width, use_bias=not self.batch_norm)(hidden)
            if self.batch_norm:
                hidden = BatchNorm(self.batch_norm_momentum)(hidden, train)
        return hidden


class Model(nn.Module):
    """An encoder from images to features, and a head from features to embeddings.

    Attributes:
      encoder: one of ENCODERS.
      head: from features [B, F] to embeddings [B, D].
    """

    encoder: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Returns the embeddings of images, float [B, H, W, C] in [0, 1], before normalisation."""
        return self.head(self.encoder(images, train), train)

    def represent(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the 'features' and the 'embedding' of images, float [B, H, W, C] in [0, 1], before normalisation."""
        features = self.encoder(images, train=False)
        return {'features': features, 'embedding': self.head(features, train=False)}


ENCODERS = {
    'average_pooling_cnn': lambda config: AveragePoolingCNN(tuple(config.channels), config.compute_dtype),
    'resnet18': lambda config: ResNet((2, 2, 2, 2), False, config.batch_norm_momentum, config.compute_dtype),
    'resnet50': lambda config: ResNet((3, 4, 6, 3), True, config.batch_norm_momentum, config.compute_dtype),
    'whitened_cnn': lambda config: WhitenedCNN(
        tuple(config.channels), config.batch_norm_momentum, config.compute_dtype
    ),
}


def make_model(config: ml_collections.ConfigDict) -> Model:
    """Returns the encoder that the config names, with its head.

    Raises:
      InputError: there is none of that name.
    """
    if config.encoder not in ENCODERS:
        raise InputError(f'--config.encoder={config.encoder}: unknown encoder; there are {", ".join(ENCODERS)}')
    head = Head(tuple(config.head_channels), config.embedding_dim, config.head_batch_norm, config.batch_norm_momentum)
    return Model(ENCODERS[config.encoder](config), head)


def require_fit(config: ml_collections.ConfigDict, image_shape: tuple[int, ...]) -> None:
    """Checks that the config names an encoder that images are large enough for.

    Args:
      config: the run's.
      image_shape: (H, W, C).

    Raises:
      InputError: unknown, or too large.
    """
    smallest = make_model(config).encoder.smallest_side
    if min(image_shape[:2]) < smallest:
        raise InputError(
            f'--config.encoder={config.encoder}: with {len(config.channels)} stages it needs images of {smallest} '
            f'pixels a side, these have {min(image_shape[:2])}; shorten --config.channels, or choose another encoder'
        )


def init(model: Model, key: jax.Array, images: np.ndarray) -> dict:
    """Returns a model's variables before training: 'params', and 'batch_stats' where it has any.

    Args:
      model: as `make_model` returns it.
      key: what the parameters are drawn from.
      images: uint8 [N, H, W, C], the training images; statistics that are fixed before training are those of some.
    """
    some = images[np.linspace(0, len(images) - 1, min(len(images), _IMAGES_OF_STATISTICS)).astype(int)]
    return _init(model, key, some)


@functools.partial(jax.jit, static_argnames='model')
def _init(model, key, images):
    return model.init(key, to_float(images), train=False)


def operations(model: Model, variables: dict, image_shape: tuple[int, ...]) -> int:
    """Returns the multiplications with kernels that an image's embedding takes, as the layers are defined.

    Args:
      model: as `make_model` returns it.
      variables: its own, or their shapes.
      image_shape: (H, W, C).
    """
    total = 0

    def count(next_function, arguments, keywords, context):
        nonlocal total
        outputs = next_function(*arguments, **keywords)
        of_kernels = (tree['kernel'].size for tree in context.module.variables.values() if 'kernel' in tree)
        total += sum(of_kernels) * math.prod(outputs.shape[1:-1])
        return outputs

    with nn.intercept_methods(count):
        jax.eval_shape(lambda variables: model.apply(variables, jnp.zeros((1, *image_shape)), train=False), variables)
    return total


def to_float(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [0, 1]."""
    return images.astype(jnp.float32) / 255


def unit(vectors: jax.Array) -> jax.Array:
    """Returns the vectors [..., D] in float32, of norm 1, or 0 where they are 0."""
    vectors = vectors.astype(jnp.float32)
    # Inside the root, so that the gradient at 0 is finite.
    return vectors * lax.rsqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1, keepdims=True), 1e-24))


def encode(model: Model, variables: dict, images: jax.Array) -> dict[str, jax.Array]:
    """Returns the unit-norm representations of images, before the head and after it.

    Args:
      model: as `make_model` returns it.
      variables: 'params' and 'batch_stats'.
      images: uint8 [B, H, W, C].

    Returns:
      'features', float32 [B, F], and 'embedding', float32 [B, D], of norm 1 (0 where the model's output is 0).
    """
    return jax.tree.map(unit, model.apply(variables, to_float(images), method='represent'))
