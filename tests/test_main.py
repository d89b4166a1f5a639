"""The command line, as a person meets it: whole runs, kills, and one clear line for every bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    '--config.num_epochs=4',
    '--config.batches_per_epoch=4',
    '--config.milestones=2,',
    '--config.channels=8,8',
    '--config.checkpoint_every_epochs=1',
]
DIGITS = ['--config=configs/smoke.py', *TINY]


def command(*flags):
    return [sys.executable, '-m', 'simclr_cifar.main', *map(str, flags)]


def run(*flags, **options):
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'} | options.pop('environment', {})
    return subprocess.run(command(*flags), cwd=ROOT, env=environment, capture_output=True, text=True, **options)


def assert_refused(result, *said):
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith('error: ')
    for words in said:
        assert words in lines[0]


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def decided(history):
    return [line.split(',')[:5] for line in history.read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run on the digits."""
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    result = run(*DIGITS, f'--workdir={workdir}')
    assert result.returncode == 0, result.stderr
    return workdir


def test_cifar10_from_start_to_report(small_cifar10, tmp_path):
    workdir = tmp_path / 'run'
    where = [f'--workdir={workdir}', f'--data_dir={small_cifar10}', f'--cache_dir={tmp_path / "cache"}']
    result = run('--config=configs/c4.py', *TINY, '--classes=truck,cat,ship', *where)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith('epoch ') for line in lines) == 5
    assert 'loss' in lines[1]
    assert '(chance 1.0986)' in lines[1]
    assert 'images/s' in lines[1]
    described = json.loads((workdir / 'config.json').read_text())
    assert described['class_names'] == ['truck', 'cat', 'ship']
    assert set(described['versions']) >= {'jax', 'flax', 'optax'}
    assert len(described['git_commit']) >= 7
    figures = json.loads((workdir / 'metrics.json').read_text())
    assert all(isinstance(value, int | float) for value in figures.values())
    assert figures['test/precision_at_1'] > 0.4
    page = (workdir / 'report.html').read_text()
    assert '<title>3 classes of cifar10</title>' in page
    names = {path.name for path in workdir.iterdir() if not path.name.startswith('.')}
    assert names == {
        *('config.json', 'history.csv', 'metrics.json', 'report.html', 'weights.npz'),
        *('checkpoints', 'eval', 'figures', 'tensorboard'),
    }

    # From the run's folder and the data alone, to the last digit what training wrote.
    before = snapshot(workdir)
    result = run('--mode=eval', *where)
    assert result.returncode == 0, result.stderr
    assert 'test/precision_at_1' in result.stdout
    changed = [str(path) for path, content in snapshot(workdir).items() if before.get(path) != content]
    assert [path for path in changed if path != '.lock' and not path.endswith('.npz')] == []

    milestone = (workdir / 'eval' / '2' / 'metrics.json').read_bytes()
    (workdir / 'eval' / '2' / 'metrics.json').unlink()
    assert run('--mode=eval', '--checkpoint=2', *where).returncode == 0
    assert (workdir / 'eval' / '2' / 'metrics.json').read_bytes() == milestone


def test_the_digits_are_learnt(tmp_path):
    result = run('--config=configs/smoke.py', f'--workdir={tmp_path / "run"}')
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['test/precision_at_1'] >= 0.97


