"""ONNX graphs against JAX, in another runtime."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from jax import lax
from test_models import changed, model_and_variables

from simclr_cifar import models, onnx_graph


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    (embeddings,) = session.run(None, {'images': images})
    return embeddings


ENCODERS = {
    'reference': {},
    'normalised head': {'channels': (4, 6), 'head_channels': (7,), 'head_batch_norm': True},
    'whitened_cnn': {'encoder': 'whitened_cnn', 'channels': (4, 6)},
    'resnet18': {'encoder': 'resnet18'},
    'resnet50': {'encoder': 'resnet50'},
}


@pytest.mark.parametrize('size', [(16, 16), (11, 14)])
@pytest.mark.parametrize('fields', ENCODERS.values(), ids=ENCODERS)
def test_every_encoder_is_the_same_in_onnxruntime_for_batches_of_any_size(fields, size):
    images = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
    model, variables = model_and_variables(images, **fields)

    def embed(images):
        return models.encode(model, variables, images)['embedding']

    exported = onnx_graph.trace(embed, images.shape[1:], np.uint8, {'about': 'it'})
    assert {prop.key: prop.value for prop in exported.metadata_props} == {'about': 'it'}
    expected = np.asarray(jax.jit(embed)(images))
    assert np.ptp(expected, axis=0).min() > 1e-3  # Not all alike.
    for count in (1, 5):
        np.testing.assert_allclose(run(exported, images[:count]), expected[:count], atol=1e-5)


SIDE = np.random.default_rng(1).uniform(0.5, 2, (4, 6)).astype(np.float32)
OPERATIONS = {
    'compared and chosen': lambda x: jnp.where((x > 1) & ~(x >= 2) | (x < 0.2) | (x <= 0.1) | (x == 3), x, -x),
    'powers': lambda x: x**3 + x**-2 + lax.rsqrt(x) + jnp.sqrt(x) + x ** SIDE[None],
    'exponentials': lambda x: jnp.exp(x) - jnp.log(x) + jnp.tanh(x) + jax.nn.sigmoid(x) + lax.erf(x),
    'gelu': lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x),
    'softmax': lambda x: jax.nn.softmax(x, axis=-1) + jax.nn.relu(x - 1),
    'reduced': lambda x: x.max(axis=1) - x.min(axis=1) + x.sum(axis=1) + x.mean(axis=1),
    'clipped': lambda x: jnp.minimum(jnp.maximum(x, SIDE[None]), abs(x - 1)),
    'broadcast': lambda x: x + jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape) * SIDE[None],
    'shapes': lambda x: jnp.concatenate([x.reshape(-1, 24), x.swapaxes(1, 2).reshape(-1, 24)], axis=1)[..., None],
    'flipped': lambda x: jnp.flip(x, axis=(1, 2)),
    'padded': lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2)), constant_values=3),
    'mirrored': lambda x: jnp.pad(x, ((0, 0), (1, 2), (2, 1)), mode='reflect'),
    'product': lambda x: x @ SIDE.T + lax.stop_gradient(x @ SIDE.T),
    'integers': lambda x: (x.astype(jnp.int32) + 1).astype(jnp.float32),
}


@pytest.mark.parametrize('function', OPERATIONS.values(), ids=OPERATIONS)
def test_operations_are_as_jax_s(function):
    inputs = np.random.default_rng(0).uniform(0.05, 3.5, (3, 4, 6)).astype(np.float32)
    exported = onnx_graph.trace(function, inputs.shape[1:], np.float32, {})
    np.testing.assert_allclose(run(exported, inputs), function(jnp.asarray(inputs)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('function', 'named'),
    [
        (lambda x: jnp.sort(x), 'sort'),
        (lambda x: x[:, ::2], 'gather'),
        (lambda x: lax.fori_loop(0, 3, lambda _, y: 2 * y, x), 'scan'),
        (lambda x: lax.while_loop(lambda y: y.sum() < 0, lambda y: 2 * y, x), 'while'),
        (lambda x: x.astype(jnp.bfloat16), 'bfloat16'),
        (lambda x: x.astype(jnp.uint8), 'uint8'),
        (lambda x: x.astype(jnp.int32) & 3, 'and'),
        (lambda x: lax.select_n(x.astype(jnp.int32) % 3, x, 2 * x, 3 * x), 'rem|select_n'),
        (lambda x: jnp.ones((4, 6)), 'one row for each example'),
        (lambda x: jnp.einsum('bij,bkj->bik', x, x), 'dot_general'),
    ],
)
def test_what_has_no_form_is_named(function, named):
    with pytest.raises(onnx_graph.NoForm, match=named):
        onnx_graph.trace(function, (4, 6), np.float32, {})


def test_weights_that_are_used_twice_are_kept_once():
    exported = onnx_graph.trace(lambda x: x @ SIDE.T @ SIDE + x @ SIDE.T @ SIDE, (4, 6), np.float32, {})
    assert len(exported.graph.initializer) == 2


def test_no_encoder_is_left_out():
    assert {fields.get('encoder', changed().encoder) for fields in ENCODERS.values()} == set(models.ENCODERS)
