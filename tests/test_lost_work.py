"""What a person has is never lost, and what a run tells is of its own weights."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_checkpoint import assert_identical, make_state
from test_main import DIGITS, assert_refused, decided, finished, run, snapshot
from test_train import assert_same_run, final_state, make_config, make_splits, start, uninterrupted

from simclr_cifar import checkpoint, files, reevaluate, stored
from simclr_cifar.config import InputError
from simclr_cifar.files import UNKNOWN_WEIGHTS, RunFolder

__all__ = ['finished', 'uninterrupted']  # Fixtures.


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


def unlocked(folder):
    """What is in it, save for the lock, which tells of the last process."""
    return {name: content for name, content in snapshot(folder).items() if name.name != '.lock'}


@pytest.mark.parametrize('removed', ['checkpoints', 'checkpoints/4', 'eval'])
def test_a_finished_run_is_told_again_and_nothing_is_written(copied, removed):
    shutil.rmtree(copied / removed)
    before = snapshot(copied)
    # It would train otherwise now.
    result = run(*DIGITS, f'--workdir={copied}', environment={'JAX_THREEFRY_PARTITIONABLE': '0'})
    assert result.returncode == 0, result.stderr
    assert 'Finished before' in result.stdout and 'test/precision_at_10' in result.stdout
    assert snapshot(copied) == before


def test_a_finished_run_that_was_killed_before_its_report_gets_it(copied):
    (copied / 'report.html').unlink()
    assert run(*DIGITS, f'--workdir={copied}').returncode == 0
    assert (copied / 'report.html').exists()


def test_weights_without_checkpoints_are_not_trained_over(copied):
    shutil.rmtree(copied / 'checkpoints')
    (copied / 'metrics.json').unlink()
    before = unlocked(copied)
    assert_refused(run(*DIGITS, f'--workdir={copied}'), str(copied), 'no checkpoint to go on from', 'another folder')
    assert unlocked(copied) == before


@pytest.mark.parametrize('flags', [DIGITS, ['--mode=study', '--config=configs/study.py', '--config.dataset=digits']])
def test_nobody_s_files_lie_among_a_run_s(tmp_path, flags):
    (tmp_path / 'thesis.docx').write_text('ten years')
    assert_refused(run(*flags, f'--workdir={tmp_path}'), str(tmp_path), 'thesis.docx', 'empty folder')
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.docx']


def test_any_path_is_a_path(tmp_path):
    directory = tmp_path / 'a#b%20c?d' / '[e] \\f|g&h=i;é*' / 'checkpoints'
    with checkpoint.Saver(directory, 1, []) as saver:
        saver.save(3, make_state(seed=3))
    epoch, (state,) = checkpoint.restore_latest([directory], [make_state()])
    assert epoch == 3
    assert_identical(state, make_state(seed=3))


def test_where_no_checkpoint_can_be_read_nothing_is_trained(copied):
    for path in (copied / 'checkpoints').rglob('manifest.ocdbt'):
        path.unlink()
    (copied / 'metrics.json').unlink()
    before = unlocked(copied)
    assert_refused(run(*DIGITS, f'--workdir={copied}'), 'none of its checkpoints can be read', 'copy')
    assert unlocked(copied) == before


def test_copies_of_a_person_s_own_are_left_alone(copied):
    """Of checkpoints and of evaluations, under names that are not ours."""
    for name in ('2-best', 'backup', '02', '٣'):
        shutil.copytree(copied / 'checkpoints' / '2', copied / 'checkpoints' / name)
    shutil.copytree(copied / 'eval' / '2', copied / 'eval' / '2 (copy)')
    for name in ('3-deleted', '4.orbax-checkpoint-tmp', '4.orbax-checkpoint-tmp-17'):  # What a killed one left.
        (copied / 'checkpoints' / name).mkdir()
    for epoch in (3, 4):
        shutil.rmtree(copied / 'checkpoints' / str(epoch))
    (copied / 'metrics.json').unlink()
    result = run(*DIGITS, f'--workdir={copied}')
    assert result.returncode == 0, result.stderr
    assert 'Going on from epoch 2 of 4' in result.stdout
    assert {path.name for path in (copied / 'checkpoints').iterdir()} == {
        *('2-best', 'backup', '02', '٣'),
        *('2', '3', '4'),
    }
    assert (copied / 'eval' / '2 (copy)' / 'metrics.json').exists()


def test_an_evaluation_of_other_weights_is_measured_again(uninterrupted, tmp_path):
    config = make_config()
    run = RunFolder(shutil.copytree(uninterrupted[0].path, tmp_path / 'run'))
    other, _ = start(make_config(seed=9), tmp_path / 'other')
    # Another run's checkpoint of epoch 2; epoch 4's own, with an evaluation that does not tell its weights; epochs 5
    # and 6 are gone, and what was measured of 6 with them.
    shutil.rmtree(run.checkpoints / '2')
    shutil.copytree(other.checkpoints / '2', run.checkpoints / '2')
    (run.evaluation(6) / 'weights.json').write_text('{"test": "0123"}')
    (run.evaluation(6) / 'metrics.json').write_text('{"test/precision_at_10": 2.0, "test/of_before": 0.0}')
    (run.evaluation(4) / 'weights.json').unlink()
    for epoch in (5, 6):
        shutil.rmtree(run.checkpoints / str(epoch))
    start(config, run.path)
    assert run.evaluations()[2] == other.evaluations()[2] != uninterrupted[0].evaluations()[2]
    assert run.evaluations()[4] == uninterrupted[0].evaluations()[4]
    assert run.evaluations()[6] == uninterrupted[0].evaluations()[6]
    for epoch in (4, 6):
        weights = checkpoint.weights_digest(final_state(config, run, epoch))
        assert run.measured_weights(epoch) == {'test': weights}


def test_an_evaluation_whose_weights_are_gone_is_kept_and_marked(uninterrupted, tmp_path, capsys):
    run = RunFolder(shutil.copytree(uninterrupted[0].path, tmp_path / 'run'))
    (run.evaluation(2) / 'weights.json').unlink()
    for epoch in (2, 5, 6):
        shutil.rmtree(run.checkpoints / str(epoch))
    start(make_config(), run.path)
    assert 'the weights that it measured are gone' in capsys.readouterr().out
    assert run.measured_weights(2) == {'test': UNKNOWN_WEIGHTS}
    assert run.evaluations()[2] == uninterrupted[0].evaluations()[2]
    shutil.copytree(uninterrupted[0].checkpoints / '2', run.checkpoints / '2')
    assert_same_run(make_config(), run, uninterrupted[0])


def test_doubles_in_the_environment_change_nothing(finished, tmp_path):
    result = run(*DIGITS, f'--workdir={tmp_path / "run"}', environment={'JAX_ENABLE_X64': '1'})
    assert result.returncode == 0, result.stderr
    assert decided(tmp_path / 'run' / 'history.csv') == decided(finished / 'history.csv')
    assert all(array.dtype != np.float64 for array in RunFolder(tmp_path / 'run').read_weights().values())


def test_what_changes_the_bits_is_told_when_a_run_goes_on(copied):
    described = json.loads((copied / 'config.json').read_text())
    assert set(described['arithmetic']) == {'jax', 'prng', 'threefry_partitionable', 'device', 'devices', 'cores'}
    described['arithmetic'] |= {'jax': '0.0.1', 'cores': 4096}
    del described['arithmetic']['prng']  # As a version before did not tell it.
    (copied / 'config.json').write_text(json.dumps(described))
    (copied / 'metrics.json').unlink()
    result = run(*DIGITS, f'--workdir={copied}')
    (line,) = [line for line in result.stdout.splitlines() if 'bit for bit' in line]
    assert f'jax was 0.0.1, is {jax.__version__}; cores was 4096, is' in line
    assert 'prng' not in line and 'device ' not in line


def test_a_run_that_cannot_be_written_is_evaluated(copied, monkeypatch, capsys, tmp_path):
    run = RunFolder(copied)
    config, recorded, before = stored.from_json(run.read_config()), run.read_json(run.metrics), snapshot(copied)

    def locked(folder):
        raise files.NotWritable('cannot be written', 'Read-only file system')

    monkeypatch.setattr(files.Folder, 'locked', locked)
    figures = reevaluate.reevaluate(run, config, None, cache_dir=str(tmp_path / 'cache'))
    assert figures['test/precision_at_10'] == pytest.approx(recorded['test/precision_at_10'], abs=0.01)
    assert 'cannot be written (Read-only file system), so nothing was saved' in capsys.readouterr().out
    assert snapshot(copied) == before


def test_damage_anywhere_in_a_packed_file_is_one_line(uninterrupted, tmp_path):
    run = RunFolder(shutil.copytree(uninterrupted[0].path, tmp_path / 'run'))
    whole, arrays = run.weights.read_bytes(), run.read_weights()
    seen = 0
    for place in range(0, len(whole), max(1, len(whole) // 400)):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        run.weights.write_bytes(changed)
        try:
            found = run.read_weights()
        except InputError as error:
            assert 'weights.npz' in str(error)
            seen += 1
        else:
            if found.keys() == arrays.keys():  # Another name is refused when it is not found in the model.
                jax.tree.map(np.testing.assert_array_equal, found, arrays)
    assert seen > 100


@pytest.mark.parametrize('name', ['metrics.json', 'config.json', 'eval/6/metrics.json', 'eval/6/weights.json'])
@pytest.mark.parametrize('content', [b'', b'{"epoch": ', b'[1]', b'\xff\xfe\x00'])
def test_damaged_json_is_one_line_that_names_the_file(uninterrupted, tmp_path, name, content):
    run = RunFolder(shutil.copytree(uninterrupted[0].path, tmp_path / 'run'))
    (run.path / name).write_bytes(content)
    read = {'metrics.json': lambda: run.read_json(run.metrics), 'config.json': run.read_config}
    read |= {'eval/6/metrics.json': run.evaluations, 'eval/6/weights.json': lambda: run.measured_weights(6)}
    with pytest.raises(InputError, match=f'{name} is missing or unreadable'):
        read[name]()


@pytest.mark.parametrize('content', [b'', b'split,kind\n1,2\n', b'\xff\xfe\x00', b'split,kind,count\na,b,x\n'])
def test_damaged_tables_are_one_line_or_are_left_out(uninterrupted, tmp_path, content):
    run = RunFolder(shutil.copytree(uninterrupted[0].path, tmp_path / 'run'))
    (run.evaluation(6) / 'confusion.csv').write_bytes(content)
    if content:
        with pytest.raises(InputError, match=r'eval/6/confusion\.csv .* --checkpoint=6'):
            run.read_confusions(6)
    run.history.write_bytes(content)
    assert run.read_history() == []
    start(make_config(), run.path, make_splits())
