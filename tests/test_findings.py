"""From a study's figures to words and tables; what needs a finished study is in test_study."""

import numpy as np

from simclr_cifar import findings


def test_the_classes_that_lost_lost_in_every_seed():
    subset = findings.Subset('c3', None, [0, 1])
    # Of 10 neighbours of each class so many are right: cat loses in both seeds, dog in one, ship in none.
    right = {15: [[7, 6, 5], [8, 6, 5]], 30: [[6, 5, 5], [5, 7, 9]]}
    confusions = {}
    for epoch, seeds in right.items():
        diagonals = np.stack([np.diag(each) for each in seeds])
        confusions[epoch] = diagonals + np.roll(np.stack([np.diag(10 - np.array(each)) for each in seeds]), 1, axis=2)
    subset.__dict__ |= {
        'described': {'class_names': ['cat', 'dog', 'ship']},
        'evaluations': [{15: {}, 30: {}}] * 2,
        'confusions': confusions,
    }
    table = findings.class_changes(subset)
    assert table.rows == [
        ['cat', '-20.0 ± 14.1'],
        ['dog', '+0.0 ± 14.1'],
        ['ship', '+20.0 ± 28.3'],
    ]
    assert table.note.endswith('Classes that lost in every seed: 15 to 30: cat.')


def test_spread():
    assert findings.spread([0.5, 0.6]) == '55.00 ± 7.07'
    assert findings.spread([0.5]) == '50.00'
    assert findings.spread([-0.5, -0.6], '+.1f') == '-55.0 ± 7.1'
    assert findings.spread(None) == findings.spread([float('nan'), 1.0])
