"""From parameters to figures, against loops over the definitions, and their files."""

import dataclasses

import numpy as np
import pytest
from conftest import CLASS_NAMES, class_images
from sklearn.metrics import roc_auc_score

from simclr_cifar import config as config_lib
from simclr_cifar import data, evaluate, files, metrics, models, parallel, representation, step

NAMES = CLASS_NAMES[:3]


def make_dataset(images_per_class, seed, labels=(0, 1, 2), names=NAMES):
    drawn = np.random.default_rng(seed).permutation(np.repeat(labels, images_per_class)).astype(np.int32)
    images = class_images(drawn, seed)[:, ::4, ::4]
    return data.Dataset('cifar10', images, drawn - min(labels), tuple(names), '')


@pytest.fixture(scope='module')
def splits():
    train = make_dataset(30, 0)
    return {
        'train': train,
        'validation': make_dataset(12, 1),
        'test': make_dataset(13, 2),
        'train_sample': data.sample(train, [12, 12, 12], 0),
        'unseen': make_dataset(11, 3, (3, 4), CLASS_NAMES[3:5]),
    }


@pytest.fixture(scope='module')
def evaluated(splits):
    """(evaluation of everything, split to its embeddings) of an encoder as it is initialised."""
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3, eval_batch_size=7)
    state = step.init_state(config, splits['train'].images, 0)
    evaluation = evaluate.make_evaluate(config, parallel.make_mesh(1), splits)(state, ['train', 'validation', 'test'])
    model = models.make_model(config)
    return evaluation, {
        name: np.asarray(models.encode(model, state.variables, dataset.images[:])['embedding'], np.float64)
        for name, dataset in splits.items()
    }


def ranked(queries, gallery=None):
    similarities = queries @ (queries if gallery is None else gallery).T
    if gallery is None:
        np.fill_diagonal(similarities, -np.inf)
    order = np.argsort(-similarities, axis=1, kind='stable')
    return order, np.take_along_axis(similarities, order, axis=1)


def precision_at_10(embeddings, labels):
    order, _ = ranked(embeddings)
    return np.mean(labels[order[:, :10]] == labels[:, None])


def test_every_split_is_scored_among_its_own_images(evaluated, splits):
    evaluation, embeddings = evaluated
    for name, split in (('train', 'train_sample'), ('validation', 'validation'), ('test', 'test')):
        expected = precision_at_10(embeddings[split], splits[split].labels)
        assert evaluation.figures[f'{name}/precision_at_10'] == pytest.approx(expected, abs=1e-6)
        queries = evaluation.queries[name]
        assert np.mean(queries['precision_at_10']) == pytest.approx(expected, abs=1e-6)
        np.testing.assert_array_equal(queries['label'], splits[split].labels)
    assert 'train/knn_accuracy_k200' not in evaluation.figures  # The sample's own images would vote.
    assert {name for name, _ in evaluation.confusions} == {'validation', 'test'}


def test_unseen_classes_are_scored_alone_and_among_all(evaluated, splits):
    evaluation, embeddings = evaluated
    expected = precision_at_10(embeddings['unseen'], splits['unseen'].labels)
    assert evaluation.figures['unseen/precision_at_10'] == pytest.approx(expected, abs=1e-6)
    every = np.concatenate([embeddings['test'], embeddings['unseen']])
    labels = np.concatenate([splits['test'].labels, splits['unseen'].labels + 3])
    assert evaluation.figures['all/precision_at_10'] == pytest.approx(precision_at_10(every, labels), abs=1e-6)


def test_no_match_is_told_by_the_tenth_nearest_training_image(evaluated):
    evaluation, embeddings = evaluated
    scores = {name: ranked(embeddings[name], embeddings['train'])[1][:, 9] for name in ('validation', 'test', 'unseen')}
    is_unseen = np.repeat([0, 1], [len(scores['test']), len(scores['unseen'])])
    both = np.concatenate([scores['test'], scores['unseen']])
    figures = evaluation.figures
    assert figures['no_match/auroc'] == pytest.approx(roc_auc_score(is_unseen, -both), abs=1e-3)
    threshold = np.quantile(scores['validation'], 0.05)
    assert figures['no_match/threshold'] == pytest.approx(threshold, abs=1e-5)
    below = both < threshold
    assert 0 < below.sum() < len(below)
    assert figures['no_match/precision'] == pytest.approx(np.mean(is_unseen[below]), abs=1e-6)
    assert figures['no_match/recall'] == pytest.approx(np.mean(below[is_unseen == 1]), abs=1e-6)


