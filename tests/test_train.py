"""The loop: resuming, choosing, stopping, and what it leaves behind."""

import csv
import json
import struct

import jax
import numpy as np
import pytest
from conftest import CLASS_NAMES, class_images
from tensorboardX.proto.event_pb2 import Event

from simclr_cifar import checkpoint, data, files, log, optimizers, step, train
from simclr_cifar import config as config_lib

NAMES = CLASS_NAMES[:3]


def make_dataset(images_per_class, seed):
    labels = np.random.default_rng(seed).permutation(np.arange(3).repeat(images_per_class)).astype(np.int32)
    return data.Dataset('cifar10', class_images(labels, seed)[:, ::2, ::2], labels, NAMES, '')


def make_splits(validation=False):
    splits = {'train': make_dataset(20, 0), 'test': make_dataset(6, 1)}
    return splits | {'validation': make_dataset(6, 2), 'train_sample': make_dataset(6, 0)} if validation else splits


def make_config(**fields):
    config = config_lib.defaults()
    config.update(
        {
            'channels': (8,),
            'embedding_dim': 4,
            'num_epochs': 6,
            'batches_per_epoch': 5,
            'milestones': (2, 4),
            'checkpoint_every_epochs': 1,
            'groups_per_batch': 2,
            'eval_batch_size': 7,  # Divides none of the splits.
        }
        | fields
    )
    config_lib.validate(config)
    return config


def start(config, path, splits=None):
    run = files.RunFolder(path)
    with run.locked():
        return run, train.train(config, splits or make_splits(), {config.seed: run})[config.seed]


def final_state(config, run, epoch=None):
    like = step.init_state(config, np.zeros((1, 16, 16, 3), np.uint8), config.seed)
    return checkpoint.restore(run.checkpoints, epoch or config.num_epochs, like)


def assert_same_run(config, run, other):
    jax.tree.map(np.testing.assert_array_equal, final_state(config, run), final_state(config, other))
    for name in ('metrics.json', 'eval/2/metrics.json', 'eval/4/confusion.csv', 'eval/6/metrics.json'):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name
    decided = ('epoch', 'step', 'loss', 'accuracy', 'learning_rate')
    histories = [[[row[name] for name in decided] for row in each.read_history()] for each in (run, other)]
    assert histories[0] == histories[1]
    assert [row[0] for row in histories[0]] == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    return start(make_config(), tmp_path_factory.mktemp('uninterrupted'))


