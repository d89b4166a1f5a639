import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from simclr_cifar import config as config_lib
from simclr_cifar import models
from tests.test_convolutions import convolve_by_loops


@pytest.mark.parametrize('stride', [1, 2])
def test_the_convolution_and_its_gradients_equal_flax_s(stride):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ours, theirs = models.Convolution(5, stride), nn.Conv(5, (3, 3), strides=stride)
    params = theirs.init(jax.random.key(1), images)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), images)) == jax.tree.map(jnp.shape, params)

    weights = jax.random.normal(jax.random.key(2), (2, 8 // stride, 8 // stride, 5))

    def gradients(module):
        loss = jax.value_and_grad(
            lambda params, images: jnp.sum(weights * jnp.sin(module.apply(params, images))), (0, 1)
        )
        return jax.jit(loss)(params, images)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients(ours), gradients(theirs))


def test_the_reference_encoder_equals_its_definition():
    config = config_lib.defaults()
    config.update(channels=(4, 6), embedding_dim=3)
    encoder = models.make_encoder(config)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))['params']
    # Biases that are not zero.
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    hidden = images / 255
    for layer in ('convolution_0', 'convolution_1'):
        kernel, bias = (np.asarray(params[layer][name]) for name in ('kernel', 'bias'))
        hidden = np.maximum(convolve_by_loops(hidden, kernel, 2) + bias, 0)
    outputs = hidden.mean(axis=(1, 2)) @ np.asarray(params['kernel']) + np.asarray(params['bias'])
    expected = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    np.testing.assert_allclose(models.encode(encoder, params, images), expected, atol=1e-5)


def test_the_reference_encoder_has_the_reference_s_parameters():
    encoder = models.ENCODERS['average_pooling_cnn'](config_lib.defaults())
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    by_hand = (27 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (128 * 8 + 8)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == by_hand == 94_280


def test_embeddings_have_unit_norm_and_a_finite_gradient_everywhere():
    encoder = models.ENCODERS['average_pooling_cnn'](config_lib.defaults())
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    embeddings = models.encode(encoder, params, images)
    assert embeddings.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)

    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(models.encode(encoder, zero, images), 0)
    gradient = jax.grad(lambda params: models.encode(encoder, params, images).sum())(zero)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('count', [1, 2, 5])
def test_an_image_s_embedding_does_not_depend_on_the_others(count):
    encoder = models.ENCODERS['average_pooling_cnn'](config_lib.defaults())
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    params = encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
    alone = np.stack([encoder.apply({'params': params}, image[None] / np.float32(255))[0] for image in images])
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    np.testing.assert_allclose(models.encode(encoder, params, images), alone, atol=1e-5)
