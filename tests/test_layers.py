import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from simclr_cifar import layers, parallel


@pytest.mark.parametrize(('stride', 'use_bias'), [(1, True), (2, True), (1, False)])
def test_the_convolution_and_its_gradients_equal_flax_s(stride, use_bias):
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ours, theirs = layers.Convolution(5, stride, use_bias), nn.Conv(5, (3, 3), strides=stride, use_bias=use_bias)
    params = theirs.init(jax.random.key(1), images)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), images)) == jax.tree.map(jnp.shape, params)

    weights = jax.random.normal(jax.random.key(2), (2, 8 // stride, 8 // stride, 5))

    def gradients(module):
        loss = jax.value_and_grad(
            lambda params, images: jnp.sum(weights * jnp.sin(module.apply(params, images))), (0, 1)
        )
        return jax.jit(loss)(params, images)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients(ours), gradients(theirs))


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (8, 7)])
def test_padding_at_both_edges_and_its_gradients_equal_flax_s(size):
    images = jax.random.normal(jax.random.key(0), (2, *size, 3))
    ours = layers.Convolution(5, 2, padding='BOTH')
    theirs = nn.Conv(5, (3, 3), strides=2, padding=((1, 1), (1, 1)))
    params = theirs.init(jax.random.key(1), images)

    def gradients(module):
        loss = jax.value_and_grad(lambda params, images: jnp.sum(jnp.sin(module.apply(params, images))), (0, 1))
        return jax.jit(loss)(params, images)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients(ours), gradients(theirs))


@pytest.mark.parametrize(('height', 'stride'), [(8, 1), (8, 2), (7, 2)])
def test_a_dense_layer_of_places_is_a_1x1_convolution(height, stride):
    images = jax.random.normal(jax.random.key(0), (2, height, 6, 3))
    ours, theirs = layers.Dense(5, stride), nn.Conv(5, (1, 1), strides=stride)
    params = ours.init(jax.random.key(1), images)
    params['params']['bias'] += 0.5
    of_theirs = {'params': params['params'] | {'kernel': params['params']['kernel'][None, None]}}
    np.testing.assert_allclose(ours.apply(params, images), theirs.apply(of_theirs, images), atol=1e-5)


def test_a_dense_layer_of_features_is_flax_s():
    features = jax.random.normal(jax.random.key(0), (4, 3))
    params = nn.Dense(5).init(jax.random.key(1), features)
    np.testing.assert_allclose(layers.Dense(5).apply(params, features), nn.Dense(5).apply(params, features), atol=1e-6)


def variables_of(shape):
    rng = np.random.default_rng(1)
    return {
        'params': {name: rng.uniform(0.5, 2, shape[-1:]).astype(np.float32) for name in ('scale', 'bias')},
        'batch_stats': {name: rng.uniform(0.5, 2, shape[-1:]).astype(np.float32) for name in ('mean', 'var')},
    }


@pytest.mark.parametrize('shape', [(8, 3, 3, 5), (16, 5)])
@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_batch_norm_is_flax_s_of_the_global_batch(shape, num_devices):
    rng = np.random.default_rng(0)
    # Each replica's inputs have statistics of their own.
    inputs = rng.normal(size=shape) * np.linspace(1, 3, shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) + 3
    weights, inputs = rng.normal(size=shape).astype(np.float32), inputs.astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (parallel.AXIS,))
    variables = variables_of(shape)

    def gradients(module, mean, variables, inputs, weights):
        def loss(params, inputs):
            outputs, new = module.apply({**variables, 'params': params}, inputs, mutable=['batch_stats'])
            return jnp.mean(weights * jnp.sin(outputs)), (outputs, new)

        found = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables['params'], inputs)
        (value, (outputs, new)), (of_params, of_inputs) = found
        return mean((value, new, of_params)), outputs, of_inputs

    def ours(variables, inputs, weights):
        module = functools.partial(layers.BatchNorm(0.7).apply, train=True)

        class Bound:
            apply = staticmethod(module)

        return gradients(Bound, lambda tree: jax.lax.pmean(tree, parallel.AXIS), variables, inputs, weights)

    replicated, split = parallel.REPLICATED, parallel.SPLIT
    mapped = parallel.pmapped(ours, mesh, in_specs=(replicated, split, split), out_specs=(replicated, split, split))
    whole, outputs, of_inputs = mapped(variables, inputs, weights)
    flax_s = nn.BatchNorm(use_running_average=False, momentum=0.7, epsilon=1e-5)
    expected, expected_outputs, of_expected = gradients(flax_s, lambda tree: tree, variables, inputs, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, expected)
    np.testing.assert_allclose(outputs, expected_outputs, atol=1e-5)
    # A replica's loss is the mean of its own share.
    np.testing.assert_allclose(of_inputs / num_devices, of_expected, atol=1e-6)


def test_batch_norm_after_training_uses_the_running_statistics():
    inputs = np.random.default_rng(2).normal(size=(6, 5)).astype(np.float32)
    variables = variables_of(inputs.shape)
    expected = nn.BatchNorm(use_running_average=True, epsilon=1e-5).apply(variables, inputs)
    np.testing.assert_allclose(layers.BatchNorm(0.9).apply(variables, inputs, train=False), expected, atol=1e-5)


def test_batch_norm_computes_statistics_in_float32():
    inputs = (30 + np.random.default_rng(3).normal(size=(64, 2))).astype(jnp.bfloat16)
    module = layers.BatchNorm(0.0)
    variables = module.init(jax.random.key(0), inputs, train=False)
    mapped = parallel.pmapped(
        lambda inputs: module.apply(variables, inputs, train=True, mutable=['batch_stats']), parallel.make_mesh(1)
    )
    outputs, new = mapped(inputs)
    assert outputs.dtype == jnp.bfloat16
    expected = inputs.astype(np.float64)
    expected = (expected - expected.mean(axis=0)) / np.sqrt(expected.var(axis=0) + 1e-5)
    np.testing.assert_allclose(np.asarray(outputs).astype(np.float64), expected, atol=0.02)
    np.testing.assert_allclose(new['batch_stats']['mean'], inputs.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(new['batch_stats']['var'], inputs.astype(np.float64).var(axis=0), rtol=1e-3)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_a_large_mean_costs_the_variance_no_digits(num_devices):
    # 'The mean square less the squared mean' has an error of 1e4 squared / 2**24, several times this variance.
    rng = np.random.default_rng(0)
    inputs = (1e4 + rng.normal(size=(64, 3, 3, 5)) + np.linspace(0, 3, 64).reshape(-1, 1, 1, 1)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (parallel.AXIS,))

    def statistics(inputs):
        return layers.BatchNorm(0.0).apply(variables_of((5,)), inputs, train=True, mutable=['batch_stats'])[1]

    found = parallel.pmapped(statistics, mesh, in_specs=parallel.SPLIT)(inputs)['batch_stats']
    np.testing.assert_allclose(found['mean'], inputs.astype(np.float64).mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(found['var'], inputs.astype(np.float64).var(axis=(0, 1, 2)), rtol=1e-4)
