"""What an epoch's program costs: operations and memory, as XLA counts them."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from simclr_cifar import config as config_lib
from simclr_cifar import parallel, sampling, step


def compiled_reference(num_classes=10, seeds=1, **fields):
    """The reference configuration's epoch, compiled for one device."""
    config = config_lib.defaults()
    config.update({'num_classes': num_classes} | fields)
    labels = np.repeat(np.arange(num_classes), 30)
    states = [step.init_state(config, np.zeros((1, 32, 32, 3), np.uint8), 0)] * seeds
    states = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    images, index = np.zeros((len(labels), 32, 32, 3), np.uint8), sampling.class_index(labels, num_classes)
    mesh = Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
    return step.compile_epoch(config, mesh).lower(states, np.arange(seeds, dtype=np.int32), images, index).compile()


def test_a_step_has_no_operations_beside_its_products():
    # XLA counts a loop's body once, so what three more groups add is three times what one takes.
    four, one = (compiled_reference(groups_per_batch=count).cost_analysis()['flops'] for count in (4, 1))
    forward = [16 * 16 * 27 * 32, 8 * 8 * 288 * 64, 4 * 4 * 576 * 128, 128 * 8]
    # The kernels' gradients have as many multiply-adds, and the inputs' too, which the first layer needs none of.
    multiply_adds = 20 * (2 * sum(forward) + sum(forward[1:])) + 3 * 10 * 10 * 8
    assert 2 * multiply_adds <= (four - one) / 3 <= 1.03 * 2 * multiply_adds


def test_memory_is_linear_in_the_batch_and_does_not_grow_with_the_epoch(monkeypatch):
    monkeypatch.setattr(step, '_IMAGES_AT_ONCE_ON_CPU', None)
    sixteen, sixty_four, longer = (
        memory.temp_size_in_bytes + memory.output_size_in_bytes
        for memory in (
            compiled_reference(groups_per_batch=groups, batches_per_epoch=batches).memory_analysis()
            for groups, batches in ((16, 10), (64, 10), (16, 1000))
        )
    )
    # An image's patches and outputs of three layers, which the gradient needs, and the largest patches' gradient.
    kept = 4 * (16 * 16 * (27 + 32) + 8 * 8 * (288 + 64) + 4 * 4 * (576 + 128))
    assert (sixty_four - sixteen) / (48 * 20) < kept + 4 * 8 * 8 * 288 + 32 * 32 * 3 * 4
    pairs = 4 * 2 * 16 * 10 * (1000 - 10)
    assert longer - sixteen < 3 * pairs


@pytest.mark.parametrize('negatives', ['group', 'batch'])
def test_on_a_cpu_memory_grows_by_no_activations(negatives):
    four, many = (
        compiled_reference(groups_per_batch=groups, batches_per_epoch=2, negatives=negatives).memory_analysis()
        for groups in (4, 256)
    )
    # Pairs, embeddings and their gradients, and for 'batch' negatives three times the logits.
    pairs, embeddings = 2 * 2 * 2560 * 4, 2 * 2560 * 8 * 4
    logits = 2560**2 * 4 if negatives == 'batch' else 0
    assert many.temp_size_in_bytes - four.temp_size_in_bytes < 4 * (pairs + embeddings) + 3 * logits


def test_memory_is_no_more_than_each_seed_s_own():
    one, three = (compiled_reference(seeds=seeds).memory_analysis().temp_size_in_bytes for seeds in (1, 3))
    assert three <= 3 * one
