import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_cifar import config as config_lib
from simclr_cifar import optimizers

PARAMS = {
    'convolution': {'kernel': np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)},
    'dense': {
        'kernel': np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32),
        'bias': np.array([1.0, -2.0], np.float32),
    },
}
GRADIENTS = [
    jax.tree.map(lambda leaf, seed=seed: np.random.default_rng(seed).normal(size=leaf.shape).astype(np.float32), PARAMS)
    for seed in (2, 3, 4)
]


def changed(**fields):
    config = config_lib.defaults()
    config.update({'num_epochs': 5, 'batches_per_epoch': 20} | fields)
    return config


def updates(gradients=GRADIENTS, **fields):
    """What each gradient, one after the other, adds to the parameters; those stay as they are."""
    optimizer = optimizers.make_optimizer(changed(**fields))
    state, found = optimizer.init(PARAMS), []
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, PARAMS)
        found.append(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), update))
    return found


def leaves(tree):
    return tree['convolution']['kernel'], tree['dense']['kernel'], tree['dense']['bias']


@pytest.mark.parametrize(
    ('fields', 'expected'),  # at steps 0, 10, 20, 60 and 100 of 101: the first to the last
    [
        ({}, [0.3] * 5),
        ({'warmup_share': 0.2}, [0, 0.15, 0.3, 0.3, 0.3]),
        ({'warmup_share': 1.0}, [0.3 * step / 101 for step in (0, 10, 20, 60, 100)]),
        ({'schedule': 'linear', 'warmup_share': 1.0}, [0.3 * step / 101 for step in (0, 10, 20, 60, 100)]),
        ({'schedule': 'cosine', 'warmup_share': 1.0}, [0.3 * step / 101 for step in (0, 10, 20, 60, 100)]),
        ({'schedule': 'linear'}, [0.3, 0.27, 0.24, 0.12, 0]),
        (
            {'schedule': 'linear', 'warmup_share': 0.2, 'final_learning_rate_share': 0.1},
            [0, 0.15, 0.3, 0.3 * 0.55, 0.03],
        ),
        (
            {'schedule': 'cosine', 'warmup_share': 0.2},
            [0, 0.15, 0.3, 0.15, 0],
        ),
        (
            {'schedule': 'cosine', 'final_learning_rate_share': 0.5},
            [0.3 * (0.5 + 0.25 * (1 + math.cos(math.pi * done))) for done in (0, 0.1, 0.2, 0.6, 1)],
        ),
        ({'schedule': 'one_cycle', 'warmup_share': 0.2}, [0.012, 0.156, 0.3, 0.1500006, 1.2e-6]),
    ],
)
def test_schedules_by_hand(fields, expected):
    schedule = optimizers.make_schedule(changed(learning_rate=0.3, num_epochs=1, batches_per_epoch=101, **fields))
    np.testing.assert_allclose([schedule(step) for step in (0, 10, 20, 60, 100)], expected, atol=1e-6)


@pytest.mark.parametrize('weight_decay', [0.0, 0.05])
def test_adam_by_hand(weight_decay):
    first = second = jax.tree.map(np.zeros_like, PARAMS)
    for number, (update, gradient) in enumerate(zip(updates(weight_decay=weight_decay), GRADIENTS, strict=True), 1):
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)
        for own, m, v, values in zip(*map(leaves, (update, first, second, PARAMS)), strict=True):
            expected = -1e-3 * (m / (1 - 0.9**number)) / (np.sqrt(v / (1 - 0.999**number)) + 1e-8)
            if values.ndim > 1:
                expected = expected - 1e-3 * weight_decay * values
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-9)


