import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from simclr_cifar import config as config_lib
from simclr_cifar import objectives, parallel

TEMPERATURE, BIAS = 0.2, -2.0
KINDS = ['group', 'batch', 'sup_con', 'nt_xent', 'siglip']
OF_THE_BATCH = KINDS[1:]


def objective(kind, temperature=TEMPERATURE, axis_name=None):
    """The objective of a kind as (anchors, positives, labels) -> (loss, accuracy)."""
    config = config_lib.defaults()
    config.update(temperature=temperature, logit_bias=BIAS)
    if kind in ('group', 'batch'):
        config.negatives = kind
    else:
        config.objective = kind
    return objectives.make_objective(config, axis_name)


def unit(rng, *shape):
    vectors = rng.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def batch(seed, groups, classes, dimensions):
    """Anchors, positives like them, and labels in an order of their own in each group, one of them alone."""
    rng = np.random.default_rng(seed)
    anchors = unit(rng, groups, classes, dimensions)
    positives = anchors + unit(rng, groups, classes, dimensions)
    positives /= np.linalg.norm(positives, axis=-1, keepdims=True)
    labels = np.stack([rng.permutation(classes) for _ in range(groups)])
    labels[0, 0] = 99
    return anchors.astype(np.float32), positives.astype(np.float32), labels.astype(np.int32)


def log_sum_exp(logits):
    largest = max(logits)
    return largest + math.log(sum(math.exp(logit - largest) for logit in logits))


def by_loops(kind, anchors, positives, labels, temperature=TEMPERATURE):
    """The definitions, one embedding after the other, in float64."""
    groups, classes, size = anchors.shape
    anchors, positives = (part.reshape(-1, size).astype(np.float64) for part in (anchors, positives))
    labels, group = labels.ravel(), np.repeat(np.arange(groups), classes)
    losses, right = [], []
    if kind in ('group', 'batch'):
        for a in range(len(anchors)):
            logits = {}
            for p in range(len(anchors)):
                if kind == 'group' and group[p] != group[a]:
                    continue
                if p != a and labels[p] == labels[a]:
                    continue  # Another positive of the same class is no negative.
                logits[p] = float(anchors[a] @ positives[p]) / temperature
            losses.append(log_sum_exp(list(logits.values())) - logits[a])
            right.append(max(logits, key=logits.get) == a)
    elif kind == 'siglip':
        for a in range(len(anchors)):
            logits = [float(anchors[a] @ positives[p]) / temperature + BIAS for p in range(len(anchors))]
            signs = [1 if labels[p] == labels[a] else -1 for p in range(len(anchors))]
            losses.append(sum(math.log1p(math.exp(-z * logit)) for z, logit in zip(signs, logits, strict=True)))
            right.append(signs[int(np.argmax(logits))] == 1)
    else:
        embeddings, count = np.concatenate([anchors, positives]), len(anchors)
        alike = labels if kind == 'sup_con' else np.arange(count)
        alike = np.concatenate([alike, alike])
        for i in range(2 * count):
            logits = {j: float(embeddings[i] @ embeddings[j]) / temperature for j in range(2 * count) if j != i}
            log_sum, mine = log_sum_exp(list(logits.values())), [j for j in logits if alike[j] == alike[i]]
            losses.append(-sum(logits[j] - log_sum for j in mine) / len(mine))
            right.append(max(logits, key=logits.get) in mine)
    return np.mean(losses), np.mean(right)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('groups', [1, 4])
def test_loss_and_accuracy_equal_the_double_loop(kind, groups):
    drawn = batch(10 + groups, groups, 5, 3)
    loss, accuracy = jax.jit(objective(kind))(*drawn)
    expected_loss, expected_accuracy = by_loops(kind, *drawn)
    assert loss.dtype == accuracy.dtype == jnp.float32
    assert 0 < expected_accuracy < 1
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_the_gradient_equals_numerical_differences(kind):
    anchors, positives, labels = batch(1, 2, 3, 4)
    pair = np.stack([anchors, positives]).astype(np.float64)
    gradient = jax.grad(lambda pair: objective(kind)(*pair, labels)[0])(jnp.asarray(pair, jnp.float32))
    numerical = np.zeros_like(pair)
    for position in np.ndindex(pair.shape):
        step = np.zeros_like(pair)
        step[position] = 1e-5
        ahead, behind = (by_loops(kind, *(pair + s * step), labels)[0] for s in (1, -1))
        numerical[position] = (ahead - behind) / 2e-5
    np.testing.assert_allclose(gradient, numerical, atol=1e-5)


