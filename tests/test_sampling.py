import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from simclr_cifar import config as config_lib
from simclr_cifar import sampling

# Classes of unequal size, mixed up; the third has only two images.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 3, 2]))
INDEX = sampling.class_index(LABELS, 3)
KEY = jax.random.key(7)


def draw(step, groups, images=2):
    drawn = jax.jit(sampling.draw, static_argnames='images')(KEY, jnp.int32(step), jnp.asarray(groups), INDEX, images)
    return np.asarray(drawn)


def epoch_pairs(labels, first_step=0, groups=None, **fields):
    config = config_lib.defaults()
    config.update(fields)
    groups = jnp.arange(config.groups_per_batch) if groups is None else jnp.array(groups)
    index = sampling.class_index(labels, 1 + labels.max())
    drawn = jax.jit(lambda step: sampling.epoch_pairs(config, KEY, step, groups, index))(jnp.int32(first_step))
    return np.asarray(drawn)


def test_pairs_are_two_different_images_of_the_class():
    anchors, positives = draw(0, np.arange(2000, dtype=np.int32))
    assert anchors.shape == positives.shape == (2000, 3)
    for label in range(3):
        assert np.all(LABELS[anchors[:, label]] == label)
        assert np.all(LABELS[positives[:, label]] == label)
    assert np.all(anchors != positives)


def test_every_ordered_pair_is_equally_likely():
    anchors, positives = draw(3, np.arange(6000, dtype=np.int32))
    for label in range(3):
        members = np.flatnonzero(LABELS == label)
        expected_pairs = {(a, p) for a in members for p in members if a != p}
        pairs, counts = np.unique(np.stack([anchors[:, label], positives[:, label]]), axis=1, return_counts=True)
        assert set(map(tuple, pairs.T)) == expected_pairs
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_every_single_image_of_a_class_is_equally_likely():
    (images,) = draw(3, np.arange(6000, dtype=np.int32), images=1)
    for label in range(3):
        drawn, counts = np.unique(images[:, label], return_counts=True)
        np.testing.assert_array_equal(drawn, np.flatnonzero(LABELS == label))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize('images', [1, 2])
def test_a_group_depends_on_its_number_alone(images):
    drawn = draw(5, np.arange(8, dtype=np.int32), images)
    for first in range(0, 8, 2):
        some = draw(5, np.arange(first, first + 2, dtype=np.int32), images)
        np.testing.assert_array_equal(some, drawn[:, first : first + 2])


def test_steps_and_groups_differ():
    groups = np.arange(50, dtype=np.int32)
    (first, _), (second, _) = draw(0, groups), draw(1, groups)
    assert np.mean(first == second) < 0.6
    assert len(np.unique(first, axis=0)) > 20


def test_a_shuffle_permutes_within_classes_and_uniformly():
    index = sampling.class_index(np.array([1, 0, 1, 1, 0, 0]), 2)
    orders = np.asarray(jax.vmap(lambda epoch: sampling.shuffle(KEY, epoch, index).order)(jnp.arange(3000)))
    for columns, members in ((slice(0, 3), [1, 4, 5]), (slice(3, 6), [0, 2, 3])):
        permutations, counts = np.unique(orders[:, columns], axis=0, return_counts=True)
        assert len(permutations) == 6
        assert all(sorted(permutation) == members for permutation in permutations.tolist())
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_a_shuffle_passes_over_a_class_without_images():
    index = sampling.class_index(np.array([0, 2, 0, 2]), 3)
    order = np.asarray(sampling.shuffle(KEY, jnp.int32(0), index).order)
    assert sorted(order[:2]) == [0, 2]
    assert sorted(order[2:]) == [1, 3]


MANY = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [24, 25, 30]))


@pytest.mark.parametrize('pairs', ['class', 'class_views', 'views'])
def test_without_replacement_an_epoch_shows_no_image_twice(pairs):
    # Just as many as the smallest class allows, or all but seven.
    groups = {'class': 3, 'class_views': 6, 'views': 18}[pairs]
    fields = {'pairs': pairs, 'with_replacement': False, 'groups_per_batch': groups, 'batches_per_epoch': 4}
    epoch = epoch_pairs(MANY, **fields)
    assert epoch.shape == (4, 2, groups, 1 if pairs == 'views' else 3)
    shown = epoch if pairs == 'class' else epoch[:, 0]
    assert len(np.unique(shown)) == shown.size == 72
    if pairs == 'class':
        np.testing.assert_array_equal(MANY[epoch], np.broadcast_to(np.arange(3), epoch.shape))
    else:
        np.testing.assert_array_equal(epoch[:, 0], epoch[:, 1])
    np.testing.assert_array_equal(epoch_pairs(MANY, **fields), epoch)
    assert np.mean(epoch_pairs(MANY, first_step=4, **fields) == epoch) < 0.3
    # Replicas draw their share.
    parts = [epoch_pairs(MANY, groups=part, **fields) for part in np.split(np.arange(groups), 3)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), epoch)


@pytest.mark.parametrize('pairs', ['class', 'class_views', 'views'])
def test_with_replacement_every_step_draws_for_itself(pairs):
    fields = {'pairs': pairs, 'groups_per_batch': 400, 'batches_per_epoch': 3}
    epoch = epoch_pairs(MANY, **fields)
    np.testing.assert_array_equal(epoch_pairs(MANY, first_step=1, **fields)[:2], epoch[1:])
    assert len(np.unique(epoch)) == len(MANY)
    if pairs == 'class':
        expected = [draw_of(MANY, step, 400) for step in range(3)]
        np.testing.assert_array_equal(epoch, expected)
    else:
        np.testing.assert_array_equal(epoch[:, 0], epoch[:, 1])
    if pairs != 'views':
        np.testing.assert_array_equal(MANY[epoch], np.broadcast_to(np.arange(3), epoch.shape))


def draw_of(labels, step, groups):
    return sampling.draw(KEY, jnp.int32(step), jnp.arange(groups), sampling.class_index(labels, 3))


@pytest.mark.parametrize('pairs', ['class', 'class_views', 'views'])
def test_labels_tell_who_is_alike(pairs):
    config = config_lib.defaults()
    config.pairs = pairs
    drawn = jnp.arange(24).reshape(4, 2, 3)
    expected = drawn[:, 0] if pairs == 'views' else np.broadcast_to(np.arange(3), (4, 3))
    np.testing.assert_array_equal(sampling.labels(config, drawn), expected)