def vote_of_7(queries, gallery, labels):
    order, _ = ranked(queries, gallery)
    return np.array([np.argmax(np.bincount(labels[nearest[:7]])) for nearest in order])


def test_embeddings_otherwise_are_those_of_raw_weights_and_of_one_view(splits, monkeypatch):
    monkeypatch.setattr(metrics, 'KNN_K', 7)
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3, average_decay=0.9, flip_averaging=True)
    raw, averaged = (step.init_state(config, splits['train'].images, seed).variables for seed in (0, 1))
    state = step.init_state(config, splits['train'].images, 0).replace(average=averaged)
    figures = evaluate.make_evaluate(config, parallel.make_mesh(1), splits)(state, ['validation']).figures
    for kind, variables, flipped in (
        ('', averaged, True),
        ('raw_weights/', raw, True),
        ('without_flip/', averaged, False),
    ):
        embeddings = {}
        for name in ('train', 'validation'):
            views = [splits[name].images[:], splits[name].images[:][:, :, ::-1]][: 1 + flipped]
            total = sum(
                np.asarray(models.encode(models.make_model(config), variables, view)['embedding'], np.float64)
                for view in views
            )
            embeddings[name] = total / np.linalg.norm(total, axis=1, keepdims=True)
        labels, validation = splits['validation'].labels, embeddings['validation']
        expected = {
            'knn_accuracy_k7': np.mean(vote_of_7(validation, embeddings['train'], splits['train'].labels) == labels),
            'precision_at_10': precision_at_10(validation, labels),
            'pair_accuracy': metrics.class_mean(metrics.pair_accuracy(validation, labels), labels),
        }
        for name, value in expected.items():
            assert figures[f'validation/{kind}{name}'] == pytest.approx(value, abs=1e-6), (kind, name)
    assert figures['validation/precision_at_10'] != figures['validation/raw_weights/precision_at_10']
    assert figures['validation/precision_at_10'] != figures['validation/without_flip/precision_at_10']


def test_features_before_the_head_are_scored_on_test_images(splits, monkeypatch):
    monkeypatch.setattr(metrics, 'KNN_K', 7)
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3, flip_averaging=True)
    state = step.init_state(config, splits['train'].images, 0)
    evaluate_state = evaluate.make_evaluate(config, parallel.make_mesh(1), splits)
    figures = evaluate_state(state, ['validation', 'test']).figures
    assert {name.partition('/')[0] for name in figures if '/features/' in name} == {'test'}

    config.representation = 'features'
    of_features = evaluate.make_evaluate(config, parallel.make_mesh(1), splits)(state, ['test']).figures
    assert not [name for name in of_features if '/features/' in name]
    for name in ('knn_accuracy_k7', 'linear_probe_accuracy', 'pair_accuracy'):
        assert figures[f'test/features/{name}'] == pytest.approx(of_features[f'test/{name}'], abs=1e-6)
    assert figures['test/features/pair_accuracy'] != figures['test/pair_accuracy']


def test_the_monitor_watches_validation_images_by_a_sample_of_training_images(splits, monkeypatch):
    monkeypatch.setattr(metrics, 'KNN_K', 7)
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3)
    state = step.init_state(config, splits['train'].images, 0)
    figures = evaluate.make_monitor(config, parallel.make_mesh(1), splits)(state)
    sample, validation = (
        np.asarray(
            models.encode(models.make_model(config), state.variables, splits[name].images[:])['embedding'], np.float64
        )
        for name in ('train_sample', 'validation')
    )
    labels = splits['validation'].labels
    votes = vote_of_7(validation, sample, splits['train_sample'].labels)
    probed = representation.linear_probe(sample, splits['train_sample'].labels, validation, 3)
    assert figures == pytest.approx(
        {
            'monitor/knn_accuracy_k7': np.mean(votes == labels),
            'monitor/linear_probe_accuracy': np.mean(probed == labels),
        }
    )


