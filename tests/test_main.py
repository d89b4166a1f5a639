"""The command line, as a person meets it: whole runs, kills, and one clear line for every bad input."""

import json
import os
import pathlib
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
        *('config.json', 'history.csv', 'metrics.json', 'report.html'),
        *('checkpoints', 'eval', 'figures', 'tensorboard'),
    }

    # From the run's folder and the data alone, to the last digit what training wrote.
    before = snapshot(workdir)
    result = run('--mode=eval', *where)
    assert result.returncode == 0, result.stderr
    assert 'test/precision_at_1' in result.stdout
    changed = [str(path) for path, content in snapshot(workdir).items() if before.get(path) != content]
    assert [path for path in changed if path != '.lock' and not path.endswith('gallery.npz')] == []

    milestone = (workdir / 'eval' / '2' / 'metrics.json').read_bytes()
    (workdir / 'eval' / '2' / 'metrics.json').unlink()
    assert run('--mode=eval', '--checkpoint=2', *where).returncode == 0
    assert (workdir / 'eval' / '2' / 'metrics.json').read_bytes() == milestone


def test_the_digits_are_learnt(tmp_path):
    result = run('--config=configs/smoke.py', f'--workdir={tmp_path / "run"}')
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['test/precision_at_1'] >= 0.97


def test_killed_in_mid_epoch_and_resumed_is_never_killed(tmp_path):
    flags = [*DIGITS, '--config.batches_per_epoch=60']
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run(*flags, f'--workdir={whole}').returncode == 0

    with subprocess.Popen(
        command(*flags, f'--workdir={killed}'), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while len(list((killed / 'checkpoints').glob('[0-9]'))) < 1 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / 'metrics.json').exists()

    result = run(*flags, f'--workdir={killed}')
    assert result.returncode == 0, result.stderr
    assert 'Going on from epoch' in result.stdout
    assert decided(killed / 'history.csv') == decided(whole / 'history.csv')
    for name in ('metrics.json', 'eval/2/metrics.json', 'eval/4/confusion.csv'):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    digests = [
        json.loads((path / 'checkpoints' / '4' / '_CHECKPOINT_METADATA').read_text())['custom_metadata']['digest']
        for path in (whole, killed)
    ]
    assert digests[0] == digests[1]


def test_another_config_in_the_same_workdir_is_refused(finished):
    before = snapshot(finished)
    result = run(*DIGITS, f'--workdir={finished}', '--config.temperature=0.3', '--config.seed=1')
    assert_refused(result, f'--workdir={finished}', 'seed was 0 and is 1', 'temperature was 0.2 and is 0.3')
    assert snapshot(finished) == before
    result = run(*DIGITS, f'--workdir={finished}', '--config.checkpoints_to_keep=7', '--config.max_seconds=5')
    assert result.returncode == 0, result.stderr


