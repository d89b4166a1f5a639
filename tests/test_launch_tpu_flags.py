"""What launch/tpu_vm.sh refuses before it asks for a TPU."""

import shutil
import subprocess

import pytest
from launching import BASH, PROGRAM, TPU, TpuScript, assert_refused


@pytest.fixture
def tpu(tmp_path):
    return TpuScript(tmp_path)


def test_paths_are_the_callers(tpu, tmp_path):
    result, calls = tpu(*TPU, '--', '--config', 'mine.py', cwd=tpu.folder / 'configs')
    assert result.returncode == 0, result.stderr
    assert any('--stopped_status=75 --config=configs/mine.py 2>&1' in call for call in calls)
    assert (tpu.folder / 'configs' / 'runs' / 'trial').exists()
    (tmp_path / 'outside.py').touch()
    result, calls = tpu(*TPU, '--', f'--config={tmp_path}/outside.py')
    assert_refused(result, f'--config={tmp_path}/outside.py: is outside of the checkout')


def test_changes_that_are_not_committed_are_refused(tpu):
    (tpu.folder / 'notes.txt').touch()
    assert tpu(*TPU, *PROGRAM)[0].returncode == 0  # Nothing that runs.
    (tpu.folder / 'configs' / 'new.py').touch()
    result, calls = tpu(*TPU, '--', '--config=configs/new.py')
    assert_refused(result, 'git status: ', 'configs/new.py', 'commit')
    assert calls == []
    (tpu.folder / 'configs' / 'new.py').unlink()
    (tpu.folder / 'simclr_cifar' / 'main.py').write_text('changed')
    assert_refused(tpu(*TPU, *PROGRAM)[0], 'git status: ', 'simclr_cifar/main.py')
    shutil.rmtree(tpu.folder / '.git')
    assert_refused(tpu(*TPU, *PROGRAM)[0], 'git: ', 'a checkout that git made')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--zone=z', '--type=v6e-16'], '--name is missing'),
        (['--name=trial', '--zone=z'], '--type is missing'),
        (['--name=Trial', '--zone=z', '--type=v6e-16'], '--name=Trial: lower-case'),
        ([*TPU, '--config=configs/c10.py'], '--config=configs/c10.py: unknown'),
        ([*TPU, '--fetch_every=0', *PROGRAM], '--fetch_every=0: whole minutes'),
        ([*TPU, '--fetch_every=soon', *PROGRAM], '--fetch_every=soon: whole minutes'),
        ([*TPU, '--fetch_every=08', *PROGRAM], '--fetch_every=08: whole minutes'),
        (TPU, '--config is missing after --'),
        ([*TPU, '--', '--config=configs/none.py'], '--config=configs/none.py: there is no such file'),
        ([*TPU, *PROGRAM, '--workdir=out'], '--workdir=out: this script sets it'),
        ([*TPU, *PROGRAM, '--data_dir=/data'], '--data_dir=/data: a new TPU has no such folder'),
        ([*TPU, *PROGRAM, '--config.dataset=folder:/pets'], '--config.dataset=folder:/pets: a new TPU has no'),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(tpu, flags, message):
    result, calls = tpu(*flags)
    assert calls == []
    assert_refused(result, f'error: {message}')


def test_another_shell_and_a_missing_gcloud_are_refused(tpu, tmp_path):
    script = tpu.folder / 'launch' / 'tpu_vm.sh'
    if dash := shutil.which('dash'):
        result = subprocess.run([dash, script, *TPU], capture_output=True, text=True)
        assert_refused(result, 'this is not bash')
    few = tmp_path / 'few'
    few.mkdir()
    for name in ('dirname', 'git'):
        (few / name).symlink_to(shutil.which(name))
    result = subprocess.run(
        [shutil.which(BASH), script, *TPU, *PROGRAM],
        env={'PATH': str(few)},
        cwd=tpu.folder,
        capture_output=True,
        text=True,
    )
    assert_refused(result, 'gcloud: not found')
