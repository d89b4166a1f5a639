import shutil

import jax
import numpy as np
import pytest

from simclr_cifar import checkpoint, step
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError


def make_state(embedding_dim=4, seed=0):
    config = config_lib.defaults()
    # Large enough for arrays to be stored outside TensorStore's own, checksummed, nodes.
    config.update(channels=(64, 64), embedding_dim=embedding_dim)
    return step.init_state(config, np.zeros((1, 8, 8, 3), np.uint8), seed)


def assert_identical(state, other):
    jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoints of epochs 1 to 6, the newest 2 and the milestones 2 and 3 kept; the state of epoch e has seed e."""
    directory = tmp_path_factory.mktemp('run') / 'checkpoints'
    with checkpoint.Saver(directory, keep=2, milestones=[2, 3]) as saver:
        for epoch in range(1, 7):
            saver.save(epoch, make_state(seed=epoch))
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'checkpoints')


def test_the_newest_and_the_milestones_are_kept(saved):
    assert checkpoint.saved_epochs(saved) == [2, 3, 5, 6]


@pytest.mark.parametrize('epoch', [2, 6])
def test_a_state_comes_back_bit_by_bit(saved, epoch):
    restored = checkpoint.restore(saved, epoch, make_state())
    assert_identical(restored, make_state(seed=epoch))
    assert jax.tree.structure(restored) == jax.tree.structure(make_state())


def test_an_empty_folder_starts_anew(tmp_path):
    epoch, (state,) = checkpoint.restore_latest([tmp_path / 'checkpoints'], [make_state()])
    assert epoch == 0
    assert_identical(state, make_state())


def damage(path, kind):
    content = path.read_bytes()
    if kind == 'missing':
        path.unlink()
    elif kind == 'cut off':
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        flipped = content[middle] ^ 0xFF if content else 0
        path.write_bytes(content[:middle] + bytes([flipped]) + content[middle + 1 :])


@pytest.mark.parametrize('kind', ['missing', 'cut off', 'changed'])
def test_damage_anywhere_is_seen_or_harmless(saved, tmp_path, kind, capfd):
    seen = 0
    relative_paths = [path.relative_to(saved / '6') for path in sorted((saved / '6').rglob('*')) if path.is_file()]
    for number, relative in enumerate(relative_paths):
        directory = tmp_path / str(number)
        shutil.copytree(saved / '6', directory / '6')
        damage(directory / '6' / relative, kind)
        try:
            assert_identical(checkpoint.restore(directory, 6, make_state()), make_state(seed=6))
        except checkpoint.CheckpointDamaged:
            seen += 1
    assert seen >= 4
    assert 'Traceback' not in ''.join(capfd.readouterr())


def test_the_checkpoint_before_a_damaged_one_is_used(copied, capsys):
    for epoch in (5, 6):
        shutil.rmtree(copied / str(epoch) / 'state')
    epoch, (state,) = checkpoint.restore_latest([copied], [make_state()])
    assert epoch == 3
    assert_identical(state, make_state(seed=3))
    told = capsys.readouterr().out
    assert '6: the checkpoint is damaged' in told
    assert '5: the checkpoint is damaged' in told
    # Nothing is lost, and the epochs can be saved again.
    assert sorted(path.name for path in (copied.parent / 'checkpoints-damaged').iterdir()) == ['5', '6']
    with checkpoint.Saver(copied, keep=2, milestones=[]) as saver:
        saver.save(5, make_state(seed=50))
    assert_identical(checkpoint.restore(copied, 5, make_state()), make_state(seed=50))


def test_another_architecture_is_refused(saved):
    with pytest.raises(InputError, match=r'another architecture \(opt_state/0/mu/head/Dense_0/bias is float32\[4\]'):
        checkpoint.restore_latest([saved], [make_state(embedding_dim=5)])


def test_an_unfinished_save_is_no_checkpoint(copied):
    (copied / '7.orbax-checkpoint-tmp').mkdir()
    assert checkpoint.saved_epochs(copied) == [2, 3, 5, 6]
    assert checkpoint.restore_latest([copied], [make_state()])[0] == 6


def test_runs_trained_together_go_on_from_the_newest_epoch_intact_in_all(saved, tmp_path):
    directories = [shutil.copytree(saved, tmp_path / name / 'checkpoints') for name in ('a', 'b', 'c')]
    shutil.rmtree(directories[1] / '6')
    (directories[2] / '5' / '_CHECKPOINT_METADATA').unlink()
    epoch, states = checkpoint.restore_latest(directories, [make_state()] * 3)
    assert epoch == 3
    for state in states:
        assert_identical(state, make_state(seed=3))
    # Newer ones would be taken for the newest, and those saved from here on deleted in their favour.
    assert [checkpoint.saved_epochs(directory) for directory in directories] == [[2, 3]] * 3
    assert checkpoint.saved_epochs(tmp_path / 'a' / 'checkpoints-ahead') == [5, 6]


def test_what_a_killed_process_was_writing_or_deleting_is_cleared(copied):
    for name in ('7.orbax-checkpoint-tmp', '3-deleted'):
        (copied / name).mkdir()
    with checkpoint.Saver(copied, keep=2, milestones=[2, 3]) as saver:
        saver.save(7, make_state(seed=7))
    assert sorted(path.name for path in copied.iterdir()) == ['2', '3', '6', '7']
