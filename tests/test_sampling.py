import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from simclr_cifar import sampling

# Classes of unequal size, mixed up; the third has only two images.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [5, 3, 2]))
INDEX = sampling.class_index(LABELS, 3)
KEY = jax.random.key(7)


def draw(step, groups):
    return (np.asarray(part) for part in jax.jit(sampling.pairs)(KEY, jnp.int32(step), jnp.asarray(groups), INDEX))


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


def test_a_group_depends_on_its_number_alone():
    anchors, positives = draw(5, np.arange(8, dtype=np.int32))
    for first in range(0, 8, 2):
        some_anchors, some_positives = draw(5, np.arange(first, first + 2, dtype=np.int32))
        np.testing.assert_array_equal(some_anchors, anchors[first : first + 2])
        np.testing.assert_array_equal(some_positives, positives[first : first + 2])


def test_steps_and_groups_differ():
    groups = np.arange(50, dtype=np.int32)
    (first, _), (second, _) = draw(0, groups), draw(1, groups)
    assert np.mean(first == second) < 0.6
    assert len(np.unique(first, axis=0)) > 20