def test_nt_xent_is_optax_s():
    anchors, positives, labels = batch(2, 3, 4, 6)
    embeddings = np.concatenate([anchors.reshape(-1, 6), positives.reshape(-1, 6)])
    pairs = np.tile(np.arange(12), 2)
    expected, gradient = jax.value_and_grad(lambda e: optax.losses.ntxent(e, pairs, TEMPERATURE))(embeddings)
    loss, own = jax.value_and_grad(lambda pair: objective('nt_xent')(*pair, labels)[0])(np.stack([anchors, positives]))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # Its norms are in its gradient: what is along the embeddings is not.
    tangent = own.reshape(-1, 6) - jnp.sum(own.reshape(-1, 6) * embeddings, axis=1, keepdims=True) * embeddings
    np.testing.assert_allclose(tangent, gradient, atol=1e-6)


@pytest.mark.parametrize('kind', ['sup_con', 'nt_xent'])
def test_the_loss_is_pytorch_metric_learning_s(kind):
    torch = pytest.importorskip('torch')
    losses = pytest.importorskip('pytorch_metric_learning.losses')
    anchors, positives, labels = batch(3, 4, 3, 5)
    embeddings = torch.tensor(np.concatenate([anchors.reshape(-1, 5), positives.reshape(-1, 5)]))
    theirs = {'sup_con': losses.SupConLoss, 'nt_xent': losses.NTXentLoss}[kind](temperature=TEMPERATURE)
    alike = labels.ravel() if kind == 'sup_con' else np.arange(labels.size)
    expected = theirs(embeddings, torch.tensor(np.tile(alike, 2)))
    np.testing.assert_allclose(objective(kind)(anchors, positives, labels)[0], float(expected), rtol=1e-5)


def test_the_pairwise_sigmoid_loss_is_torch_s():
    torch = pytest.importorskip('torch')
    anchors, positives, labels = batch(4, 3, 4, 5)
    logits = torch.tensor(anchors.reshape(-1, 5) @ positives.reshape(-1, 5).T / TEMPERATURE + BIAS)
    same = torch.tensor(labels.reshape(-1, 1) == labels.reshape(1, -1), dtype=torch.float32)
    total = torch.nn.functional.binary_cross_entropy_with_logits(logits, same, reduction='sum')
    np.testing.assert_allclose(objective('siglip')(anchors, positives, labels)[0], float(total) / 12, rtol=1e-5)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_of_the_simplex_loss_accuracy_and_gradient_equal_the_definition(smoothing):
    anchors, positives, labels = batch(7, 3, 4, 6)
    labels[0, 0] = 6 - labels[0, 1:].sum()
    vertices = np.zeros((4, 6))
    vertices[:, :4] = np.eye(4) - 1 / 4
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    np.testing.assert_allclose((vertices @ vertices.T)[~np.eye(4, dtype=bool)], -1 / 3)

    def by_definition(pair):
        losses, right = [], []
        for place in np.ndindex(pair.shape[:3]):
            logits = [float(pair[place] @ vertex) / TEMPERATURE for vertex in vertices]
            label = labels[place[1:]]
            targets = [(1 - smoothing) * (number == label) + smoothing / 4 for number in range(4)]
            losses.append(sum(t * (log_sum_exp(logits) - logit) for t, logit in zip(targets, logits, strict=True)))
            right.append(int(np.argmax(logits)) == label)
        return np.mean(losses), np.mean(right)

    def own(pair):
        return objectives.simplex(*pair, labels, TEMPERATURE, smoothing)

    pair = np.stack([anchors, positives])
    (loss, accuracy), gradient = jax.jit(jax.value_and_grad(own, has_aux=True))(pair)
    expected_loss, expected_accuracy = by_definition(pair.astype(np.float64))
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-6)
    assert 0 < expected_accuracy < 1
    for place in [(0, 0, 0, 0), (0, 2, 3, 1), (1, 1, 2, 3), (1, 2, 0, 5)]:
        step = np.zeros(pair.shape)
        step[place] = 1e-5
        numerical = (by_definition(pair + step)[0] - by_definition(pair - step)[0]) / 2e-5
        np.testing.assert_allclose(gradient[place], numerical, atol=1e-6)