def test_a_study_from_start_to_page_and_killed_in_between(tmp_path):
    flags = ['--mode=study', '--config=configs/study.py', '--config.dataset=digits', *TINY, '--config.milestones=2,4']
    flags += ['--config.num_seeds=2', "--config.subsets=(3,'nine,one')"]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    result = run(*flags, f'--workdir={whole}')
    assert result.returncode == 0, result.stderr
    assert 'means of 2 seeds: loss' in result.stdout
    assert '## Held-out accuracy (%)' in result.stdout
    assert result.stdout.splitlines()[-1] == f'Study: {whole / "study.html"}'
    assert {path.name for path in whole.iterdir()} == {
        *('.lock', 'config.json', 'study.html', 'study.md', 'study.csv', 'c3', 'c2-nine-one'),
    }
    assert {path.name for path in (whole / 'c3').iterdir()} == {'seed_0', 'seed_1', 'duplicates.npz'}

    with subprocess.Popen(
        command(*flags, f'--workdir={killed}'), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 240
        while not list(killed.glob('c2-nine-one/seed_0/checkpoints/[0-9]')) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (killed / 'study.html').exists()
    result = run(*flags, f'--workdir={killed}')
    assert result.returncode == 0, result.stderr
    assert 'c3, 2 seeds: finished before' in result.stdout
    assert (killed / 'study.md').read_bytes() == (whole / 'study.md').read_bytes()

    # A run of a study is a run.
    result = run('--mode=eval', f'--workdir={killed / "c3" / "seed_1"}')
    assert result.returncode == 0, result.stderr
    names = ('metrics.json', 'eval/4/metrics.json')
    for name in names:
        assert (killed / 'c3' / 'seed_1' / name).read_bytes() == (whole / 'c3' / 'seed_1' / name).read_bytes()

    before = snapshot(whole)
    assert_refused(run(*flags, f'--workdir={whole}', '--config.num_seeds=3'), 'holds a study of', 'num_seeds was 2')
    assert_refused(run(*DIGITS, f'--workdir={whole}'), 'holds a study of another config')
    assert_refused(run('--mode=eval', f'--workdir={whole}'), 'a study', 'one of its runs')
    assert snapshot(whole) == before


def test_another_config_in_the_same_workdir_is_refused(finished):
    before = snapshot(finished)
    result = run(*DIGITS, f'--workdir={finished}', '--config.temperature=0.3', '--config.seed=1')
    assert_refused(result, f'--workdir={finished}', 'seed was 0 and is 1', 'temperature was 0.2 and is 0.3')
    assert snapshot(finished) == before
    result = run(*DIGITS, f'--workdir={finished}', '--config.checkpoints_to_keep=7', '--config.max_seconds=5')
    assert result.returncode == 0, result.stderr


def test_the_default_workdir_names_config_dataset_and_fingerprint_and_is_gone_on_with(tmp_path):
    def run_there(*flags):
        return subprocess.run(
            [*command(f'--config={ROOT}/configs/smoke.py', *TINY, *flags)],
            cwd=tmp_path,
            env=os.environ | {'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )

    result = run_there('--config.max_seconds=1e-9')
    (workdir,) = (tmp_path / 'runs').iterdir()
    fingerprint = json.loads((workdir / 'config.json').read_text())['fingerprint']
    assert workdir.name == f'smoke-digits-{fingerprint}'
    assert str(pathlib.Path('runs') / workdir.name) in result.stdout
    assert 'Going on from epoch 1 of 4' in run_there().stdout


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(finished, tmp_path):
    copy = tmp_path / 'run'
    subprocess.run(['cp', '-r', finished, copy], check=True)
    final = (copy / 'metrics.json').read_bytes()
    (copy / 'metrics.json').unlink()  # Or it is a finished run, which nothing is trained of.
    for path in (copy / 'checkpoints' / '4' / 'state').rglob('manifest.ocdbt'):
        path.write_bytes(b'')
    assert_refused(run('--mode=eval', f'--workdir={copy}'), 'the checkpoint is damaged; use another epoch')
    result = run(*DIGITS, f'--workdir={copy}')
    assert result.returncode == 0, result.stderr
    assert 'checkpoints/4: the checkpoint is damaged' in result.stdout
    assert 'Going on from epoch 3' in result.stdout
    assert (copy / 'metrics.json').read_bytes() == final


@pytest.mark.parametrize('place', ['a file', 'below a file', 'read only'])
def test_a_workdir_that_cannot_be_written_is_refused(place, tmp_path):
    (tmp_path / 'file').write_text('')
    workdir = {'a file': tmp_path / 'file', 'below a file': tmp_path / 'file' / 'run', 'read only': '/proc/run'}[place]
    assert_refused(run(*DIGITS, f'--workdir={workdir}'), f'--workdir={workdir}', 'choose another')


def test_a_workdir_that_another_process_holds_is_refused(finished, tmp_path):
    finished = shutil.copytree(finished, tmp_path / 'run')
    (finished / 'metrics.json').unlink()  # Or it is a finished run, which is only read.
    code = (
        'import sys, time; from simclr_cifar import files\n'
        f'with files.RunFolder({str(finished)!r}).locked(): print("held", flush=True); time.sleep(100)'
    )
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == 'held\n'
        before = snapshot(finished)
        for flags in (DIGITS, ['--mode=eval']):
            assert_refused(run(*flags, f'--workdir={finished}'), 'another running process', str(holder.pid))
        assert snapshot(finished) == before
        holder.kill()


def test_eval_without_a_checkpoint_or_of_another_epoch_is_refused(finished, tmp_path):
    assert_refused(run('--mode=eval', f'--workdir={finished}', '--checkpoint=1'), '--checkpoint=1', 'there are 2, 3, 4')
    (tmp_path / 'config.json').write_bytes((finished / 'config.json').read_bytes())
    assert_refused(run('--mode=eval', f'--workdir={tmp_path}'), 'holds no checkpoint')


def test_weights_alone_are_evaluated_as_the_run_that_they_are_of(finished, tmp_path):
    for name in ('config.json', 'history.csv', 'weights.npz'):
        shutil.copy(finished / name, tmp_path)
    result = run('--mode=eval', f'--workdir={tmp_path}')
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'metrics.json').read_text()) == json.loads((finished / 'metrics.json').read_text())
    assert '<svg' in (tmp_path / 'report.html').read_text()
    assert_refused(run('--mode=eval', f'--workdir={tmp_path}', '--checkpoint=2'), 'there are 4')

    whole = (tmp_path / 'weights.npz').read_bytes()
    (tmp_path / 'weights.npz').write_bytes(whole[: len(whole) // 2])
    assert_refused(run('--mode=eval', f'--workdir={tmp_path}'), 'weights.npz is missing or unreadable', 'get it again')
    (tmp_path / 'weights.npz').write_bytes(whole)
    described = json.loads((tmp_path / 'config.json').read_text())
    described['config']['embedding_dim'] = 16
    (tmp_path / 'config.json').write_text(json.dumps(described))
    assert_refused(run('--mode=eval', f'--workdir={tmp_path}'), 'weights.npz', 'another architecture')
    (tmp_path / 'config.json').write_text('{"config": ["seed"]}')
    assert_refused(run('--mode=eval', f'--workdir={tmp_path}'), 'config.json holds no config')


def test_a_checkpoint_of_another_architecture_is_refused(finished, tmp_path):
    copy = tmp_path / 'run'
    subprocess.run(['cp', '-r', finished, copy], check=True)
    described = json.loads((copy / 'config.json').read_text())
    described['config']['embedding_dim'] = 16
    (copy / 'config.json').write_text(json.dumps(described))
    assert_refused(run('--mode=eval', f'--workdir={copy}'), 'another architecture', 'use the config')


FILL_THE_DISK = """
import errno, itertools, os
calls, fsync = itertools.count(1), os.fsync
def full(descriptor):
    if next(calls) >= {first}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(descriptor)
os.fsync = full
"""


# The first write is config.json's; the sixth, after a milestone, one of the last epoch's evaluation.
@pytest.mark.parametrize('first', [1, 6])
def test_a_full_disk_is_told_and_costs_nothing(first, finished, tmp_path):
    workdir = tmp_path / 'run'
    (tmp_path / 'sitecustomize.py').write_text(FILL_THE_DISK.format(first=first))
    result = run(*DIGITS, f'--workdir={workdir}', environment={'PYTHONPATH': str(tmp_path)})
    assert_refused(result, 'the disk is full', 'free some space')
    assert not [path for path in workdir.rglob('.*') if path.name != '.lock']
    assert run(*DIGITS, f'--workdir={workdir}').returncode == 0
    assert (workdir / 'metrics.json').read_bytes() == (finished / 'metrics.json').read_bytes()


def test_a_checkpoint_that_does_not_fit_is_told_and_costs_nothing(tmp_path):
    workdir = tmp_path / 'run'
    flags = [*DIGITS, f'--workdir={workdir}']
    limited = ['bash', '-c', 'trap "" XFSZ; ulimit -f 100; exec "$@"', 'limited', *command(*flags)]
    assert_refused(subprocess.run(limited, cwd=ROOT, capture_output=True, text=True), 'the disk is full')
    assert run(*flags).returncode == 0


def test_prepare_tells_scripts_that_the_data_cannot_be_had(small_cifar10, tmp_path):
    result = run('--mode=prepare', '--config=configs/c4.py', environment={'TFDS_DATA_DIR': str(tmp_path)})
    assert result.returncode == 3
    assert 'holds no cifar10' in result.stdout
    result = run('--mode=prepare', '--config=configs/c4.py', environment={'TFDS_DATA_DIR': str(small_cifar10)})
    assert result.returncode == 0
    assert '200 train' in result.stdout


def test_real_cifar10_is_learnt(cifar10_data_dir, tmp_path):
    result = run('--config=configs/c10.py', '--config.num_epochs=3', f'--workdir={tmp_path / "run"}')
    assert result.returncode == 0, result.stderr
    losses = [float(row[2]) for row in decided(tmp_path / 'run' / 'history.csv')[1:]]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    figures = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert figures['test/pair_accuracy'] > 0.14  # Chance is 0.1; 4 classes may need more epochs to leave it.
