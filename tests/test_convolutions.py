import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from simclr_cifar import convolutions


def convolve_by_loops(inputs, kernel, stride):
    """3x3, 'SAME' (of an odd number of rows or columns of padding the extra one at the end), in float64."""
    batch, *sizes, _ = inputs.shape
    rows, columns = (-(-size // stride) for size in sizes)
    top, left = (
        max((outputs - 1) * stride + 3 - size, 0) // 2 for outputs, size in zip((rows, columns), sizes, strict=True)
    )
    outputs = np.zeros((batch, rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            for i in range(3):
                for j in range(3):
                    y, x = stride * row + i - top, stride * column + j - left
                    if 0 <= y < sizes[0] and 0 <= x < sizes[1]:
                        outputs[:, row, column] += inputs[:, y, x].astype(np.float64) @ kernel[i, j].astype(np.float64)
    return outputs


def inputs_and_kernel(size, channels=3, features=4, batch=6):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch, *size, channels)).astype(np.float32)
    return inputs, rng.normal(size=(3, 3, channels, features)).astype(np.float32)


SIZES = [(32, 32), (7, 5), (8, 3), (2, 2), (1, 4), (1, 1)]


@pytest.mark.parametrize('convolve', [convolutions.convolve, convolutions._by_definition])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', SIZES)
def test_every_platform_s_convolution_equals_loops(size, stride, convolve):
    inputs, kernel = inputs_and_kernel(size)
    found = jax.jit(convolve, static_argnums=2)(inputs, kernel, stride)
    np.testing.assert_allclose(found, convolve_by_loops(inputs, kernel, stride), atol=2e-5)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('at_once', [2**21, 1])  # all images, and one
def test_gradients_equal_torch_s(monkeypatch, size, stride, at_once):
    monkeypatch.setattr(convolutions, '_FLOATS_AT_ONCE', at_once)
    inputs, kernel = inputs_and_kernel(size)
    outputs, pull_back = jax.vjp(lambda *both: convolutions.convolve(*both, stride), inputs, kernel)
    slope = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)

    # In float64, as NCHW; padding the far edges only, where 'SAME' does.
    leaves = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in (inputs, kernel)]
    padding = [max((-(-length // stride) - 1) * stride + 3 - length, 0) for length in size]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in padding)
    padded = torch.nn.functional.pad(leaves[0].permute(0, 3, 1, 2), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, leaves[1].permute(3, 2, 0, 1), stride=stride).permute(0, 2, 3, 1)
    (expected * torch.tensor(slope, dtype=torch.float64)).sum().backward()

    np.testing.assert_allclose(outputs, expected.detach(), atol=2e-5)
    for gradient, leaf in zip(pull_back(slope), leaves, strict=True):
        np.testing.assert_allclose(gradient, leaf.grad, atol=1e-5 * max(1, leaf.grad.abs().max()))


@pytest.mark.parametrize('stride', [1, 2])
def test_other_platforms_get_the_convolution_itself(stride):
    inputs, kernel = inputs_and_kernel((8, 8))
    lowered = {
        platform: jax.jit(convolutions.convolve, static_argnums=2)
        .trace(inputs, kernel, stride)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ('cpu', 'cuda', 'tpu')
    }
    assert {platform: 'stablehlo.convolution' in text for platform, text in lowered.items()} == {
        'cpu': False,
        # Few images that are strided go by products on a GPU, too.
        'cuda': stride == 1,
        'tpu': True,
    }


def test_many_images_are_convolved_by_the_library_on_a_gpu():
    inputs = jnp.zeros((convolutions.IMAGES_IN_PRODUCTS_ON_A_GPU + 1, 8, 8, 3))
    lowered = jax.jit(convolutions.convolve, static_argnums=2).trace(inputs, jnp.zeros((3, 3, 3, 4)), 2)
    assert 'stablehlo.convolution' in lowered.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('stride', [1, 2])
def test_bfloat16_is_rounded_at_the_end_only(stride):
    inputs, kernel = (jnp.asarray(array, jnp.bfloat16) for array in inputs_and_kernel((8, 8), channels=64))
    found = convolutions.convolve(inputs, kernel, stride)
    exact = convolve_by_loops(*(np.asarray(array, np.float32) for array in (inputs, kernel)), stride)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


def test_fewer_multiplications_than_the_definition_takes():
    inputs, kernel = inputs_and_kernel((16, 16), channels=256, features=256, batch=4)
    compiled = jax.jit(convolutions.convolve, static_argnums=2).lower(inputs, kernel, 1).compile()
    by_definition = 2 * 4 * 16 * 16 * 9 * 256 * 256
    assert 4 / 9 < compiled.cost_analysis()['flops'] / by_definition < 0.5


@pytest.mark.parametrize('stride', [1, 2])
def test_memory_of_the_products_does_not_grow_with_the_batch(stride):
    def temporary_bytes(batch):
        inputs, kernel = jnp.zeros((batch, 32, 32, 64)), jnp.zeros((3, 3, 64, 64))
        gradient = jax.grad(lambda *both: jnp.sum(jnp.sin(convolutions.convolve(*both, stride))), (0, 1))
        return jax.jit(gradient).lower(inputs, kernel).compile().memory_analysis().temp_size_in_bytes

    outputs = 4 * 64 * 1024 // stride**2
    assert (temporary_bytes(256) - temporary_bytes(64)) / 192 < 4 * outputs