def test_the_simplex_is_a_normalised_softmax_of_pytorch_metric_learning():
    torch = pytest.importorskip('torch')
    losses = pytest.importorskip('pytorch_metric_learning.losses')
    anchors, positives, _ = batch(8, 3, 4, 4)
    labels = np.broadcast_to(np.arange(4), (3, 4))
    theirs = losses.NormalizedSoftmaxLoss(4, 4, temperature=TEMPERATURE)
    theirs.W.data = torch.eye(4) - 1 / 4  # It takes their norms away.
    embeddings = torch.tensor(np.concatenate([anchors.reshape(-1, 4), positives.reshape(-1, 4)]))
    expected = theirs(embeddings, torch.tensor(np.tile(labels.ravel(), 2)))
    np.testing.assert_allclose(objective('simplex')(anchors, positives, labels)[0], float(expected.detach()), rtol=1e-5)


def test_of_one_pair_a_class_sup_con_is_nt_xent():
    anchors, positives, _ = batch(5, 1, 6, 4)
    labels = np.arange(6)[None]
    both = [objective(kind)(anchors, positives, labels) for kind in ('sup_con', 'nt_xent')]
    np.testing.assert_array_equal(*both)


def value_and_gradient(kind, *drawn):
    def loss(anchors, positives, labels):
        return objective(kind)(anchors, positives, labels)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*drawn).compile()


@pytest.mark.parametrize('kind', OF_THE_BATCH)
@pytest.mark.parametrize('at_once', [1, 2, 4])  # Of 18 or 36 anchors, 4 at once do not divide the former: 3 are taken.
def test_a_few_anchors_at_a_time_are_all_anchors_at_once(monkeypatch, kind, at_once):
    drawn = batch(4, 6, 3, 5)
    (loss, accuracy), gradient = value_and_gradient(kind, *drawn)(*drawn)
    monkeypatch.setattr(objectives, '_LARGEST_LOGITS', at_once * 18)
    (loss_in_chunks, accuracy_in_chunks), gradient_in_chunks = value_and_gradient(kind, *drawn)(*drawn)
    np.testing.assert_allclose(loss_in_chunks, loss, rtol=1e-6)
    np.testing.assert_allclose([loss, accuracy], by_loops(kind, *drawn), rtol=1e-5)
    assert accuracy_in_chunks == accuracy
    for own, expected in zip(gradient_in_chunks, gradient, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-6)


@pytest.mark.parametrize('kind', OF_THE_BATCH)
def test_memory_of_large_batches_is_linear(monkeypatch, kind):
    monkeypatch.setattr(objectives, '_LARGEST_LOGITS', 2**16)
    small, large = (
        value_and_gradient(kind, pair, pair, np.zeros((groups, 4), np.int32)).memory_analysis().temp_size_in_bytes
        for groups, pair in ((groups, np.zeros((groups, 4, 8), np.float32)) for groups in (128, 1024))
    )
    assert large < 12 * small  # 64 times, were the logits kept.
    assert large < 4 * (1024 * 4) ** 2 / 16


