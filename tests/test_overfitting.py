import numpy as np
import pytest

from simclr_cifar import overfitting


def hits(rng, mean, count=2000):
    """Shares of ten that are right, of images that differ among each other."""
    return rng.binomial(10, np.clip(rng.normal(mean, 0.2, count), 0, 1)) / 10


def test_the_means_are_those_of_the_images():
    train = {15: np.array([0.5, 0.7]), 30: np.array([0.8, 0.8]), 45: np.array([0.9, 1.0])}
    validation = {15: np.array([0.4, 0.5, 0.6]), 30: np.array([0.6, 0.6, 0.9]), 45: np.array([0.6, 0.6, 0.6])}
    verdict = overfitting.judge(train, validation)
    assert (verdict['peak_epoch'], verdict['last_epoch']) == (30, 45)
    expected = {'gap_at_peak': 0.1, 'gap_at_last': 0.35, 'widening': 0.25, 'fall': 0.1}
    assert {name: verdict[name] for name in expected} == pytest.approx(expected)


def test_intervals_are_those_of_normal_theory():
    rng = np.random.default_rng(0)
    train = {epoch: hits(rng, 0.8) for epoch in (1, 2)}
    validation = {epoch: hits(rng, mean, 3000) for epoch, mean in ((1, 0.7), (2, 0.6))}
    verdict = overfitting.judge(train, validation)

    def squared_error(values):
        return np.var(values, ddof=1) / len(values)

    gap = squared_error(train[1]) + squared_error(validation[1])
    widening = squared_error(train[2] - train[1]) + squared_error(validation[2] - validation[1])
    fall = squared_error(validation[1] - validation[2])
    for name, variance in (('gap_at_peak', gap), ('widening', widening), ('fall', fall)):
        half = 1.96 * np.sqrt(variance)
        assert verdict[f'{name}_low'] == pytest.approx(verdict[name] - half, abs=0.15 * half), name
        assert verdict[f'{name}_high'] == pytest.approx(verdict[name] + half, abs=0.15 * half), name


def test_the_same_images_are_compared():
    # Images differ much, each of them falls a little: paired it is clear, unpaired it would be lost in the noise.
    rng = np.random.default_rng(1)
    easy = rng.uniform(0, 1, 500)
    validation = {1: easy, 2: easy - 0.01 + rng.normal(0, 0.02, 500)}
    verdict = overfitting.judge({1: easy, 2: easy}, validation)
    assert verdict['seen'] == 1
    assert verdict['fall_high'] - verdict['fall_low'] < 0.005


def test_a_clear_fall_is_seen_and_a_rise_is_not():
    rng = np.random.default_rng(2)
    train = {epoch: hits(rng, 0.9) for epoch in (1, 2, 3)}
    fallen = {epoch: hits(rng, mean) for epoch, mean in ((1, 0.5), (2, 0.7), (3, 0.6))}
    assert overfitting.judge(train, fallen)['seen'] == 1
    risen = {epoch: hits(rng, mean) for epoch, mean in ((1, 0.5), (2, 0.6), (3, 0.7))}
    verdict = overfitting.judge(train, risen)
    assert verdict['seen'] == 0
    assert (verdict['fall'], verdict['fall_low'], verdict['fall_high']) == (0, 0, 0)
    assert verdict['gap_at_last_low'] > 0.1  # A gap alone is no overfitting.


def test_chance_is_seldom_taken_for_overfitting():
    seen = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        train, validation = ({epoch: hits(rng, 0.6, 500) for epoch in (1, 2)} for _ in range(2))
        seen.append(overfitting.judge(train, validation)['seen'])
    assert sum(seen) <= 4


def test_a_single_epoch_is_its_own_peak():
    verdict = overfitting.judge({4: np.array([1.0, 0.5])}, {4: np.array([0.5, 0.5])})
    assert (verdict['peak_epoch'], verdict['seen']) == (4, 0)
    assert verdict['gap_at_last'] == pytest.approx(0.25)
