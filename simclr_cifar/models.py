"""Encoders and heads: Flax Linen modules from float images [B, H, W, C] in [0, 1] to [B, embedding_dim]."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from simclr_cifar.config import InputError
from simclr_cifar.layers import BatchNorm, Convolution, Dense, per_channel

# Of patches' variances, as in airbench (Jordan, 2024), and how many images' patches.
_WHITENING_EPSILON, _WHITENED_IMAGES = 5e-4, 5000
_PATCH, _PATCH_STRIDE, _PATCH_COMPONENTS = 4, 2, 24


class AveragePoolingCNN(nn.Module):
    """The reference encoder: strided convolutions with ReLU, global average pooling.

    Attributes:
      channels: of each convolution, in order; the last is the width of the features.
      compute_dtype: of activations.
    """

    channels: tuple[int, ...]
    compute_dtype: str
    smallest_side = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        hidden = images.astype(self.compute_dtype)
        for number, features in enumerate(self.channels):
            hidden = nn.relu(Convolution(features, stride=2, name=f'convolution_{number}')(hidden))
        return hidden.mean(axis=(1, 2))


def _he_normal():
    return nn.initializers.variance_scaling(2, 'fan_out', 'normal')


class ResNet(nn.Module):
    """ResNet v1 with the stem for small images: a 3x3 convolution, and no pooling before the blocks.

    Source: "Deep Residual Learning for Image Recognition" (He et al., 2015); the stem as in SimCLR's appendix on
    CIFAR-10 (Chen et al., 2020); a block's last scale starts at 0 (Goyal et al., 2017).

    Attributes:
      blocks: how many in each stage; stages halve the sides, save the first, and double the width.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide, rather than of two 3x3.
      batch_norm_momentum: of the running averages.
      compute_dtype: of activations.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    batch_norm_momentum: float
    compute_dtype: str
    smallest_side = 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        convolution = functools.partial(Convolution, use_bias=False, kernel_init=_he_normal())
        pointwise = functools.partial(Dense, use_bias=False, kernel_init=_he_normal())
        norm = functools.partial(BatchNorm, self.batch_norm_momentum)

        def block(inputs, width, stride):
            if self.bottleneck:
                hidden = nn.relu(norm()(pointwise(width)(inputs), train))
                hidden = nn.relu(norm()(convolution(width, stride)(hidden), train))
                hidden = pointwise(4 * width)(hidden)
            else:
                hidden = nn.relu(norm()(convolution(width, stride)(inputs), train))
                hidden = convolution(width)(hidden)
            hidden = norm(scale_init=nn.initializers.zeros)(hidden, train)
            if inputs.shape != hidden.shape:
                inputs = norm()(pointwise(hidden.shape[-1], stride)(inputs), train)
            return nn.relu(inputs + hidden)

        hidden = nn.relu(norm()(convolution(64)(images.astype(self.compute_dtype)), train))
        for stage, count in enumerate(self.blocks):
            for number in range(count):
                hidden = block(hidden, 64 * 2**stage, 2 if stage and not number else 1)
        return hidden.mean(axis=(1, 2))


class Whitening(nn.Module):
    """Makes the first principal components of patches, [..., P], uncorrelated; fixed by the first inputs."""

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        def principal_components():
            centred = patches.reshape(-1, patches.shape[-1]) - mean.value[None]
            covariance = jnp.einsum('nd,ne->de', centred, centred, precision=lax.Precision.HIGHEST) / len(centred)
            variances, components = jnp.linalg.eigh(covariance)
            largest = jnp.argsort(-variances)[:_PATCH_COMPONENTS]
            return components[:, largest] * lax.rsqrt(variances[largest] + _WHITENING_EPSILON)[None]

        mean = self.variable('batch_stats', 'mean', lambda: patches.mean(axis=tuple(range(patches.ndim - 1))))
        kernel = self.variable('batch_stats', 'kernel', principal_components)
        centred = patches - per_channel(mean.value, patches)
        return jnp.matmul(centred, kernel.value, precision=lax.Precision.HIGHEST)


