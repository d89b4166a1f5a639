"""The per-replica step on 1, 2, 4 and 8 devices, under shard_map and under pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import class_images
from jax.sharding import Mesh

from simclr_cifar import augment, convolutions, models, objectives, parallel, sampling, step
from simclr_cifar import config as config_lib

NUM_CLASSES = 4
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(NUM_CLASSES), 12))
# Each image its own brightness, so that no two replicas see data with the same gradient.
IMAGES = class_images(LABELS, 0)[:, ::4, ::4] // np.random.default_rng(1).integers(1, 4, (len(LABELS), 1, 1, 1))
IMAGES = IMAGES.astype(np.uint8)
INDEX = sampling.class_index(LABELS, NUM_CLASSES)


def small_config(**fields):
    config = config_lib.defaults()
    config.update(
        {'groups_per_batch': 8, 'batches_per_epoch': 3, 'channels': (8, 8), 'embedding_dim': 4, 'seed': 3} | fields
    )
    return config


def initial(config, seeds=None):
    """The states of seeds, by default the config's alone, along a leading axis, and the seeds."""
    seeds = [config.seed] if seeds is None else seeds
    states = [step.init_state(config, IMAGES, seed) for seed in seeds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), np.array(seeds, np.int32)


def run_epoch(config, num_devices, seeds=None, epochs=1):
    """The states and metrics of seeds after an epoch; of one seed without the leading axis."""
    mesh = Mesh(np.array(jax.devices()[:num_devices]), (parallel.AXIS,))
    states, *rest = parallel.replicate((*initial(config, seeds), IMAGES, INDEX), mesh)
    epoch = step.compile_epoch(config, mesh)
    for _ in range(epochs):
        states, metrics = epoch(states, *rest)
    assert epoch._cache_size() == 1
    result = jax.device_get((states, metrics))
    return result if seeds else jax.tree.map(lambda leaf: leaf[0], result)


def assert_close(tree, other, rtol=2e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), tree, other)


def by_hand(config, number=0):
    """A step's loss, accuracy and gradient at the initial parameters, on one device and without the step's code."""
    state, model = step.init_state(config, IMAGES, config.seed), models.make_model(config)
    keys = [jax.random.fold_in(jax.random.key(config.seed), stream) for stream in (step._SAMPLING, step._AUGMENTATION)]
    groups = jnp.arange(config.groups_per_batch)
    pairs = sampling.epoch_pairs(config, keys[0], jnp.int32(0), groups, INDEX)[number]
    images = np.stack([[augmented(config, keys[1], number, pairs, g, part) for part in (0, 1)] for g in groups])
    objective, labels = objectives.make_objective(config), sampling.labels(config, pairs.swapaxes(0, 1))

    def loss_and_accuracy(params):
        variables = state.variables | {'params': params}
        # On a mesh of one device, over which layers normalise.
        outputs, _ = model.apply(variables, images.reshape(-1, *IMAGES.shape[1:]), train=True, mutable=['batch_stats'])
        embeddings = outputs / jnp.linalg.norm(outputs, axis=1, keepdims=True)
        embeddings = embeddings.reshape(*images.shape[:3], -1)
        return objective(embeddings[:, 0], embeddings[:, 1], labels)

    differentiate = jax.value_and_grad(loss_and_accuracy, has_aux=True)
    (loss, accuracy), gradient = parallel.pmapped(differentiate, parallel.make_mesh(1))(state.variables['params'])
    return loss, accuracy, gradient


def augmented(config, key, number, pairs, group, part):
    """The images of one part of a group's pairs as they are trained on: float32 [C, H, W, 3]."""
    augment_image, images = augment.make_augment(config), []
    num_classes = pairs.shape[-1]
    for column in range(num_classes):
        index = pairs[part, group, column]
        image = IMAGES[index] / np.float32(255)
        if augment_image is not None:
            place = (2 * group + part) * num_classes + column
            own = jax.random.fold_in(jax.random.fold_in(key, number), place)
            epoch = number // config.batches_per_epoch
            image = augment_image(own, jax.random.fold_in(key, index), epoch, jnp.asarray(image))
        images.append(image)
    return np.stack(images)


@pytest.mark.parametrize('num_devices', [1, 2, 4, 8])
@pytest.mark.parametrize(
    ('negatives', 'logits', 'images_at_once'),  # 1000 are all, 16 two groups and 1, as the least, one
    [
        ('group', 2**24, 1000),
        ('group', 2**24, 16),
        ('group', 2**24, 1),
        ('batch', 2**24, 1000),
        ('batch', 1, 16),
        ('batch', 2**24, 1),
    ],
)
def test_loss_and_gradient_are_those_of_the_global_batch(monkeypatch, negatives, logits, images_at_once, num_devices):
    config = small_config(negatives=negatives, batches_per_epoch=1)
    loss, accuracy, gradient = by_hand(config)
    monkeypatch.setattr(objectives, '_LARGEST_LOGITS', logits)
    monkeypatch.setattr(step, '_IMAGES_AT_ONCE_ON_CPU', images_at_once)
    state, metrics = run_epoch(config, num_devices)
    np.testing.assert_allclose(metrics['loss'], [loss], rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], [accuracy], rtol=1e-6)
    # Adam's first moment after one step is a tenth of the gradient; the parameters would hide a wrong scale.
    assert_close(state.opt_state[0].mu, jax.tree.map(lambda leaf: leaf / 10, gradient))