def test_sgd_is_torch_s():
    torch = pytest.importorskip('torch')
    kernels = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves(PARAMS)]
    theirs = torch.optim.SGD(
        [{'params': kernels[:2], 'weight_decay': 0.05}, {'params': kernels[2:]}], lr=0.1, momentum=0.8, nesterov=True
    )
    for update, gradient in zip(
        updates(optimizer='sgd', learning_rate=0.1, momentum=0.8, weight_decay=0.05), GRADIENTS, strict=True
    ):
        for parameter, values, own in zip(kernels, leaves(PARAMS), leaves(gradient), strict=True):
            parameter.data, parameter.grad = torch.tensor(values), torch.tensor(own)
        theirs.step()
        for own, parameter, values in zip(leaves(update), kernels, leaves(PARAMS), strict=True):
            np.testing.assert_allclose(values + own, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_lars_by_hand():
    update = updates(GRADIENTS[:1], optimizer='lars', learning_rate=0.1, weight_decay=0.05)[0]
    for own, gradient, values in zip(*map(leaves, (update, GRADIENTS[0], PARAMS)), strict=True):
        if values.ndim > 1:
            gradient = gradient + 0.05 * values
            gradient = gradient * 1e-3 * np.linalg.norm(values) / np.linalg.norm(gradient)
        np.testing.assert_allclose(own, -0.1 * gradient, rtol=1e-4)


def test_muon_orthogonalises_every_kernel_those_of_convolutions_too():
    update = updates(GRADIENTS[:1], optimizer='muon', learning_rate=0.1, adam_learning_rate_share=0.5)[0]
    convolution, dense, bias = leaves(update)
    for kernel, gradient in (
        (convolution, GRADIENTS[0]['convolution']['kernel']),
        (dense, GRADIENTS[0]['dense']['kernel']),
    ):
        matrix = kernel.reshape(-1, kernel.shape[-1]) / 0.1
        singular_values = np.linalg.svd(matrix, compute_uv=False)
        # Five steps of Newton and Schulz with Muon's coefficients come this close to 1.
        assert np.all((singular_values > 0.6) & (singular_values < 1.3))
        u, _, v = np.linalg.svd(gradient.reshape(matrix.shape), full_matrices=False)
        cosine = -np.sum(matrix * (u @ v)) / np.linalg.norm(matrix) / np.linalg.norm(u @ v)
        assert cosine > 0.98
    # Nesterov's Adam: the first step is this much longer than the learning rate.
    np.testing.assert_allclose(np.abs(bias), 0.05 * (0.9 * 0.1 / (1 - 0.9**2) + 1), rtol=1e-4)


def test_muon_decays_kernels_alone():
    plain, decayed = (
        updates(GRADIENTS[:1], optimizer='muon', learning_rate=0.1, weight_decay=weight_decay)[0]
        for weight_decay in (0.0, 0.05)
    )
    for own, other, values in zip(*map(leaves, (decayed, plain, PARAMS)), strict=True):
        expected = -0.1 * 0.05 * values if values.ndim > 1 else 0 * values
        np.testing.assert_allclose(own - other, expected, atol=1e-6)


@pytest.mark.parametrize('optimizer', ['adam', 'sgd', 'lars', 'muon'])
def test_the_schedule_is_followed(optimizer):
    first, second = (
        updates(GRADIENTS[:1] * 2, optimizer=optimizer, schedule=schedule, warmup_share=warmup)
        for schedule, warmup in (('constant', 0.0), ('linear', 0.5))
    )
    # At step 0 the warm-up is at 0, at step 1 at a fiftieth. LARS's momentum is of steps, not of gradients.
    share = 1 / 50 / (1.9 if optimizer == 'lars' else 1)
    for own, whole in zip(leaves(second[0]), leaves(first[0]), strict=True):
        assert np.all(own == 0)
        assert np.all(whole != 0)
    for own, whole in zip(leaves(second[1]), leaves(first[1]), strict=True):
        np.testing.assert_allclose(own, whole * share, rtol=1e-4)


def test_every_optimizer_runs_inside_a_compiled_step():
    for optimizer in ('adam', 'sgd', 'lars', 'muon'):
        own = optimizers.make_optimizer(changed(optimizer=optimizer, weight_decay=0.1))
        update, _ = jax.jit(own.update)(GRADIENTS[0], own.init(PARAMS), jax.tree.map(jnp.asarray, PARAMS))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update))
