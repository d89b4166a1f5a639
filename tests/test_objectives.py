import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_cifar import objectives

TEMPERATURE = 0.2


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_loops(anchors, positives, temperature, negatives):
    """The definition, one anchor after the other, in float64."""
    groups, classes, _ = anchors.shape
    losses, right = [], []
    for g in range(groups):
        for c in range(classes):
            logits = {}
            for h in range(groups):
                for d in range(classes):
                    of_this_group = h == g
                    if negatives == 'group' and not of_this_group:
                        continue
                    if d == c and not of_this_group:
                        continue  # Another positive of the same class is no negative.
                    logits[h, d] = float(np.dot(anchors[g, c], positives[h, d])) / temperature
            largest = max(logits.values())
            log_sum = largest + math.log(sum(math.exp(logit - largest) for logit in logits.values()))
            losses.append(log_sum - logits[g, c])
            right.append(max(logits, key=logits.get) == (g, c))
    return np.mean(losses), np.mean(right)


@pytest.mark.parametrize('negatives', ['group', 'batch'])
@pytest.mark.parametrize('groups', [1, 4])
def test_loss_and_accuracy_equal_the_double_loop(negatives, groups):
    rng = np.random.default_rng(10 + groups)
    anchors = unit(rng, groups, 5, 3)
    positives = unit(rng, groups, 5, 3) + anchors
    positives /= np.linalg.norm(positives, axis=-1, keepdims=True)
    loss, accuracy = jax.jit(objectives.anchor_positive, static_argnums=(2, 3))(
        anchors.astype(np.float32), positives.astype(np.float32), TEMPERATURE, negatives
    )
    expected_loss, expected_accuracy = by_loops(anchors, positives, TEMPERATURE, negatives)
    assert loss.dtype == accuracy.dtype == jnp.float32
    assert 0 < expected_accuracy < 1
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)


@pytest.mark.parametrize('negatives', ['group', 'batch'])
def test_the_gradient_equals_numerical_differences(negatives):
    rng = np.random.default_rng(1)
    pair = np.stack([unit(rng, 2, 3, 4), unit(rng, 2, 3, 4)])
    gradient = jax.grad(lambda pair: objectives.anchor_positive(*pair, TEMPERATURE, negatives)[0])(
        jnp.asarray(pair, jnp.float32)
    )
    numerical = np.zeros_like(pair)
    for position in np.ndindex(pair.shape):
        step = np.zeros_like(pair)
        step[position] = 1e-5
        ahead, behind = (by_loops(*(pair + s * step), TEMPERATURE, negatives)[0] for s in (1, -1))
        numerical[position] = (ahead - behind) / 2e-5
    np.testing.assert_allclose(gradient, numerical, atol=1e-5)


def value_and_gradient(anchors, positives):
    def loss(pair):
        return objectives.anchor_positive(*pair, TEMPERATURE, 'batch')

    return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower((anchors, positives)).compile()


@pytest.mark.parametrize('groups_at_once', [1, 2, 4])  # Of 6 groups, 4 at once do not divide them: 3 are taken.
def test_a_few_anchors_at_a_time_are_all_anchors_at_once(monkeypatch, groups_at_once):
    rng = np.random.default_rng(4)
    pair = unit(rng, 6, 3, 5).astype(np.float32), unit(rng, 6, 3, 5).astype(np.float32)
    (loss, accuracy), gradient = value_and_gradient(*pair)(pair)
    monkeypatch.setattr(objectives, '_LARGEST_LOGITS', groups_at_once * 6 * 3**2)
    (loss_in_chunks, accuracy_in_chunks), gradient_in_chunks = value_and_gradient(*pair)(pair)
    np.testing.assert_allclose(loss_in_chunks, loss, rtol=1e-6)
    np.testing.assert_allclose([loss, accuracy], by_loops(*pair, TEMPERATURE, 'batch'), rtol=1e-5)
    assert accuracy_in_chunks == accuracy
    for own, expected in zip(gradient_in_chunks, gradient, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-6)


def test_memory_of_large_batches_is_linear(monkeypatch):
    monkeypatch.setattr(objectives, '_LARGEST_LOGITS', 2**16)
    small, large = (
        value_and_gradient(pair, pair).memory_analysis().temp_size_in_bytes
        for pair in (np.zeros((groups, 4, 8), np.float32) for groups in (128, 1024))
    )
    assert large < 12 * small  # 64 times, were the logits kept.
    assert large < 4 * (1024 * 4) ** 2 / 16


def test_positives_of_the_same_class_are_no_negatives():
    # Every embedding of a class is the same: only a masked positive of the class could compete.
    embeddings = np.broadcast_to(np.eye(3, dtype=np.float32), (4, 3, 3))
    loss, accuracy = objectives.anchor_positive(embeddings, embeddings, 0.01, 'batch')
    assert loss < 1e-6
    assert accuracy == 1


def test_more_groups_bring_more_negatives_only_to_batch():
    rng = np.random.default_rng(2)
    one = unit(rng, 1, 4, 8).astype(np.float32)
    two = np.concatenate([one, one])
    alone, _ = objectives.anchor_positive(one, one, TEMPERATURE, 'group')
    np.testing.assert_allclose(objectives.anchor_positive(two, two, TEMPERATURE, 'group')[0], alone, rtol=1e-6)
    assert objectives.anchor_positive(two, two, TEMPERATURE, 'batch')[0] > alone + 0.01


def test_sharp_temperatures_stay_finite():
    embeddings = unit(np.random.default_rng(3), 2, 3, 4).astype(np.float32)
    for negatives in ('group', 'batch'):
        value, gradient = jax.value_and_grad(
            lambda anchors, negatives=negatives: objectives.anchor_positive(anchors, embeddings, 1e-4, negatives)[0]
        )(embeddings)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(('groups', 'negatives', 'expected'), [(3, 'group', math.log(4)), (3, 'batch', math.log(10))])
def test_chance_is_the_loss_of_equal_embeddings(groups, negatives, expected):
    embeddings = np.ones((groups, 4, 1), np.float32)
    loss, _ = objectives.anchor_positive(embeddings, embeddings, TEMPERATURE, negatives)
    assert objectives.chance_loss(groups, 4, negatives) == pytest.approx(expected)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match='negatives'):
        objectives.anchor_positive(jnp.ones((1, 2, 2)), jnp.ones((1, 2, 2)), 1.0, 'all')


def test_the_docstring_s_example():
    assert doctest.testmod(objectives).attempted > 0
    assert doctest.testmod(objectives).failed == 0
