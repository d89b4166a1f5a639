import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from simclr_cifar import config as config_lib
from simclr_cifar import encoders, models, parallel
from tests.test_convolutions import convolve_by_loops

pytestmark = pytest.mark.usefixtures('convolutions_by_definition')
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


@functools.partial(jax.jit, static_argnames=('model', 'representation'))
def encode(model, variables, images, representation='embedding'):
    return models.encode(model, variables, images)[representation]


def changed(**fields):
    config = config_lib.defaults()
    config.update(fields)
    return config


def model_and_variables(images=IMAGES, **fields):
    """A model, and variables of its shapes that are drawn here: compiling its own draws takes seconds."""
    model = models.make_model(changed(**fields))
    rng = np.random.default_rng(1)

    def drawn(leaf):
        if leaf.ndim == 1:
            return rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
        return (rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)

    shapes = jax.eval_shape(lambda key: models.init(model, key, images), jax.random.key(0))
    return model, jax.tree.map(drawn, shapes)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_reference_encoder_equals_its_definition():
    images = IMAGES[:2, :12, :12]
    model, variables = model_and_variables(images, channels=(4, 6), embedding_dim=3)
    params, hidden = variables['params'], images / 255
    for layer in ('convolution_0', 'convolution_1'):
        kernel, bias = (np.asarray(params['encoder'][layer][name]) for name in ('kernel', 'bias'))
        hidden = np.maximum(convolve_by_loops(hidden, kernel, 2) + bias, 0)
    dense = params['head']['Dense_0']
    outputs = hidden.mean(axis=(1, 2)) @ np.asarray(dense['kernel']) + np.asarray(dense['bias'])
    expected = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(model, variables, images), expected, atol=1e-5)


