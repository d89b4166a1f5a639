"""The warnings of an epoch."""

import math
import re

import numpy as np
import pytest

from simclr_cifar import log

CHANCE = math.log(10), 0.1
HEALTHY = {'epoch': 1, 'step': 1000, 'loss': 1.9, 'accuracy': 0.3}


def spread_out(dim=8):
    vectors = np.random.default_rng(0).normal(size=(256, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_a_healthy_epoch_is_not_warned_of():
    assert log.symptoms(HEALTHY, spread_out(), CHANCE, 10) == {}


@pytest.mark.parametrize(
    ('changed', 'kind', 'said'),
    [
        ({'loss': math.log(10)}, 'loss', r'2\.3026, chance is 2\.3026.*usual cause'),
        ({'loss': math.log(10) - 0.01}, 'loss', 'nothing is learnt yet'),
        ({'accuracy': 0.1}, 'accuracy', r'0\.1000, chance is 0\.1000.*usual cause'),
    ],
)
def test_what_is_at_chance_is_warned_of(changed, kind, said):
    found = log.symptoms(HEALTHY | changed, spread_out(), CHANCE, 10)
    assert list(found) == [kind]
    assert '\n' not in found[kind]
    assert re.search(said, found[kind])


def test_collapsed_embeddings_are_warned_of():
    equal = np.repeat(spread_out()[:1], 256, axis=0)
    assert 'nearly equal' in log.symptoms(HEALTHY, equal, CHANCE, 10)['collapse']
    line = equal * np.where(np.arange(256) % 2, 1, -1)[:, None]
    assert 'effective rank of the embeddings is 1.00 of 8' in log.symptoms(HEALTHY, line, CHANCE, 10)['collapse']
    # Of two classes a line is all there can be; of images without classes it is not.
    assert [len(log.symptoms(HEALTHY, line, CHANCE, num_classes)) for num_classes in (1, 2, 3)] == [1, 0, 1]
    assert 'collapse' in log.symptoms(HEALTHY, np.zeros((256, 8), np.float32), CHANCE, 10)


def test_the_first_batches_are_not_judged():
    assert log.symptoms(HEALTHY | {'step': 99, 'loss': math.log(10)}, spread_out(), CHANCE, 10) == {}
