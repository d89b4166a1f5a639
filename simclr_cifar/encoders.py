"""Encoders: Flax Linen modules from float images [B, H, W, C] in [0, 1] to features [B, F]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from simclr_cifar.layers import BatchNorm, Convolution, Dense, per_channel, places

# Of the whitened patches, and of their variances (Jordan, 2024).
_PATCH, _PATCH_STRIDE, _PATCH_COMPONENTS = 4, 2, 24
_WHITENING_EPSILON = 5e-4


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
        convolution = functools.partial(Convolution, use_bias=False, padding='BOTH', kernel_init=_he_normal())
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
        return _PATCH_STRIDE * 2 ** (len(self.channels) - 1)

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
    whole = places(inputs, (0, 0), (2 * rows, 2 * columns))
    return whole.reshape(batch, rows, 2, columns, 2, channels).max(axis=(2, 4))


def _patches(images):
    """[B, H, W, C] -> [B, H // 2, W // 2, _PATCH**2 * C], _PATCH_STRIDE apart, of images with a mirrored border."""
    border = (_PATCH - _PATCH_STRIDE) // 2
    images = jnp.pad(images, ((0, 0), (border, border), (border, border), (0, 0)), mode='reflect')
    count = tuple((side - _PATCH) // _PATCH_STRIDE + 1 for side in images.shape[1:3])
    first = [(row, column) for row in range(_PATCH) for column in range(_PATCH)]
    return jnp.concatenate([places(images, corner, count, _PATCH_STRIDE) for corner in first], axis=-1)


def _partial_identity(key, shape, dtype=jnp.float32):
    """A kernel that hands its inputs on as the first outputs; PyTorch's default uniform one for outputs beyond."""
    *_, channels, features = shape
    kernel = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')(key, shape, dtype)
    shared = min(channels, features)
    identity = jnp.zeros((*shape[:-1], shared), dtype).at[1, 1].set(jnp.eye(channels, shared))
    return kernel.at[..., :shared].set(identity)