def test_what_a_run_leaves(uninterrupted):
    run, final = uninterrupted
    assert json.loads(run.metrics.read_text()) == final
    assert final['epoch'] == 6
    assert final['train/loss'] == run.read_history()[-1]['loss']
    assert {name.removeprefix('test/') for name in final if name.startswith('test/')} == {
        *('precision_at_1', 'precision_at_10', 'r_precision', 'map_at_r', *(f'recall_at_{k}' for k in (1, 2, 4, 8))),
        *('pair_accuracy', 'pair_loss', 'knn_accuracy_k200', 'linear_probe_accuracy', 'nmi', 'ami'),
        *('alignment', 'uniformity', 'effective_rank'),
        *('features/knn_accuracy_k200', 'features/linear_probe_accuracy'),
        *('features/pair_accuracy', 'features/precision_at_10'),
    }
    assert run.evaluated_epochs('test') == [2, 4, 6]
    assert checkpoint.saved_epochs(run.checkpoints) == [2, 4, 5, 6]
    (events,) = map(read_events, run.tensorboard.iterdir())
    assert events['train/loss'] == pytest.approx({row['step']: row['loss'] for row in run.read_history()})
    assert events['test/pair_accuracy'][30] == pytest.approx(final['test/pair_accuracy'])
    with (run.evaluation(6) / 'confusion.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row['count']) for row in rows if row['kind'] == 'neighbours') == 18 * 10
    assert sum(int(row['count']) for row in rows if row['kind'] == 'knn') == 18
    assert {row['class'] for row in rows} == set(NAMES)


def test_training_learns(uninterrupted):
    run, final = uninterrupted
    history = run.read_history()
    assert history[-1]['loss'] < history[0]['loss']
    assert final['test/precision_at_1'] > 0.5


class Killed(Exception):
    pass


@pytest.mark.parametrize('epoch', [1, 3, 4, 5])
def test_a_run_killed_in_mid_epoch_ends_as_if_it_never_was(uninterrupted, tmp_path, monkeypatch, epoch):
    config = make_config()
    log_epoch = log.Log.epoch

    def kill(self, number, metrics):
        log_epoch(self, number, metrics)
        if number == epoch:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(log.Log, 'epoch', kill)
        start(config, tmp_path)
    run, _ = start(config, tmp_path)
    assert_same_run(config, run, uninterrupted[0])


@pytest.mark.usefixtures('convolutions_by_definition')
def test_a_run_of_every_part_goes_on_too(tmp_path, monkeypatch):
    config = make_config(
        encoder='whitened_cnn',
        head_batch_norm=True,
        objective='sup_con',
        with_replacement=False,
        augmentation='alternating_flip,pad_and_crop',
        optimizer='sgd',
        schedule='cosine',
        warmup_share=0.2,
        average_decay=0.9,
        flip_averaging=True,
        validation_fraction=0.1,
        monitor_every_epochs=2,
    )
    splits = make_splits(validation=True)
    whole, final = start(config, tmp_path / 'whole', splits)
    log_epoch = log.Log.epoch

    def kill(self, number, metrics):
        log_epoch(self, number, metrics)
        if number == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(log.Log, 'epoch', kill)
        start(config, tmp_path / 'killed', splits)
    run, _ = start(config, tmp_path / 'killed', splits)
    assert_same_run(config, run, whole)

    state = final_state(config, run)
    assert np.any(jax.tree.leaves(state.average)[0] != jax.tree.leaves(state.variables)[0])
    for kind in ('', 'raw_weights/', 'without_flip/'):
        assert 0.5 < final[f'test/{kind}linear_probe_accuracy'] <= 1
    assert [row['learning_rate'] for row in run.read_history()] == pytest.approx(
        [float(optimizers.make_schedule(config)(step)) for step in range(4, 30, 5)]
    )
    for epoch in (2, 4, 6):
        watched = run.read_json(run.evaluation(epoch) / 'monitor.json')
        assert set(watched) == {'monitor/knn_accuracy_k200', 'monitor/linear_probe_accuracy'}
    with np.load(run.augmentation) as packed:
        np.testing.assert_array_equal(packed['images'][:, 0], splits['train'].images[:10])


def test_a_run_killed_between_a_checkpoint_and_its_figures_writes_them(uninterrupted, tmp_path, monkeypatch):
    config = make_config()

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train.evaluate, 'save', kill)
        start(config, tmp_path)
    run, _ = start(config, tmp_path)
    assert_same_run(config, run, uninterrupted[0])


def test_a_finished_run_is_not_trained_again(uninterrupted, monkeypatch):
    run, final = uninterrupted
    before = run.history.read_bytes()
    monkeypatch.setattr(log.Log, 'epoch', None)
    assert start(make_config(), run.path)[1] == final
    assert run.history.read_bytes() == before


def test_the_clock_ends_training_evaluated_and_resumable(uninterrupted, tmp_path, capsys):
    config = make_config(max_seconds=1e-9, checkpoint_every_epochs=100)
    for epoch in (1, 2, 3):
        run, final = start(config, tmp_path)
        assert final['epoch'] == epoch
        assert 'Stopped by max_seconds' in capsys.readouterr().out
        assert epoch in run.evaluated_epochs('test')
        assert epoch in checkpoint.saved_epochs(run.checkpoints)
    config = make_config()
    run, final = start(config, tmp_path)
    assert final['epoch'] == 6
    assert_same_run(config, run, uninterrupted[0])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    config = make_config()
    log_epoch = log.Log.epoch

    def diverge(self, number, metrics):
        losses = np.array(metrics['loss'])
        if number == 4:
            losses[0, 3] = np.nan
        log_epoch(self, number, metrics | {'loss': losses})

    monkeypatch.setattr(log.Log, 'epoch', diverge)
    with pytest.raises(log.TrainingDiverged, match=r'nan at step 19 \(epoch 4\)'):
        start(config, tmp_path)
    run = files.RunFolder(tmp_path)
    assert checkpoint.saved_epochs(run.checkpoints) == [2, 3]
    assert [row['epoch'] for row in run.read_history()] == [1, 2, 3]
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(final_state(config, run, 3).variables))