NORMALISED = {'encoder': 'whitened_cnn', 'channels': (6,), 'head_channels': (5,), 'head_batch_norm': True}


@pytest.mark.usefixtures('convolutions_by_definition')
@pytest.mark.parametrize('num_devices', [2, 8])
@pytest.mark.parametrize(
    'fields',
    [
        NORMALISED,
        NORMALISED | {'objective': 'sup_con', 'augmentation': 'pad_and_crop,alternating_flip', 'crop_padding': 2},
        {'objective': 'sup_con', 'pairs': 'class_views', 'augmentation': 'flip', 'with_replacement': False},
        {'objective': 'nt_xent', 'pairs': 'views', 'augmentation': 'simclr'},
        NORMALISED | {'objective': 'siglip', 'pairs': 'class_views', 'augmentation': 'flip,cutout', 'cutout_size': 3},
    ],
)
def test_every_kind_of_batch_is_the_same_on_any_number_of_devices(monkeypatch, fields, num_devices):
    monkeypatch.setattr(step, '_IMAGES_AT_ONCE_ON_CPU', 16)
    config = small_config(batches_per_epoch=1, **fields)
    loss, accuracy, gradient = by_hand(config)
    state, metrics = run_epoch(config, num_devices)
    np.testing.assert_allclose(metrics['loss'], [loss], rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], [accuracy], rtol=1e-6)
    assert_close(state.opt_state[0].mu, jax.tree.map(lambda leaf: leaf / 10, gradient), rtol=2e-3, atol=1e-5)


@pytest.mark.usefixtures('convolutions_by_definition')
def test_running_statistics_are_those_of_the_global_batch():
    config = small_config(**NORMALISED, batch_norm_momentum=0.25, batches_per_epoch=1)
    before = step.init_state(config, IMAGES, config.seed).variables['batch_stats']
    (state, _), (on_four, _) = (run_epoch(config, num_devices) for num_devices in (1, 4))
    assert_close(on_four.variables['batch_stats'], state.variables['batch_stats'], rtol=1e-4, atol=1e-6)
    after = state.variables['batch_stats']
    assert_close(after['encoder'].pop('Whitening_0'), before['encoder'].pop('Whitening_0'), rtol=1e-6)
    assert all(np.all(a != b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True))


@pytest.mark.usefixtures('convolutions_by_definition')
def test_averages_follow_the_variables():
    config = small_config(average_decay=0.6, batches_per_epoch=1)
    variables = step.init_state(config, IMAGES, config.seed).variables
    average, mesh = variables, parallel.make_mesh(1)
    states, *rest = parallel.replicate((*initial(config), IMAGES, INDEX), mesh)
    epoch = step.compile_epoch(config, mesh)
    for number in range(8):
        states, _ = epoch(states, *rest)
        state = jax.tree.map(lambda leaf: np.asarray(leaf[0]), states)
        decay = min(0.6, (1 + number) / (10 + number))
        average = jax.tree.map(lambda old, new, decay=decay: decay * old + (1 - decay) * new, average, state.variables)
        assert_close(state.average, average, rtol=1e-4)
    assert decay == (1 + 7) / (10 + 7)
    assert run_epoch(small_config(), 1)[0].average == {}


@pytest.mark.usefixtures('convolutions_by_definition')
def test_the_replicas_gradients_differ():
    config = small_config(groups_per_batch=1, batches_per_epoch=1)
    states, _ = initial(config)
    gradients = []
    for seed in (3, 4):
        mesh = parallel.make_mesh(1)
        drawn = np.array([seed], np.int32)
        after, _ = step.compile_epoch(config, mesh)(*parallel.replicate((states, drawn, IMAGES, INDEX), mesh))
        gradients.append(np.asarray(after.opt_state[0].mu['head']['Dense_0']['kernel']))
        states, _ = initial(config)
    assert np.linalg.norm(gradients[0] - gradients[1]) > 0.1 * np.linalg.norm(gradients[0])


@pytest.mark.usefixtures('convolutions_by_definition')
@pytest.mark.parametrize('num_devices', [1, 4])
def test_seeds_trained_together_are_those_trained_alone(num_devices):
    together = run_epoch(small_config(), num_devices, seeds=[3, 11, 5])
    for number, seed in enumerate((3, 11, 5)):
        alone = run_epoch(small_config(seed=seed), num_devices)
        assert_close(jax.tree.map(lambda leaf, number=number: leaf[number], together[1]), alone[1])
        one = jax.tree.map(lambda leaf, number=number: leaf[number], together[0].opt_state[0].mu)
        assert_close(one, alone[0].opt_state[0].mu, rtol=2e-3, atol=1e-5)
    assert len(np.unique(together[1]['loss'])) == 9


