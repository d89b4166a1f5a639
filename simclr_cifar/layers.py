"""Layers: Flax Linen modules that the encoders are made of."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from simclr_cifar import convolutions, parallel

_EPSILON = 1e-5  # of variances


class Convolution(nn.Module):
    """3x3 convolution; parameters named and shaped as `nn.Conv`'s.

    Attributes:
      features: F, of the output.
      stride: 1 or 2.
      use_bias: whether one is added.
      padding: 'SAME', as Keras pads, or 'BOTH', as PyTorch does; see `convolutions.convolve`.
      kernel_init: the kernel's first values.
    """

    features: int
    stride: int = 1
    use_bias: bool = True
    padding: str = 'SAME'
    kernel_init: Callable = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel = self.param('kernel', self.kernel_init, (3, 3, inputs.shape[-1], self.features))
        outputs = convolutions.convolve(inputs, kernel.astype(inputs.dtype), self.stride, self.padding)
        if not self.use_bias:
            return outputs
        return outputs + per_channel(self.param('bias', nn.initializers.zeros, (self.features,)), outputs)


class Dense(nn.Module):
    """A product with a matrix, of every place by itself; of every stride-th place where there are places."""

    features: int
    stride: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.glorot_uniform()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        kernel = self.param('kernel', self.kernel_init, (inputs.shape[-1], self.features))
        outputs = inputs
        if self.stride > 1:
            outputs = places(inputs, (0, 0), tuple(-(-side // self.stride) for side in inputs.shape[1:3]), self.stride)
        outputs = outputs @ kernel.astype(inputs.dtype)
        if not self.use_bias:
            return outputs
        return outputs + per_channel(self.param('bias', nn.initializers.zeros, (self.features,)), outputs)


class BatchNorm(nn.Module):
    """Batch normalisation with the mean and variance of the global batch; variables as `nn.BatchNorm`'s.

    Statistics are in float32 whatever the inputs. Source: Ioffe & Szegedy, 2015.

    Attributes:
      momentum: of the running averages.
      use_scale: whether normalised values are scaled by learnt factors.
      scale_init: their first values.
    """

    momentum: float
    use_scale: bool = True
    scale_init: Callable = nn.initializers.ones

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
        channels = inputs.shape[-1:]
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
        running_variance = self.variable('batch_stats', 'var', jnp.ones, channels)
        values = inputs.astype(jnp.float32)
        if train:
            mean, variance = _global_moments(values)
            for running, new in ((running_mean, mean), (running_variance, variance)):
                running.value = self.momentum * running.value + (1 - self.momentum) * new
        else:
            mean, variance = running_mean.value, running_variance.value
        factor = lax.rsqrt(variance + _EPSILON)
        # Else XLA:CPU takes the root again for every element.
        mean, factor = lax.optimization_barrier((mean, factor))
        if self.use_scale:
            factor = factor * self.param('scale', self.scale_init, channels)
        shift = self.param('bias', nn.initializers.zeros, channels) - mean * factor
        return (values * per_channel(factor, values) + per_channel(shift, values)).astype(inputs.dtype)


def _global_moments(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the mean and the variance, float32 [C], of values [..., C] of all replicas.

    Each replica's moments are about the mean of its first example, so that a large mean costs the variance no digits:
    one pass over the values, where moments about their own mean take two. The replicas' are merged by the formula of
    Chan, Golub and LeVeque (1979) for equal counts.
    """
    axes = tuple(range(values.ndim - 1))
    shift = lax.stop_gradient(jnp.mean(values[:1], axis=axes))
    shifted = values - per_channel(shift, values)
    mean, mean_square = jnp.mean(shifted, axis=axes), jnp.mean(shifted**2, axis=axes)
    own = jnp.stack([shift, mean, jnp.maximum(mean_square - mean**2, 0)])
    shifts, means, variances = lax.all_gather(own, parallel.AXIS, axis=1)
    # About the first replica's shift, as the difference of two large means has few digits left.
    means = means + (shifts - shifts[:1])
    mean = jnp.mean(means, axis=0)
    return shifts[0] + mean, jnp.mean(variances + (means - mean[None]) ** 2, axis=0)


def places(inputs: jax.Array, first: tuple[int, int], count: tuple[int, int], stride: int = 1) -> jax.Array:
    """Returns some places of inputs, [B, H, W, C]: so many rows and columns from the first ones on, stride apart.

    A slice even where the batch's size is not known, and indexing would gather.
    """
    limits = (place + stride * (number - 1) + 1 for place, number in zip(first, count, strict=True))
    batch, _, _, channels = inputs.shape
    return lax.slice(inputs, (0, *first, 0), (batch, *limits, channels), (1, stride, stride, 1))


def per_channel(values: jax.Array, like: jax.Array) -> jax.Array:
    """Returns values [C] so that they broadcast with an array [..., C], in its dtype."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,)).astype(like.dtype)