class WhitenedCNN(nn.Module):
    """A small fast encoder: whitened patches, then stages of two 3x3 convolutions, and the maximum over places.

    The first layer is frozen: the training images' patches, whitened, and their negatives. A stage's first convolution
    ends with a 2x2 maximum, save the first stage's, as the patches lie two apart; BatchNorm shifts and does not scale;
    the activation is GELU; convolutions start as the identity as far as their channels go. After airbench (Jordan,
    2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"), from which the stages and starts are, with 4x4 patches at
    half the places rather than 2x2 at all.

    Attributes:
      channels: of each stage; the last is the width of the features.
      batch_norm_momentum: of the running averages.
      compute_dtype: of activations, after the whitening.
    """

    channels: tuple[int, ...]
    batch_norm_momentum: float
    compute_dtype: str

    @property
    def smallest_side(self) -> int:
        """Of images, in pixels: one place is left after the last stage."""
        return _PATCH + _PATCH_STRIDE * (2 ** (len(self.channels) - 1) - 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        # In float32: whitening makes the most of small differences.
        hidden = Whitening()(_patches(images)).astype(self.compute_dtype)
        hidden = jnp.concatenate([hidden, -hidden], axis=-1)
        hidden = _gelu(hidden + per_channel(self.param('bias', nn.initializers.zeros, hidden.shape[-1:]), hidden))
        for stage, width in enumerate(self.channels):
            for number in range(2):
                hidden = Convolution(width, use_bias=False, kernel_init=_partial_identity)(hidden)
                if stage and not number:
                    hidden = _max_pool(hidden)
                hidden = _gelu(BatchNorm(self.batch_norm_momentum, use_scale=False)(hidden, train))
        return hidden.max(axis=(1, 2))


def _gelu(inputs):
    return nn.gelu(inputs, approximate=True)


def _max_pool(inputs):
    """The maximum of each 2x2 places; what an odd side leaves over is left out."""
    batch, height, width, channels = inputs.shape
    rows, columns = height // 2, width // 2
    return inputs[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, channels).max(axis=(2, 4))


def _patches(images):
    """[B, H, W, C] -> [B, h, w, _PATCH**2 * C], _PATCH_STRIDE apart, those inside the image."""
    height, width = ((side - _PATCH) // _PATCH_STRIDE + 1 for side in images.shape[1:3])
    return jnp.concatenate(
        [
            images[
                :,
                row : row + height * _PATCH_STRIDE : _PATCH_STRIDE,
                column : column + width * _PATCH_STRIDE : _PATCH_STRIDE,
            ]
            for row in range(_PATCH)
            for column in range(_PATCH)
        ],
        axis=-1,
    )


def _partial_identity(key, shape, dtype=jnp.float32):
    """A kernel that hands its inputs on as the first outputs; PyTorch's default uniform one for outputs beyond."""
    *_, channels, features = shape
    kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')(key, shape, dtype)
    shared = min(channels, features)
    identity = jnp.zeros((*shape[:-1], shared), dtype).at[1, 1].set(jnp.eye(channels, shared))
    return kernel.at[..., :shared].set(identity)


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
      representation: 'embedding' or 'features', what is compared after training.
    """

    encoder: nn.Module
    head: nn.Module
    representation: str

    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Returns the embeddings of images, float [B, H, W, C] in [0, 1], before normalisation."""
        return self.head(self.encoder(images, train), train)

    def represent(self, images: jax.Array) -> jax.Array:
        """Returns the representation of images, float [B, H, W, C] in [0, 1], before normalisation."""
        if self.representation == 'embedding':
            return self(images, train=False)
        return self.encoder(images, train=False)


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
    return Model(ENCODERS[config.encoder](config), head, config.representation)


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
    some = images[np.linspace(0, len(images) - 1, min(len(images), _WHITENED_IMAGES)).astype(int)]
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


def encode(model: Model, variables: dict, images: jax.Array, flip_averaging: bool = False) -> jax.Array:
    """Returns the unit-norm representations of images.

    Args:
      model: as `make_model` returns it.
      variables: 'params' and 'batch_stats'.
      images: uint8 [B, H, W, C].
      flip_averaging: whether an image's is the mean of its own and its mirror image's.

    Returns:
      float32 [B, D], of norm 1 (0 where the model's output is 0).
    """
    images = to_float(images)

    def representation(images):
        return unit(model.apply(variables, images, method='represent'))

    if not flip_averaging:
        return representation(images)
    return unit(representation(images) + representation(images[:, :, ::-1]))