@pytest.mark.usefixtures('convolutions_by_definition')
@pytest.mark.parametrize('negatives', ['group', 'batch'])
def test_an_epoch_is_the_same_on_any_number_of_devices(negatives):
    config = small_config(negatives=negatives)
    on_one = run_epoch(config, 1)
    for num_devices in (2, 4, 8):
        state, metrics = run_epoch(config, num_devices)
        assert_close(metrics, on_one[1])
        assert_close(state.opt_state[0].mu, on_one[0].opt_state[0].mu, rtol=2e-3, atol=1e-5)


@pytest.mark.usefixtures('convolutions_by_definition')
@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize(
    'fields',
    [{'negatives': 'batch'}, NORMALISED | {'objective': 'sup_con', 'average_decay': 0.9, 'augmentation': 'flip'}],
)
def test_the_same_function_runs_under_pmap(num_devices, fields):
    config = small_config(**fields)
    devices = jax.devices()[:num_devices]
    epoch = jax.pmap(
        step.make_epoch(config, num_devices), axis_name=parallel.AXIS, in_axes=(0, None, None, None), devices=devices
    )
    state = step.init_state(config, IMAGES, config.seed)
    copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * num_devices), [state])
    (state,), (metrics,) = jax.device_get(epoch(copies, [np.int32(config.seed)], IMAGES, INDEX))
    expected = run_epoch(config, num_devices)
    for replica in range(num_devices):
        assert_close(jax.tree.map(lambda leaf, replica=replica: leaf[replica], (state, metrics)), expected, rtol=1e-6)


@pytest.mark.parametrize('images', [0, 10**6])  # Fewer of a batch are vectorised, more are taken seed by seed.
@pytest.mark.parametrize('num_devices', [1, 4])
def test_seeds_side_by_side_are_those_of_one_program(num_devices, images, monkeypatch):
    together = run_epoch(small_config(), num_devices, seeds=[3, 11, 5])
    monkeypatch.setattr(parallel, 'is_cpu', lambda mesh: False)
    monkeypatch.setattr(convolutions, 'IMAGES_IN_PRODUCTS_ON_A_GPU', images)
    vectorised = run_epoch(small_config(), num_devices, seeds=[3, 11, 5])
    assert_close(vectorised[1], together[1])
    assert_close(vectorised[0].opt_state[0].mu, together[0].opt_state[0].mu, rtol=2e-3, atol=1e-5)


def test_steps_are_counted_and_metrics_are_per_step():
    state, metrics = run_epoch(small_config(batches_per_epoch=5), 2)
    assert state.step == 5
    assert metrics['loss'].shape == metrics['accuracy'].shape == (5,)
    assert metrics['loss'].dtype == np.float32
    assert len(set(metrics['loss'].tolist())) == 5


def test_every_step_draws_its_own_pairs():
    # Too small a learning rate to move the parameters: the steps differ by their pairs alone.
    config = small_config(learning_rate=1e-30)
    _, metrics = run_epoch(config, 2)
    np.testing.assert_allclose(metrics['loss'], [by_hand(config, number)[0] for number in range(3)], rtol=1e-5)


def test_an_epoch_in_two_halves_is_the_same_epoch():
    whole, _ = run_epoch(small_config(batches_per_epoch=4), 2)
    halves, _ = run_epoch(small_config(batches_per_epoch=2), 2, epochs=2)
    jax.tree.map(np.testing.assert_array_equal, halves, whole)


def test_an_epoch_returns_embeddings_of_every_class_after_its_last_step():
    config = small_config()
    state, metrics = run_epoch(config, 2)
    probed = INDEX.order[np.linspace(0, len(LABELS) - 1, step._PROBED).astype(int)]
    assert set(LABELS[probed]) == set(range(NUM_CLASSES))
    expected = models.encode(models.make_model(config), state.variables, IMAGES[probed])['embedding']
    assert_close(metrics['embeddings'], expected)


def test_adam_is_optax_s():
    config = small_config(batches_per_epoch=1)
    state, _ = run_epoch(config, 1)
    before = step.init_state(config, IMAGES, config.seed)
    *_, gradient = by_hand(config)
    optimizer = optax.adam(config.learning_rate)
    updates, _ = optimizer.update(gradient, optimizer.init(before.variables['params']))
    moved = jax.tree.map(lambda after, before: after - before, state.variables, before.variables)
    # Where the gradient is nearly 0, Adam's first step is of its sign, which rounding decides.
    for actual, expected, slope in zip(*map(jax.tree.leaves, (moved, updates, gradient)), strict=True):
        clear = np.abs(slope) > 1e-4
        np.testing.assert_allclose(np.asarray(actual)[clear], np.asarray(expected)[clear], rtol=1e-2)
    assert len(jax.tree.leaves(updates)) == len(jax.tree.leaves(moved)) == 6