def test_the_reference_encoder_has_the_reference_s_parameters():
    by_hand = (27 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (128 * 8 + 8)
    variables = models.init(models.make_model(config_lib.defaults()), jax.random.key(0), IMAGES)
    assert set(variables) == {'params'}
    assert count(variables) == by_hand == 94_280


def resnet_of(torchvision, variables, images, blocks, bottleneck, train):
    """torchvision's network, its stem made that for small images, with a model's variables in it."""
    import torch

    resnet = torchvision.models.resnet
    network = resnet.ResNet(resnet.Bottleneck if bottleneck else resnet.BasicBlock, blocks)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = network.fc = torch.nn.Identity()
    used = {'Convolution': 0, 'Dense': 0, 'BatchNorm': 0}

    def arrays_of(kind):
        name = f'{kind}_{used[kind]}'
        used[kind] += 1
        merged = {**variables['params']['encoder'][name], **variables['batch_stats']['encoder'].get(name, {})}
        return {name: torch.tensor(np.asarray(values)) for name, values in merged.items()}

    for layer in network.modules():  # In the order that they are used in.
        if isinstance(layer, torch.nn.Conv2d) and layer.kernel_size == (1, 1):
            layer.weight.data = arrays_of('Dense')['kernel'].T[:, :, None, None]
        elif isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = arrays_of('Convolution')['kernel'].permute(3, 2, 0, 1)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            arrays = arrays_of('BatchNorm')
            layer.weight.data, layer.bias.data = arrays['scale'], arrays['bias']
            layer.running_mean, layer.running_var = arrays['mean'], arrays['var']
    for kind, number in used.items():
        assert f'{kind}_{number}' not in variables['params']['encoder']
    with torch.no_grad():
        return network.train(train)(torch.tensor(images / np.float32(255)).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize(
    ('encoder', 'blocks', 'bottleneck', 'parameters'),
    # He et al.'s networks with a 3x3 stem, less the classifier: 11,173,962 - 5,130 and 23,520,842 - 20,490.
    [('resnet18', (2, 2, 2, 2), False, 11_168_832), ('resnet50', (3, 4, 6, 3), True, 23_500_352)],
)
def test_a_resnet_is_torchvision_s(torchvision, encoder, blocks, bottleneck, parameters):
    images = IMAGES[:4]
    model, variables = model_and_variables(images, encoder=encoder, embedding_dim=4)
    assert count(variables['params']['encoder']) == parameters
    features = jax.jit(functools.partial(model.apply, method='represent'))(variables, models.to_float(images))[
        'features'
    ]
    expected = resnet_of(torchvision, variables, images, blocks, bottleneck, train=False)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_resnet_in_training_is_torchvision_s(torchvision):
    images = IMAGES[:8, :16, :16]
    model, variables = model_and_variables(images, encoder='resnet18', embedding_dim=4)

    def features(images):
        variables_now = {name: tree['encoder'] for name, tree in variables.items()}
        return model.encoder.apply(variables_now, images, train=True, mutable=['batch_stats'])[0]

    own = parallel.pmapped(features, parallel.make_mesh(1))(models.to_float(images))
    expected = resnet_of(torchvision, variables, images, (2, 2, 2, 2), False, train=True)
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_whitened_encoder_equals_its_definition():
    images = IMAGES[:3, :12, :12]
    model, variables = model_and_variables(images, encoder='whitened_cnn', channels=(4, 6))
    params, statistics = (variables[name]['encoder'] for name in ('params', 'batch_stats'))
    hidden = np.stack(
        [
            [[image[r : r + 4, c : c + 4].ravel() for c in range(0, 11, 2)] for r in range(0, 11, 2)]
            for image in np.pad(images / 255, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
        ]
    )
    hidden = (hidden - np.asarray(statistics['Whitening_0']['mean'])) @ np.asarray(statistics['Whitening_0']['kernel'])
    hidden = np.asarray(nn.gelu(np.concatenate([hidden, -hidden], axis=-1) + np.asarray(params['bias'])))
    for number in range(4):
        hidden = convolve_by_loops(hidden, np.asarray(params[f'Convolution_{number}']['kernel']), 1)
        if number == 2:
            hidden = np.stack(
                [
                    [[image[r : r + 2, c : c + 2].max(axis=(0, 1)) for c in (0, 2, 4)] for r in (0, 2, 4)]
                    for image in hidden
                ]
            )
        norm = statistics[f'BatchNorm_{number}']
        hidden = (hidden - np.asarray(norm['mean'])) / np.sqrt(np.asarray(norm['var']) + 1e-5)
        hidden = np.asarray(nn.gelu(hidden + np.asarray(params[f'BatchNorm_{number}']['bias'])))
    expected = hidden.max(axis=(1, 2))
    features = jax.jit(functools.partial(model.apply, method='represent'))(variables, models.to_float(images))[
        'features'
    ]
    np.testing.assert_allclose(features, expected, atol=1e-3)


def test_whitening_is_of_the_training_images_and_is_not_trained():
    # Neighbouring pixels are alike, as in photographs.
    smooth = IMAGES.astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)[:, :32, :32]
    smooth = ((smooth + np.roll(smooth, 1, axis=1) + np.roll(smooth, 1, axis=2)) / 3).astype(np.uint8)
    model = models.make_model(changed(encoder='whitened_cnn'))
    variables = models.init(model, jax.random.key(0), smooth)
    whitening = variables['batch_stats']['encoder']['Whitening_0']
    patches = np.asarray(encoders._patches(jnp.asarray(smooth / np.float32(255)))).reshape(-1, 48).astype(np.float64)
    whitened = (patches - np.asarray(whitening['mean'])) @ np.asarray(whitening['kernel'])
    covariance = np.cov(whitened.T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-2)
    assert np.all((np.diag(covariance) > 0.5) & (np.diag(covariance) < 1.01))
    variances = np.sort(np.linalg.eigvalsh(np.cov(patches.T)))[::-1][:24]
    np.testing.assert_allclose(np.diag(covariance), variances / (variances + 5e-4), rtol=0.02)
    assert 'Whitening_0' not in variables['params']['encoder']


def test_convolutions_start_as_the_identity_as_far_as_channels_go():
    kernel = np.asarray(encoders._partial_identity(jax.random.key(0), (3, 3, 4, 6)))
    inputs = np.random.default_rng(0).normal(size=(1, 5, 5, 4))
    outputs = convolve_by_loops(inputs, kernel, 1)
    np.testing.assert_allclose(outputs[..., :4], inputs, atol=1e-6)
    assert np.abs(kernel[..., 4:]).max() < 1 / np.sqrt(9 * 4)
    assert np.abs(kernel[..., 4:]).max() > 0.9 / np.sqrt(9 * 4)


@pytest.mark.parametrize('batch_norm', [False, True])
def test_the_head_is_a_perceptron(batch_norm):
    fields = {'head_channels': (7, 5), 'embedding_dim': 3, 'head_batch_norm': batch_norm}
    model, variables = model_and_variables(channels=(4, 6), **fields)
    hidden = np.asarray(
        model.apply(variables, models.to_float(IMAGES), method=lambda model, x: model.encoder(x, False))
    )
    params = variables['params']['head']
    for number in range(3):
        hidden = np.maximum(hidden, 0) if number else hidden
        hidden = hidden @ np.asarray(params[f'Dense_{number}']['kernel'])
        if batch_norm:
            assert 'bias' not in params[f'Dense_{number}']
            running = jax.tree.map(np.asarray, variables['batch_stats']['head'][f'BatchNorm_{number}'])
            affine = jax.tree.map(np.asarray, params[f'BatchNorm_{number}'])
            hidden = (hidden - running['mean']) / np.sqrt(running['var'] + 1e-5) * affine['scale'] + affine['bias']
        else:
            hidden = hidden + np.asarray(params[f'Dense_{number}']['bias'])
    np.testing.assert_allclose(model.apply(variables, models.to_float(IMAGES), train=False), hidden, atol=1e-4)


ENCODERS = [
    {'encoder': 'average_pooling_cnn'},
    {'encoder': 'whitened_cnn', 'channels': (8, 16), 'head_batch_norm': True},
]


@pytest.mark.parametrize('representation', ['features', 'embedding'])
@pytest.mark.parametrize('fields', ENCODERS)
def test_embeddings_have_unit_norm_and_a_finite_gradient_everywhere(fields, representation):
    model, variables = model_and_variables(**fields)
    embeddings = encode(model, variables, IMAGES, representation)
    assert embeddings.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)

    def total(params):
        return encode(model, variables | {'params': params}, IMAGES, representation).sum()

    zero = jax.tree.map(jnp.zeros_like, variables['params'])
    if fields['encoder'] == 'average_pooling_cnn':
        np.testing.assert_array_equal(encode(model, {'params': zero}, IMAGES, representation), 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(zero)))