@pytest.mark.parametrize('kind', OF_THE_BATCH)
def test_a_batch_of_65536_images_fits(kind):
    pair, labels = jax.ShapeDtypeStruct((3276, 10, 128), jnp.float32), jax.ShapeDtypeStruct((3276, 10), jnp.int32)
    compiled = value_and_gradient(kind, pair, pair, labels)
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9  # All logits and their gradient are 4 GB at the least.


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('num_devices', [2, 4, 8])
def test_replicas_losses_and_gradients_are_those_of_the_global_batch(kind, num_devices):
    drawn = batch(6, 8, 3, 5)
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (parallel.AXIS,))

    def of_replica(anchors, positives, labels):
        own = objective(kind, axis_name=parallel.AXIS)
        found, gradient = jax.value_and_grad(own, (0, 1), has_aux=True)(anchors, positives, labels)
        # A replica's loss is the mean over its own anchors, the global one the mean of those.
        return jax.lax.pmean(found, parallel.AXIS), jax.tree.map(lambda leaf: leaf / num_devices, gradient)

    split = parallel.pmapped(
        of_replica, mesh, in_specs=parallel.SPLIT, out_specs=(parallel.REPLICATED, (parallel.SPLIT, parallel.SPLIT))
    )
    found, gradient = split(*drawn)
    expected, expected_gradient = value_and_gradient(kind, *drawn)(*drawn)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for own, of_batch in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(own, of_batch, atol=1e-6)


def test_positives_of_the_same_class_are_no_negatives():
    # Every embedding of a class is the same: only a masked positive of the class could compete.
    embeddings = np.broadcast_to(np.eye(3, dtype=np.float32), (4, 3, 3))
    labels = np.broadcast_to(np.arange(3), (4, 3))
    loss, accuracy = objective('batch', temperature=0.01)(embeddings, embeddings, labels)
    assert loss < 1e-6
    assert accuracy == 1


def test_more_groups_bring_more_negatives_only_to_batch():
    one, labels = unit(np.random.default_rng(2), 1, 4, 8).astype(np.float32), np.arange(4)[None]
    two, both = np.concatenate([one, one]), np.concatenate([labels, labels])
    alone, _ = objective('group')(one, one, labels)
    np.testing.assert_allclose(objective('group')(two, two, both)[0], alone, rtol=1e-6)
    assert objective('batch')(two, two, both)[0] > alone + 0.01


@pytest.mark.parametrize('kind', KINDS)
def test_sharp_temperatures_stay_finite(kind):
    anchors, positives, labels = batch(3, 2, 3, 4)
    sharp = objective(kind, temperature=1e-4)
    value, gradient = jax.value_and_grad(lambda anchors: sharp(anchors, positives, labels)[0])(anchors)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ('fields', 'loss', 'accuracy'),
    [
        ({}, math.log(4), 1 / 4),
        ({'negatives': 'batch'}, math.log(10), 1 / 10),
        ({'objective': 'sup_con'}, math.log(23), 5 / 23),
        ({'objective': 'nt_xent'}, math.log(23), 1 / 23),
        ({'objective': 'siglip'}, 3 * math.log1p(math.exp(-3)) + 9 * math.log1p(math.exp(3)), 1 / 4),
        ({'objective': 'simplex', 'label_smoothing': 0.2}, math.log(4), 1 / 4),
        ({'objective': 'sup_con', 'pairs': 'views'}, math.log(5), 1 / 5),
        ({'negatives': 'batch', 'pairs': 'views'}, math.log(3), 1 / 3),
    ],
)
def test_chance_is_of_equal_embeddings(fields, loss, accuracy):
    config = config_lib.defaults()
    config.update(fields, groups_per_batch=3, logit_bias=-2.0)
    assert objectives.chance(config, 4) == pytest.approx((loss, accuracy))
    classes = 1 if config.pairs == 'views' else 4
    labels = np.arange(3)[:, None] if config.pairs == 'views' else np.broadcast_to(np.arange(4), (3, 4))
    embeddings = np.ones((3, classes, 4), np.float32) / 2
    np.testing.assert_allclose(objectives.make_objective(config)(embeddings, embeddings, labels)[0], loss, rtol=1e-6)


def test_unknown_negatives_are_refused():
    with pytest.raises(ValueError, match='negatives'):
        objectives.anchor_positive(jnp.ones((1, 2, 2)), jnp.ones((1, 2, 2)), jnp.arange(2)[None], 1.0, 'all')


def test_the_docstring_s_example():
    assert doctest.testmod(objectives).attempted > 0
    assert doctest.testmod(objectives).failed == 0
