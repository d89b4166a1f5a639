import types

import jax
import numpy as np
import pytest
from jax import lax

from simclr_cifar import parallel


@pytest.mark.parametrize(('groups', 'devices'), [(1, 1), (2, 2), (6, 6), (8, 8), (12, 6), (7, 7), (11, 1), (64, 8)])
def test_a_mesh_shares_the_groups_equally(groups, devices):
    assert parallel.make_mesh(groups).size == devices
    assert parallel.describe(parallel.make_mesh(groups)) == f'{devices} of 8 cpu'


@pytest.mark.parametrize('rows', [1, 5, 12, 13, 24])
@pytest.mark.parametrize('devices', [1, 4])
def test_every_row_counts_once_whatever_the_tail(rows, devices):
    mesh = parallel.make_mesh(devices)
    double = parallel.pmapped(lambda batch: 2 * batch, mesh, in_specs=parallel.SPLIT, out_specs=parallel.SPLIT)
    inputs = np.arange(3 * rows).reshape(rows, 3)
    np.testing.assert_array_equal(parallel.in_padded_batches(double, inputs, 5, mesh), 2 * inputs)


def test_one_shape_is_compiled_for_all_batches():
    mesh = parallel.make_mesh(4)
    double = parallel.pmapped(lambda batch: 2 * batch, mesh, in_specs=parallel.SPLIT, out_specs=parallel.SPLIT)
    for rows in (3, 8, 11):
        parallel.in_padded_batches(double, np.ones((rows, 2), np.float32), 8, mesh)
    assert double._cache_size() == 1


def test_the_mean_of_gradients_over_replicas_is_not_scaled():
    mesh = parallel.make_mesh(4)

    def gradient(weight, batch):
        return lax.pmean(jax.grad(lambda weight: (weight * batch).mean())(weight), parallel.AXIS)

    mapped = parallel.pmapped(gradient, mesh, in_specs=(parallel.REPLICATED, parallel.SPLIT))
    batch = np.arange(8, dtype=np.float32)
    np.testing.assert_allclose(mapped(np.float32(1), batch), batch.mean())


def test_free_memory_is_shared(monkeypatch):
    monkeypatch.setattr(parallel.psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=4800))
    assert [parallel.free_memory(sharing) for sharing in (1, 3)] == [4800 // 8, 4800 // 24]