@pytest.mark.parametrize('fields', ENCODERS)
@pytest.mark.parametrize('number', [1, 5])
def test_an_image_s_embedding_does_not_depend_on_the_others(fields, number):
    model, variables = model_and_variables(**fields)
    together = encode(model, variables, IMAGES)[:number]
    alone = np.concatenate([encode(model, variables, IMAGES[i : i + 1]) for i in range(number)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize('encoder', ['average_pooling_cnn', 'resnet18', 'whitened_cnn'])
def test_bfloat16_is_float32_nearly_and_parameters_stay_float32(encoder):
    fields = {'encoder': encoder, 'channels': (8, 16)}
    _, variables = model_and_variables(IMAGES[:8, :16, :16], **fields)
    full, half = (
        encode(models.make_model(changed(compute_dtype=dtype, **fields)), variables, IMAGES[:8, :16, :16])
        for dtype in ('float32', 'bfloat16')
    )
    assert half.dtype == jnp.float32
    assert 0 < np.abs(full - half).max() < 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}


def test_operations_by_hand():
    model, variables = model_and_variables(encoder='whitened_cnn', channels=(8, 16), embedding_dim=5)
    stages = 256 * 48 * 24 + 256 * 9 * (48 * 8 + 8 * 8) + 256 * 9 * 8 * 16 + 64 * 9 * 16 * 16
    assert models.operations(model, variables, (32, 32, 3)) == stages + 16 * 5
    # What is said of ResNet-18 on CIFAR-10: 0.56 billion.
    model = models.make_model(changed(encoder='resnet18'))
    variables = jax.eval_shape(lambda: models.init(model, jax.random.key(0), IMAGES[:2]))
    assert models.operations(model, variables, (32, 32, 3)) == pytest.approx(0.5557e9, rel=1e-3)


def test_images_too_small_for_the_encoder_are_refused():
    for side, channels in ((2, (8,)), (4, (8, 8)), (8, (8, 8, 8))):
        config = changed(encoder='whitened_cnn', channels=channels)
        models.require_fit(config, (side, side, 3))
        model, images = models.make_model(config), np.zeros((1, side, side, 3), np.uint8)
        assert encode(model, models.init(model, jax.random.key(0), images), images).shape == (1, 8)
        with pytest.raises(config_lib.InputError, match=f'images of {side} pixels a side, these have {side - 1}'):
            models.require_fit(config, (side, side - 1, 3))