def test_the_default_workdir_names_config_dataset_and_fingerprint(tmp_path):
    result = subprocess.run(
        [*command(f'--config={ROOT}/configs/smoke.py', *TINY)],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    (workdir,) = (tmp_path / 'runs').iterdir()
    fingerprint = json.loads((workdir / 'config.json').read_text())['fingerprint']
    assert workdir.name == f'smoke-digits-{fingerprint}'
    assert str(pathlib.Path('runs') / workdir.name) in result.stdout


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(finished, tmp_path):
    copy = tmp_path / 'run'
    subprocess.run(['cp', '-r', finished, copy], check=True)
    final = (copy / 'metrics.json').read_bytes()
    for path in (copy / 'checkpoints' / '4' / 'state').rglob('manifest.ocdbt'):
        path.write_bytes(b'')
    assert_refused(run('--mode=eval', f'--workdir={copy}'), 'the checkpoint is damaged; use another epoch')
    result = run(*DIGITS, f'--workdir={copy}')
    assert result.returncode == 0, result.stderr
    assert 'checkpoints/4: the checkpoint is damaged' in result.stdout
    assert 'Going on from epoch 3' in result.stdout
    assert (copy / 'metrics.json').read_bytes() == final


def test_help_needs_no_jax():
    code = (
        'import runpy, sys\n'
        'sys.argv = ["main", "--help"]\n'
        'try:\n    runpy.run_module("simclr_cifar.main", run_name="__main__")\n'
        'except SystemExit:\n    pass\n'
        'assert "jax" not in sys.modules\n'
    )
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--workdir' in result.stdout


CONFIG_FILES = {
    'without.py': 'x = 1\n',
    'syntax.py': 'def get_config(:\n',
    'imports.py': 'import no_such_module\n',
    'raises.py': 'def get_config():\n    raise RuntimeError("no")\n',
    'number.py': 'def get_config():\n    return 3\n',
    'unknown.py': (
        'from simclr_cifar import config\ndef get_config():\n    c = config.defaults()\n'
        '    c.num_epoch = 3\n    return c\n'
    ),
    'typed.py': (
        'from simclr_cifar import config\ndef get_config():\n    c = config.defaults()\n'
        "    c.num_epochs = 'ten'\n    return c\n"
    ),
    'missing.py': 'import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n',
}
SMOKE = '--config=configs/smoke.py'


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        ([], '--config'),
        (['--config=FOLDER/nowhere.py'], '--config'),
        (['--config='], '--config'),
        (['--config=FOLDER'], '--config'),
        (['--config=FOLDER/without.py'], 'get_config'),
        (['--config=FOLDER/syntax.py'], 'SyntaxError'),
        (['--config=FOLDER/imports.py'], 'no_such_module'),
        (['--config=FOLDER/raises.py'], 'RuntimeError'),
        (['--config=FOLDER/number.py'], 'ConfigDict'),
        (['--config=FOLDER/unknown.py'], 'num_epoch'),
        (['--config=FOLDER/typed.py'], 'num_epochs'),
        (['--config=FOLDER/missing.py'], 'is missing'),
        ([SMOKE, '--config.num_epoch=3'], '--config.num_epoch: no such field; did you mean num_epochs?'),
        ([SMOKE, '--config.num_epochs=ten'], '--config.num_epochs'),
        ([SMOKE, '--config.num_epochs=1.5'], '--config.num_epochs'),
        ([SMOKE, '--config.num_epochs=0'], '--config.num_epochs=0: must be'),
        ([SMOKE, '--config.batches_per_epoch=0'], '--config.batches_per_epoch'),
        ([SMOKE, '--config.groups_per_batch=-1'], '--config.groups_per_batch'),
        ([SMOKE, '--config.temperature=0'], '--config.temperature'),
        ([SMOKE, '--config.temperature=nan'], '--config.temperature'),
        ([SMOKE, '--config.temperature=inf'], '--config.temperature'),
        ([SMOKE, '--config.encoder=cnn'], '--config.encoder=cnn: unknown encoder'),
        ([SMOKE, '--config.dataset=mnist'], '--config.dataset=mnist: unknown dataset'),
        ([SMOKE, '--classes=one,lion'], "no class 'lion'"),
        ([SMOKE, '--classes=one,two,one'], "'one' is named twice"),
        ([SMOKE, '--classes=one'], 'at least 2'),
        ([SMOKE, '--num_classes=1'], 'at least 2'),
        ([SMOKE, '--num_classes=11'], '--num_classes=11'),
        ([SMOKE, '--num_classes=ten'], '--num_classes'),
        ([SMOKE, '--num_classes=4', '--classes=one,two'], 'one of the two'),
        ([SMOKE, '--config.validation_fraction=0.001'], 'validation image'),
        ([SMOKE, '--mode=fly'], '--mode'),
        ([SMOKE, '--no_such_flag'], 'no_such_flag'),
        ([SMOKE, 'positional'], 'positional'),
        (['--config=configs/c4.py', '--data_dir=FOLDER/nowhere'], '--data_dir=FOLDER/nowhere'),
        (['--config=configs/c4.py', '--data_dir=FOLDER'], 'holds no cifar10'),
        (['--mode=eval'], '--workdir'),
        (['--mode=eval', '--workdir=FOLDER/nowhere'], 'no such folder'),
        (['--mode=eval', '--workdir=FOLDER'], 'config.json'),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(flags, said, tmp_path):
    for name, content in CONFIG_FILES.items():
        (tmp_path / name).write_text(content)
    before = snapshot(tmp_path)
    flags = [flag.replace('FOLDER', str(tmp_path)) for flag in flags]
    if '--mode=eval' not in flags:
        flags.append(f'--workdir={tmp_path / "run"}')
    result = run(*flags, environment={'PYTHONDONTWRITEBYTECODE': '1'})
    assert_refused(result, said.replace('FOLDER', str(tmp_path)))
    assert snapshot(tmp_path) == before
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('place', ['a file', 'below a file', 'read only'])
def test_a_workdir_that_cannot_be_written_is_refused(place, tmp_path):
    (tmp_path / 'file').write_text('')
    workdir = {'a file': tmp_path / 'file', 'below a file': tmp_path / 'file' / 'run', 'read only': '/proc/run'}[place]
    assert_refused(run(*DIGITS, f'--workdir={workdir}'), f'--workdir={workdir}', 'choose another')


def test_a_workdir_that_another_process_holds_is_refused(finished):
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
    result = run('--config=configs/c4.py', '--config.num_epochs=3', f'--workdir={tmp_path / "run"}')
    assert result.returncode == 0, result.stderr
    losses = [float(row[2]) for row in decided(tmp_path / 'run' / 'history.csv')[1:]]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    figures = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert figures['test/pair_accuracy'] > 0.33  # Chance is 0.25.
