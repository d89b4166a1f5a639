"""Validation chooses the checkpoint, test images choose nothing."""

import jax
import numpy as np
import pytest
from test_train import NAMES, final_state, make_config, make_splits, scores_at, start

from simclr_cifar import data, train


def score(monkeypatch, wanted):
    """Makes the validation precision_at_10 of epochs what is wanted."""
    save = train.evaluate.save

    def save_wanted(run, epoch, evaluation, *others):
        if 'validation/precision_at_10' in evaluation.figures:
            evaluation.figures['validation/precision_at_10'] = wanted[epoch]
        save(run, epoch, evaluation, *others)

    monkeypatch.setattr(train.evaluate, 'save', save_wanted)


def test_the_validation_split_chooses_and_the_test_split_is_scored_once(tmp_path, monkeypatch):
    config = make_config(validation_fraction=0.1, learning_rate=3e-3)
    seen = []
    evaluate_split = train.evaluate._evaluate_split

    def record(evaluation, name, *arguments):
        seen.append(name)
        return evaluate_split(evaluation, name, *arguments)

    monkeypatch.setattr(train.evaluate, '_evaluate_split', record)
    run, final = start(config, tmp_path / 'run', make_splits(validation=True))
    validation = scores_at(run, 'validation/precision_at_10')
    assert final['epoch'] == max(validation, key=validation.get)
    tested = {final['epoch'], 6}
    assert seen == ['validation'] * 3 + ['test'] * len(tested)
    assert {epoch for epoch, score in scores_at(run, 'test/precision_at_10').items() if score is not None} == tested

    # Whatever the test images are, the same checkpoint is chosen, of the same parameters.
    noise = make_splits(validation=True)
    rng = np.random.default_rng(9)
    noise['test'] = data.Dataset(
        'cifar10', rng.integers(0, 256, (30, 16, 16, 3), np.uint8), np.arange(30) % 3, NAMES, ''
    )
    other, other_final = start(config, tmp_path / 'other', noise)
    assert other_final['epoch'] == final['epoch']
    assert scores_at(other, 'validation/precision_at_10') == validation
    jax.tree.map(np.testing.assert_array_equal, final_state(config, run), final_state(config, other))
    assert other_final['test/precision_at_10'] != final['test/precision_at_10']


@pytest.mark.parametrize(('scores', 'chosen'), [((0.5, 0.9, 0.7), 4), ((0.9, 0.2, 0.9), 2), ((0.1, 0.2, 0.3), 6)])
def test_the_best_validation_checkpoint_is_chosen_the_earliest_of_equals(tmp_path, monkeypatch, scores, chosen):
    config = make_config(validation_fraction=0.1)
    wanted = dict(zip((2, 4, 6), scores, strict=True))
    score(monkeypatch, wanted)
    _, final = start(config, tmp_path, make_splits(validation=True))
    assert final['epoch'] == chosen
    assert 'test/precision_at_10' in final


def test_the_last_epoch_is_tested_beside_the_chosen_one(tmp_path, monkeypatch):
    wanted = {2: 0.9, 4: 0.5, 6: 0.1}
    score(monkeypatch, wanted)
    run, final = start(make_config(), tmp_path, make_splits(validation=True))
    assert (final['epoch'], final['last_epoch']) == (2, 6)
    for name in ('test/precision_at_10', 'test/nmi'):
        assert final[name] == scores_at(run, name)[2]
        assert final[f'last/{name}'] == scores_at(run, name)[6]
    assert final['overfitting/last_epoch'] == 6
