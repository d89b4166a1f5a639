"""The weights that come with the code: whole, small, and worth what their README says."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from simclr_cifar import checkpoint, data, evaluate, metrics, neighbours, parallel, step, stored
from simclr_cifar.files import RunFolder

FOLDERS = sorted((pathlib.Path(__file__).parent.parent / 'weights').glob('*/'))


def test_there_are_some():
    assert FOLDERS


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_they_are_those_that_their_readme_tells_of(folder):
    weights, told = (folder / 'weights.npz').read_bytes(), (folder / 'README.md').read_text()
    assert hashlib.sha256(weights).hexdigest() in told
    assert len(weights) <= 5_000_000
    figures = json.loads((folder / 'metrics.json').read_text())
    for name in ('pair_accuracy', 'precision_at_1', 'knn_accuracy_k200', 'map_at_r', 'nmi'):
        assert f'{100 * figures[f"test/{name}"]:.2f}' in told


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_test_images_have_the_recorded_figures(folder, cifar10_data_dir):
    run = RunFolder(folder)
    config = stored.from_json(run.read_json(run.config)['config'])
    splits, mesh = data.load_splits(config), parallel.make_mesh(1)
    state = checkpoint.read_weights(run, step.init_state(config, splits['train'].images, config.seed))
    encode, labels = step.compile_encode(config, mesh), splits['test'].labels
    embeddings = parallel.in_padded_batches(
        lambda images: encode(state.variables, images), splits['test'].images, config.eval_batch_size, mesh
    )['embedding']
    nearest = neighbours.top_k(embeddings, None, evaluate.NEAREST)[1]
    found = {
        'precision_at_10': np.mean(labels[nearest] == labels[:, None]),
        'pair_accuracy': metrics.class_mean(metrics.pair_accuracy(embeddings, labels), labels),
    }
    figures = run.read_json(run.metrics)
    recorded = {name: figures[f'test/without_flip/{name}'] for name in found}
    assert found == pytest.approx(recorded, abs=2e-4)
