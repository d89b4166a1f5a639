"""Images without classes: what scores an encoder of them, against loops over the definitions, and a run on them."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import class_images
from PIL import Image
from selenium.webdriver.common.by import By

from simclr_cifar import (
    augment,
    beginning,
    data,
    evaluate,
    files,
    models,
    parallel,
    pictures,
    reevaluate,
    report,
    step,
    train,
)
from simclr_cifar import config as config_lib
from simclr_cifar import views as views_lib
from simclr_cifar.config import InputError


def make_config(**fields):
    config = config_lib.defaults()
    config.update(
        pairs='views',
        objective='nt_xent',
        augmentation='pad_and_crop,flip',
        channels=(8,),
        embedding_dim=4,
        groups_per_batch=4,
        batches_per_epoch=5,
        eval_batch_size=7,  # Divides none of the splits.
    )
    config.update(fields)
    config_lib.validate(config)
    return config


def make_dataset(count, seed):
    images = class_images(np.arange(count) % 10, seed)[:, ::2, ::2]
    return data.Dataset('folder:pets', images, np.zeros(count, np.int32), ('pets',), 'Pets.')


def make_splits():
    splits = {name: make_dataset(count, seed) for seed, (name, count) in enumerate(SIZES.items())}
    return splits | {'train_sample': splits['train'].take(np.arange(0, 30, 2))}


SIZES = {'train': 30, 'validation': 15, 'test': 16}


def test_an_image_is_known_again_by_its_nearest():
    angles = {'test': [0, 90, 180], 'test, view 0': [0, 40, 80], 'test, view 1': [10, 65, 100]}

    def embed(name):
        radians = np.deg2rad(np.array(angles[name], np.float32))
        return np.stack([np.cos(radians), np.sin(radians)], axis=1)

    assert views_lib.known_again('test', embed).tolist() == [True, True, False]
    found, of_images = views_lib.all_figures('test', embed)
    assert found['view_accuracy'] == pytest.approx(2 / 3)
    apart = [2 - 2 * np.cos(np.deg2rad(degrees)) for degrees in (10, 25, 20)]
    assert found['view_alignment'] == pytest.approx(np.mean(apart), rel=1e-5)
    assert of_images['view_accuracy'].tolist() == [1, 1, 0]


def test_equal_embeddings_are_known_again_by_chance():
    assert views_lib.figures('test', lambda name: np.ones((50, 1), np.float32)) == {'view_accuracy': 1 / 50}


def test_a_view_is_the_same_at_every_reading():
    config, images = make_config(augmentation='random_resized_crop,flip'), make_dataset(9, 0).images
    first, second = (views_lib.View(augment.make_see(config), images, epoch) for epoch in range(2))
    whole = first[0:9]
    assert whole.dtype == np.uint8 and len(first) == 9
    np.testing.assert_array_equal(np.concatenate([first[start : start + 4] for start in (0, 4, 8)]), whole)
    assert all(np.mean(np.abs(whole[n] - second[0:9][n].astype(float))) > 2 for n in range(9))
    augment_image = augment.make_augment(config)
    for number, image in enumerate(images):
        key = jax.random.fold_in(jax.random.key(0), number)
        expected = 255 * augment_image(jax.random.fold_in(key, 1), key, 1, image / np.float32(255))
        np.testing.assert_allclose(second[number : number + 1][0], expected, atol=0.51)


def test_figures_are_those_of_their_definition():
    config = make_config(average_decay=0.9, flip_averaging=True)
    splits = make_splits()
    state = step.init_state(config, splits['train'].images, 0)
    state = state.replace(average=jax.tree.map(lambda leaf: 1.5 * leaf + 0.01, state.variables))
    evaluation = evaluate.make_evaluate(config, parallel.make_mesh(1), splits)(state, ['train', 'validation', 'test'])
    assert evaluation.confusions == {}
    assert not [name for name in evaluation.figures if 'precision' in name or 'knn' in name or 'probe' in name]
    see, model = augment.make_see(config), models.make_model(config)

    def expected(dataset, variables, flip=True, name='embedding'):
        both = []
        for epoch in range(2):
            seen = see(np.asarray(dataset.images[:]), 0, epoch)
            embedded = np.asarray(models.encode(model, variables, seen)[name], np.float64)
            if flip:
                embedded += np.asarray(models.encode(model, variables, seen[:, :, ::-1])[name], np.float64)
            both.append(embedded / np.linalg.norm(embedded, axis=1, keepdims=True))
        hits = 0
        for number, one in enumerate(both[0]):
            distances = [np.sum((one - other) ** 2) for other in both[1]]
            hits += int(np.argmin(distances) == number)
        return hits / len(both[0]), np.mean(np.sum((both[0] - both[1]) ** 2, axis=1))

    for name, split in (('train', 'train_sample'), ('validation', 'validation'), ('test', 'test')):
        accuracy, alignment = expected(splits[split], state.average)
        assert evaluation.figures[f'{name}/view_accuracy'] == pytest.approx(accuracy)
        assert evaluation.figures[f'{name}/view_alignment'] == pytest.approx(alignment, abs=1e-5)
        assert np.mean(evaluation.queries[name]['view_accuracy']) == pytest.approx(accuracy)
    for kind, arguments in (
        ('raw_weights', (state.variables,)),
        ('without_flip', (state.average, False)),
        ('features', (state.average, True, 'features')),
    ):
        accuracy, _ = expected(splits['test'], *arguments)
        assert evaluation.figures[f'test/{kind}/view_accuracy'] == pytest.approx(accuracy)
    monitor = evaluate.make_monitor(config, parallel.make_mesh(1), splits)
    accuracy, _ = expected(splits['validation'], state.variables, False)
    assert monitor(state) == {'monitor/view_accuracy': pytest.approx(accuracy)}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(run, config, cache_dir) of a folder of pictures without classes, trained and reported."""
    root = tmp_path_factory.mktemp('views')
    (root / 'pets' / '.hidden').mkdir(parents=True)
    for number in range(60):
        shade = np.random.default_rng(number).integers(90, 110)
        pixels = np.random.default_rng(number + 100).normal(shade, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / 'pets' / f'{number:02}.png')
    config = make_config(
        dataset=f'folder:{root / "pets"}', validation_fraction=0.2, num_epochs=4, milestones=(1, 2, 3), seed=1
    )
    splits = data.load_splits(config, None, root / 'cache')
    run = files.RunFolder(root / 'run')
    beginning.require_trainable(config, splits['train'])
    with run.locked():
        beginning.begin(run, 'made', config, splits)
        train.train(config, splits, {config.seed: run})
        report.write_report(run)
    return run, config, root / 'cache'