def test_a_learning_rate_that_is_too_high_is_told_so(tmp_path):
    with pytest.raises(log.TrainingDiverged, match=r'lower --config\.learning_rate'):
        start(make_config(learning_rate=1e25), tmp_path)


def read_events(path):
    """Returns tag -> step -> value of a TensorBoard file: records of length, checksum, event, checksum."""
    content, values = path.read_bytes(), {}
    while content:
        (length,) = struct.unpack('Q', content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            values.setdefault(value.tag, {})[event.step] = value.simple_value
    return values


def scores_at(run, name):
    return {epoch: json.loads((run.evaluation(epoch) / 'metrics.json').read_text()).get(name) for epoch in (2, 4, 6)}


def test_the_number_of_devices_changes_nothing_but_rounding(tmp_path, monkeypatch):
    config = make_config(groups_per_batch=8, num_epochs=1)
    losses = []
    for devices in (8, 1):
        monkeypatch.setattr(
            train.parallel,
            'make_mesh',
            lambda _, devices=devices: jax.sharding.Mesh(jax.devices()[:devices], ('data',)),
        )
        run, _ = start(config, tmp_path / str(devices))
        losses.append(run.read_history()[0]['loss'])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, monkeypatch):
    config = make_config(groups_per_batch=8)
    meshes = iter([8, 2])
    monkeypatch.setattr(
        train.parallel, 'make_mesh', lambda _: jax.sharding.Mesh(jax.devices()[: next(meshes)], ('data',))
    )
    start(make_config(groups_per_batch=8, max_seconds=1e-9), tmp_path)
    _, final = start(config, tmp_path)
    assert final['epoch'] == 6


def start_together(config, path, seeds, splits):
    runs = {seed: files.RunFolder(path / f'seed_{seed}') for seed in seeds}
    return runs, train.train(config, splits, runs)


def test_seeds_trained_together_are_runs_of_their_own(tmp_path):
    splits = make_splits(validation=True)
    runs, finals = start_together(make_config(), tmp_path, [3, 8], splits)
    for seed, run in runs.items():
        alone, final = start(make_config(seed=seed), tmp_path / f'alone_{seed}', splits)
        assert [row['loss'] for row in run.read_history()] == pytest.approx(
            [row['loss'] for row in alone.read_history()], rel=1e-4
        )
        assert finals[seed]['epoch'] == final['epoch']
        assert finals[seed]['test/pair_accuracy'] == pytest.approx(final['test/pair_accuracy'], abs=0.02)
    assert finals[3]['train/loss'] != finals[8]['train/loss']


@pytest.mark.parametrize('epoch', [3, 4])
@pytest.mark.parametrize('seed', [3, 8])
def test_seeds_killed_between_their_checkpoints_go_on_together(tmp_path, monkeypatch, epoch, seed):
    splits = make_splits(validation=True)
    whole, finals = start_together(make_config(), tmp_path / 'whole', [3, 8], splits)
    save = checkpoint.Saver.save

    def kill(self, number, state):
        if number == epoch and self.directory.parent.name == f'seed_{seed}':
            raise Killed
        save(self, number, state)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint.Saver, 'save', kill)
        start_together(make_config(), tmp_path / 'killed', [3, 8], splits)
    runs, resumed = start_together(make_config(), tmp_path / 'killed', [3, 8], splits)
    assert resumed == finals
    for number, run in runs.items():
        states = [
            checkpoint.restore(
                each.checkpoints, 6, step.init_state(make_config(), np.zeros((1, 16, 16, 3), np.uint8), number)
            )
            for each in (run, whole[number])
        ]
        jax.tree.map(np.testing.assert_array_equal, *states)
        assert [row['epoch'] for row in run.read_history()] == [1, 2, 3, 4, 5, 6]
