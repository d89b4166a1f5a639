"""What trains: images on the devices from the start, or read while others are trained on."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from simclr_cifar import config as config_lib
from simclr_cifar import data, feed, parallel, step
from simclr_cifar.feed import Feed

NUM_IMAGES, SEEDS = 96, (3, 5)


@pytest.fixture
def training():
    """Rows of more images, so that an image's number is not its place among those stored."""
    labels = np.arange(2 * NUM_IMAGES, dtype=np.int32) % 3
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    chosen = np.random.default_rng(1).permutation(len(labels))[:NUM_IMAGES]
    return data.Dataset('cifar10', images, labels, ('cat', 'dog', 'ship'), '').take(chosen)


def make_config(**fields):
    config = config_lib.defaults().unlock()
    config.update(batches_per_epoch=6, groups_per_batch=4, num_epochs=3, channels=(8, 8), optimizer='sgd')
    config.update(**fields)
    config_lib.validate(config)
    return config.lock()


def start(config, training, mesh):
    states = [step.init_state(config, training.images, seed) for seed in SEEDS]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    return parallel.replicate((stacked, np.array(SEEDS, np.int32)), mesh)


def trained(config, training, num_devices, resident, pauses=()):
    """Returns (states, the metrics of each epoch), on the host; training starts anew after the epochs in pauses."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (parallel.AXIS,))
    states, seeds = start(config, training, mesh)
    metrics = []
    for first, last in zip((0, *pauses), (*pauses, config.num_epochs), strict=True):
        with Feed(config, mesh, training, len(SEEDS), resident).epochs(states, seeds) as epoch:
            for _ in range(first, last):
                states, of_epoch = epoch(states)
                metrics.append(jax.tree.map(np.asarray, of_epoch))
    return jax.tree.map(np.asarray, states), metrics


@pytest.mark.usefixtures('convolutions_by_definition')
@pytest.mark.parametrize('num_devices', [1, 4])
@pytest.mark.parametrize(
    ('fields', 'chunk_bytes'),
    [
        ({}, 20_000),
        ({'with_replacement': False, 'batches_per_epoch': 4, 'augmentation': 'pad_and_crop,alternating_flip'}, 20_000),
        ({'pairs': 'views', 'augmentation': 'simclr', 'objective': 'nt_xent'}, 4_000),
        ({'pairs': 'class_views', 'augmentation': 'flip', 'objective': 'sup_con', 'head_batch_norm': True}, 10_000),
    ],
)
def test_images_read_ahead_train_as_those_on_the_devices_do(training, fields, chunk_bytes, num_devices, monkeypatch):
    config = make_config(**fields)
    expected_states, expected = trained(config, training, num_devices, resident=True)
    monkeypatch.setattr(feed, '_CHUNK_BYTES', chunk_bytes)
    assert 'read 2 steps at a time' in str(Feed(config, parallel.one_device(), training, len(SEEDS), resident=False))
    states, metrics = trained(config, training, num_devices, resident=False, pauses=[1])
    for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(expected_states), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(metrics, expected, strict=True):
        np.testing.assert_array_equal(ours['loss'], theirs['loss'])
        np.testing.assert_array_equal(ours['accuracy'], theirs['accuracy'])
        np.testing.assert_allclose(ours['embeddings'], theirs['embeddings'], atol=1e-5)


@pytest.mark.usefixtures('convolutions_by_definition')
def test_little_is_read_ahead(training, monkeypatch):
    config, mesh = make_config(num_epochs=50), parallel.one_device()
    monkeypatch.setattr(feed, '_CHUNK_BYTES', 1)  # A step at a time.
    divided = []
    divide = parallel.divide
    monkeypatch.setattr(
        parallel, 'divide', lambda *arguments, **named: divided.append(1) or divide(*arguments, **named)
    )
    states, seeds = start(config, training, mesh)
    with Feed(config, mesh, training, len(SEEDS), resident=False).epochs(states, seeds) as epoch:
        for trained_epochs in (1, 2):
            states, _ = epoch(states)
            chunks = trained_epochs * config.batches_per_epoch
            assert len(divided) <= 2 * (chunks + feed._CHUNKS_AHEAD)  # Pairs and images of each.


@pytest.mark.usefixtures('convolutions_by_definition')
def test_the_device_is_given_little_ahead(training, monkeypatch):
    """What it is given stays in its memory until it has been trained on."""
    config, mesh = make_config(), parallel.one_device()
    monkeypatch.setattr(feed, '_CHUNK_BYTES', 1)  # A step at a time.
    waited = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, 'block_until_ready', lambda metrics: waited.append(metrics) or wait(metrics))
    states, seeds = start(config, training, mesh)
    with Feed(config, mesh, training, len(SEEDS), resident=False).epochs(states, seeds) as epoch:
        _, metrics = epoch(states)
    # Each step but the first two is given once the one two before it is done.
    losses = np.concatenate([np.asarray(of_chunk['loss']) for of_chunk in waited], axis=1)
    np.testing.assert_array_equal(losses, np.asarray(metrics['loss'])[:, : config.batches_per_epoch - 2])


def test_images_that_cannot_be_read_end_training(training):
    class Gone(data.Rows):
        gone = False

        def __getitem__(self, key):
            if self.gone:
                raise OSError('gone')
            return super().__getitem__(key)

    config, mesh = make_config(), parallel.one_device()
    images = Gone(training.images, np.arange(NUM_IMAGES))
    states, seeds = start(config, training, mesh)
    training = dataclasses.replace(training, images=images)
    with Feed(config, mesh, training, len(SEEDS), resident=False).epochs(states, seeds) as epoch:
        images.gone = True
        with pytest.raises(OSError, match='gone'):
            epoch(states)


@pytest.mark.parametrize(
    ('resident', 'free', 'expected'),
    [('auto', 2.0, True), ('auto', 1.9, False), ('yes', 0.1, True), ('no', 100.0, False)],
)
def test_images_stay_on_the_devices_where_there_is_room(training, resident, free, expected, monkeypatch):
    monkeypatch.setattr(parallel, 'free_memory', lambda sharing: free * training.images.nbytes)
    assert feed.is_resident(make_config(resident=resident), training) == expected