def test_test_images_do_not_set_the_threshold(evaluated, splits):
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3)
    state = step.init_state(config, splits['train'].images, 0)
    noise = np.random.default_rng(5).integers(0, 256, splits['test'].images.shape, np.uint8)
    other = splits | {'test': dataclasses.replace(splits['test'], images=noise)}
    figures = evaluate.make_evaluate(config, parallel.make_mesh(1), other)(state, ['test']).figures
    assert figures['no_match/threshold'] == pytest.approx(evaluated[0].figures['no_match/threshold'], abs=1e-6)
    assert figures['no_match/auroc'] != pytest.approx(evaluated[0].figures['no_match/auroc'], abs=1e-3)


def test_a_single_unseen_class_has_no_retrieval_of_its_own(splits):
    config = config_lib.defaults()
    config.update(channels=(8,), embedding_dim=3)
    state = step.init_state(config, splits['train'].images, 0)
    one = splits | {'unseen': make_dataset(11, 3, (3,), CLASS_NAMES[3:4])}
    figures = evaluate.make_evaluate(config, parallel.make_mesh(1), one)(state, ['test']).figures
    assert 'unseen/precision_at_10' not in figures
    assert 'all/precision_at_10' in figures


def test_the_pairs_of_a_cell_are_its_most_similar_each_query_once(evaluated, splits):
    pictures, embeddings, labels = evaluated[0].pictures, evaluated[1]['test'], splits['test'].labels
    index = pictures['image_index']
    np.testing.assert_array_equal(pictures['images'], splits['test'].images[index])
    np.testing.assert_array_equal(pictures['image_label'], labels[index])
    assert len(set(index.tolist())) == len(index)
    order, similarities = ranked(embeddings)
    found = {}
    for query, neighbour, similarity in zip(
        index[pictures['cell_query']], index[pictures['cell_neighbour']], pictures['cell_similarity'], strict=True
    ):
        found.setdefault((labels[query], labels[neighbour]), []).append((query, neighbour, similarity))
    for row in range(3):
        for column in range(3):
            best = []  # Of each query of the row its nearest image of the column, among its 10 nearest.
            for query in np.flatnonzero(labels == row):
                places = np.flatnonzero(labels[order[query, :10]] == column)
                if len(places):
                    best.append((similarities[query, places[0]], query, order[query, places[0]]))
            best = sorted(best, key=lambda pair: -pair[0])[:3]
            assert [pair[:2] for pair in found.get((row, column), [])] == [pair[1:] for pair in best]
            assert [pair[2] for pair in found.get((row, column), [])] == pytest.approx([pair[0] for pair in best])


def test_evaluations_of_splits_are_added_to_each_other(evaluated, tmp_path):
    whole = evaluated[0]
    run = files.RunFolder(tmp_path)
    for names in (('train', 'validation'), ('test',)):

        def part(values, names=names):
            return {key: value for key, value in values.items() if key[0] in names}

        figures = {name: value for name, value in whole.figures.items() if (name.split('/')[0] in names)}
        queries = {name: value for name, value in whole.queries.items() if name in names}
        pictures = whole.pictures if 'test' in names else {}
        evaluate.save(run, 15, evaluate.Evaluation(figures, part(whole.confusions), queries, pictures), NAMES)
        assert run.evaluated_epochs('test') == ([15] if 'test' in names else [])
        assert run.evaluated_epochs('validation') == [15]
    assert run.evaluations()[15] == {
        name: value for name, value in whole.figures.items() if name.startswith(('train/', 'validation/', 'test/'))
    }
    confusions = run.read_confusions(15)
    assert confusions.keys() == whole.confusions.keys()
    for key, matrix in confusions.items():
        np.testing.assert_array_equal(matrix, whole.confusions[key])
    np.testing.assert_array_equal(run.read_arrays(15, 'pictures')['images'], whole.pictures['images'])
    np.testing.assert_allclose(run.read_arrays(15, 'train')['pair_accuracy'], whole.queries['train']['pair_accuracy'])


def test_an_absent_array_file_is_one_line(tmp_path):
    with pytest.raises(config_lib.InputError, match=r'eval/15/test\.npz is missing.*--mode=eval --checkpoint=15'):
        files.RunFolder(tmp_path).read_arrays(15, 'test')