def test_the_best_view_accuracy_chooses(tmp_path):
    run = files.RunFolder(tmp_path)
    for epoch, accuracy in {1: 0.1, 2: 0.3, 3: 0.3, 4: 0.2}.items():
        files.write_json(run.evaluation(epoch) / 'metrics.json', {'validation/view_accuracy': accuracy})
    assert train._choose(run, 4, [1, 2, 3, 4]) == 2


def test_figures_are_of_the_chosen_epoch(trained):
    run, _, _ = trained
    scores = {epoch: figures['validation/view_accuracy'] for epoch, figures in run.evaluations().items()}
    final = run.read_json(run.metrics)
    assert final['epoch'] == min(epoch for epoch in scores if scores[epoch] == max(scores.values()))
    assert final['overfitting/peak_epoch'] == final['epoch']


def test_it_is_evaluated_again_to_the_same(trained):
    run, config, cache_dir = trained
    before = run.read_json(run.metrics)
    reevaluate.reevaluate(run, config, None, None, cache_dir)
    assert run.read_json(run.metrics) == pytest.approx(before)


def test_its_page_shows_no_classes(trained, driver):
    run, _, _ = trained
    driver.get(run.report.as_uri())
    assert driver.get_log('browser') == []
    assert driver.title == 'pets'
    assert [driver.find_elements(By.CSS_SELECTOR, selector) for selector in ('.confusion', '.legend')] == [[], []]
    assert not driver.find_element(By.CSS_SELECTOR, '.filters').is_displayed()
    assert driver.find_element(By.CSS_SELECTOR, '.card b').text.endswith('%')
    similarities = [
        [float(small.text) for small in row.find_elements(By.CSS_SELECTOR, '.found small')]
        for row in driver.find_elements(By.CSS_SELECTOR, '.query')
    ]
    assert [len(row) for row in similarities] == [10] * 12
    assert [row[0] for row in similarities] == sorted([row[0] for row in similarities], reverse=True)


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'augmentation': 'alternating_flip'}, 'mirrors both views of an image alike'),
        ({'augmentation': 'flip', 'flip_averaging': True}, 'only flips, to which --config.flip_averaging is blind'),
    ],
)
def test_views_that_do_not_differ_are_refused(fields, said):
    with pytest.raises(InputError, match=said):
        beginning.require_trainable(make_config(**fields), make_dataset(10, 0))
    beginning.require_trainable(make_config(**fields | {'augmentation': 'pad_and_crop,flip'}), make_dataset(10, 0))


def test_of_more_images_some_are_asked_for():
    embeddings = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    similarities = np.sort(np.random.default_rng(1).uniform(size=(200, 5)), axis=1)[:, ::-1]
    nearest = np.random.default_rng(2).integers(0, 200, (200, 5))
    found = pictures.worth_a_look(make_dataset(200, 0), embeddings, nearest, similarities, np.zeros(200, int))
    best = found['gallery_similarities'][:, 0]
    assert len(best) == 20
    assert np.all(np.diff(best) <= 0)
    assert (best[0], best[-1]) == (similarities[:, 0].max(), similarities[:, 0].min())


def test_one_class_of_several_is_enough(trained):
    dataset = dataclasses.replace(make_dataset(10, 0), labels=np.arange(10, dtype=np.int32) % 2)
    dataset = dataclasses.replace(dataset, class_names=('cat', 'dog'))
    chosen = data.select(dataset, 'dog', at_least=1)
    assert (len(chosen.labels), chosen.has_classes) == (5, False)
