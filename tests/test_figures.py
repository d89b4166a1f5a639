import numpy as np
import pytest

from simclr_cifar import figures

HISTORIES = [
    [{'epoch': epoch, 'loss': 2 / epoch + seed, 'accuracy': 0.1 * epoch + 0.01 * seed} for epoch in (1, 2, 3)]
    for seed in (0, 1)
]
EVALUATIONS = [
    {2: {'validation/pair_accuracy': 0.5 + 0.1 * seed}, 3: {'validation/pair_accuracy': 0.6}} for seed in (0, 1)
]
REFERENCE = {2: (0.9, 55.0)}


def lines(figure):
    return {line.get_label(): np.array(line.get_data()) for line in figure.axes[0].get_lines()}


def test_curves_are_means_of_seeds_with_their_range():
    figure = figures.loss_curve('Loss', HISTORIES, 1.5, REFERENCE)
    drawn = lines(figure)
    np.testing.assert_allclose(drawn['training batches'], [[1, 2, 3], [2.5, 1.5, 2 / 3 + 0.5]])
    np.testing.assert_allclose(drawn['the course report'], [[2], [0.9]])
    np.testing.assert_allclose(drawn['chance, 1.500'][1], 1.5)
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    assert corners[corners[:, 0] == 1, 1].min() == pytest.approx(2)
    assert corners[corners[:, 0] == 1, 1].max() == pytest.approx(3)


def test_accuracies_are_in_percent():
    drawn = lines(figures.accuracy_curve('Accuracy', HISTORIES, EVALUATIONS, 0.25, REFERENCE))
    np.testing.assert_allclose(drawn['training batches'][1], [10.5, 20.5, 30.5])
    np.testing.assert_allclose(drawn['validation, pair accuracy'], [[2, 3], [55, 60]])
    np.testing.assert_allclose(drawn['the course report'], [[2], [55]])
    np.testing.assert_allclose(drawn['chance, 25.0'][1], 25)


def test_a_drawing_takes_the_page_s_colours_and_leaves_its_rules_alone():
    element = figures.svg(figures.loss_curve('a$b & <c>', HISTORIES, 1.5, {}))
    assert element.startswith('<svg viewBox=')
    assert element.rstrip().endswith('</svg>')
    assert 'currentColor' in element
    assert 'a$b &amp; &lt;c&gt;' in element
    for word in ('<style', 'xmlns', 'http', figures._INK):
        assert word not in element
