"""The launch scripts, with an environment and a python that only note what they are asked."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from simclr_cifar import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent

PYTHON = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in *--mode=prepare*) echo "no data"; exit ${PREPARED:-0} ;; esac
"""


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
    for path in ROOT.glob('requirements*.txt'):
        shutil.copy(path, tmp_path)
    binaries = tmp_path / '.venv' / 'bin'
    binaries.mkdir(parents=True)
    (tmp_path / '.venv' / '.made').touch()
    (binaries / 'activate').write_text(f'PATH={binaries}:$PATH\n')
    (binaries / 'python').write_text(PYTHON)
    (binaries / 'python').chmod(0o755)
    return tmp_path


def launch(checkout, script, *flags, **environment):
    calls = checkout / 'calls'
    calls.unlink(missing_ok=True)
    environment = os.environ | {'CALLS': str(calls)} | environment
    result = subprocess.run(
        ['bash', checkout / 'launch' / script, *flags], cwd='/', env=environment, capture_output=True, text=True
    )
    return result, calls.read_text().splitlines()


def test_requirements_are_installed_once_and_again_when_they_change(checkout):
    _, calls = launch(checkout, 'test.sh', '-k', 'name')
    installed = [call for call in calls if 'pip install' in call]
    assert [call.split()[-1] for call in installed] == ['requirements.txt', 'requirements-test.txt']
    assert calls[-1] == '-m pytest --numprocesses=2 -k name'
    _, calls = launch(checkout, 'test.sh')
    assert calls == ['-m pytest --numprocesses=2']
    with (checkout / 'requirements-test.txt').open('a') as file:
        file.write('# changed\n')
    _, calls = launch(checkout, 'test.sh')
    assert [call.split()[-1] for call in calls if 'pip install' in call] == ['requirements-test.txt']


def test_the_flags_reach_the_main_program(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', '--config.num_epochs=3', '--classes=cat,dog')
    flags = '-m simclr_cifar.main --config=configs/c10.py --config.num_epochs=3 --classes=cat,dog'
    assert (result.returncode, calls) == (0, [f'{flags} --mode=prepare', flags])
    _, calls = launch(checkout, 'local.sh', '--config=configs/c4.py')
    assert calls[-1] == '-m simclr_cifar.main --config=configs/c4.py'
    _, calls = launch(checkout, 'local.sh', '--mode=study')
    assert calls[-1] == '-m simclr_cifar.main --config=configs/study.py --mode=study'
    _, calls = launch(checkout, 'local.sh', '--mode=doctor')
    assert calls == ['-m simclr_cifar.main --config=configs/c10.py --mode=doctor']
    _, calls = launch(checkout, 'local.sh', '--mode=eval', '--workdir=runs/x')
    assert calls == ['-m simclr_cifar.main --mode=eval --workdir=runs/x']


def test_only_data_that_cannot_be_had_turns_to_the_digits(checkout):
    launch(checkout, 'test.sh')
    result, calls = launch(checkout, 'local.sh', PREPARED='3')
    assert result.stdout == 'Training on the embedded digits instead of CIFAR-10: no data\n'
    assert calls[-1] == '-m simclr_cifar.main --config=configs/c10.py --config.dataset=digits'
    result, calls = launch(checkout, 'local.sh', PREPARED='2')
    assert (result.returncode, len(calls)) == (2, 1)
    _, calls = launch(checkout, 'local.sh', '--data_dir=/nowhere', PREPARED='3')
    assert calls == ['-m simclr_cifar.main --config=configs/c10.py --data_dir=/nowhere']


def test_a_folder_is_indexed_and_served(checkout, tmp_path):
    pictures = tmp_path / 'my pictures'
    pictures.mkdir()
    result, calls = launch(checkout, 'search.sh', str(pictures), '--port=8001', CHECKPOINT='runs/mine')
    assert result.returncode == 0, result.stderr
    build, serve = calls[-2:]
    assert build.startswith(f'-m simclr_cifar.search build --checkpoint=/runs/mine --images={pictures} --index=')
    index = build.rpartition('--index=')[2]
    assert index.startswith('indices/my-pictures-')
    assert serve == f'-m simclr_cifar.search serve --index={index} --port=8001'
    _, calls = launch(checkout, 'search.sh', str(pictures))
    assert calls[-1].startswith('-m simclr_cifar.search serve --index=indices/my-pictures-')
    assert index not in calls[-1]  # Of another encoder.
    _, calls = launch(checkout, 'search.sh', '--no_browser')
    unpack, build, serve = calls[-3:]
    assert unpack == '-m simclr_cifar.search unpack --to=indices/pictures'
    assert build.startswith('-m simclr_cifar.search build --checkpoint=weights/fast --images=indices/pictures --index=')
    assert serve.endswith(' --no_browser')


GCLOUD = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in
  *describe*) cat "$CALLS.state" 2>/dev/null || exit 1 ;;
  *'test -d run'*) exit 1 ;;
  *queued-resources\\ create*) echo ACTIVE > "$CALLS.state" ;;
  *queued-resources\\ delete*) rm -f "$CALLS.state" ;;
  *worker=0*trial:run\\ *)
    [ -z "$UNREACHABLE" ] || exit 1
    mkdir -p "${@: -1}"
    echo fetched > "${@: -1}/history.csv" ;;
  *simclr_cifar.main*)
    if [ -e "$CALLS.taken" ]; then rm "$CALLS.taken"; echo SUSPENDED > "$CALLS.state"; exit 1; fi
    exit "${PROGRAM_STATUS:-0}" ;;
esac
"""
TPU = ['--name=trial', '--zone=us-east5-b', '--type=v6e-16']


@pytest.fixture
def tpu(tmp_path):
    """Runs launch/tpu_vm.sh in a checkout with a gcloud that only notes what it is asked; returns (result, calls)."""
    shutil.copytree(ROOT / 'launch', tmp_path / 'launch')
    (tmp_path / 'file').touch()
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b']
    for arguments in (['init', '-q'], ['add', 'file'], ['commit', '-q', '-m', 'first']):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    binaries = tmp_path / 'bin'
    binaries.mkdir()
    for name, content in (('gcloud', GCLOUD), ('sleep', '#!/bin/bash\n')):
        (binaries / name).write_text(content)
        (binaries / name).chmod(0o755)

    def run(*flags, **environment):
        (tmp_path / 'calls').write_text('')
        path = f'{binaries}:{os.environ["PATH"]}'
        result = subprocess.run(
            ['bash', tmp_path / 'launch' / 'tpu_vm.sh', *flags],
            env=os.environ | {'CALLS': str(tmp_path / 'calls'), 'PATH': path} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = (tmp_path / 'calls').read_text().splitlines()
        return result, [call for call in calls if ' describe ' not in call and ' list ' not in call]

    run.folder = tmp_path
    return run


def test_a_tpu_is_asked_for_used_and_given_back(tpu):
    result, calls = tpu(*TPU, '--', '--config=configs/simclr_r18.py', '--classes=truck,cat')
    assert result.returncode == 0, result.stderr
    assert calls[0] == (
        'compute tpus queued-resources create trial --zone=us-east5-b --node-id=trial --accelerator-type=v6e-16 '
        '--runtime-version=v2-alpha-tpuv6e'
    )
    (program,) = [call for call in calls if 'simclr_cifar.main' in call]
    assert '--worker=all' in program
    assert 'set -o pipefail; ' in program  # Lest the status be that of the log's writer.
    assert '--workdir=../run --stopped_status=75 --config=configs/simclr_r18.py --classes=truck\\,cat 2>&1' in program
    assert calls[-1] == 'compute tpus queued-resources delete trial --zone=us-east5-b --force --quiet'
    assert (tpu.folder / 'runs' / 'trial' / 'history.csv').read_text() == 'fetched\n'


def test_a_tpu_that_is_taken_away_is_asked_for_again_with_the_run_as_it_was(tpu):
    (tpu.folder / 'calls.taken').touch()
    (tpu.folder / 'runs' / 'trial').mkdir(parents=True)
    result, calls = tpu(*TPU, '--spot', '--', '--config=configs/simclr_r18.py')
    assert result.returncode == 0, result.stderr
    assert sum('create' in call and '--spot' in call for call in calls) == 2
    assert sum('simclr_cifar.main' in call for call in calls) == 2
    assert sum(call.endswith('runs/trial trial:run') for call in calls) == 2
    assert 'delete' in calls[-1]


def test_a_program_that_fails_gives_the_tpu_back_and_its_status(tpu):
    result, calls = tpu(*TPU, '--', '--config=configs/none.py', PROGRAM_STATUS='2')
    assert result.returncode == 2
    assert sum('simclr_cifar.main' in call for call in calls) == 1
    assert 'delete' in calls[-1]
    _, calls = tpu(*TPU, '--keep', '--', '--config=configs/none.py', PROGRAM_STATUS='2')
    assert not any('delete' in call for call in calls)


def test_a_run_that_cannot_be_fetched_keeps_its_tpu(tpu):
    result, calls = tpu(*TPU, '--', '--config=configs/simclr_r18.py', UNREACHABLE='yes')
    assert not any(' delete ' in call for call in calls)
    assert 'The TPU is still there' in result.stderr
    assert 'The run:' not in result.stdout


def test_a_dry_run_prints_what_it_would_do_and_does_nothing(tpu):
    result, calls = tpu(*TPU, '--dry_run', '--', '--config=configs/simclr_r18.py')
    assert (result.returncode, calls) == (0, [])
    for words in ('queued-resources create trial', 'git archive', 'simclr_cifar.main', 'queued-resources delete trial'):
        assert words in result.stdout
    assert not (tpu.folder / 'runs').exists()


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--zone=z', '--type=v6e-16'], '--name is missing'),
        (['--name=trial', '--zone=z'], '--type is missing'),
        (['--name=Trial', '--zone=z', '--type=v6e-16'], '--name=Trial: lower-case'),
        ([*TPU, '--config=configs/c10.py'], '--config=configs/c10.py: unknown'),
    ],
)
def test_what_the_tpu_script_is_not_told_rightly_it_says(tpu, flags, said):
    result, calls = tpu(*flags)
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith(f'error: {said}')


@pytest.mark.parametrize('name', ['gke_jobset.yaml', 'skypilot.yaml', 'slurm.sbatch', 'tpu_vm.sh', 'Dockerfile'])
def test_what_cluster_files_ask_of_the_program_there_is(name):
    text = (ROOT / 'launch' / name).read_text()
    for config in re.findall(r'--config=(configs/\w+\.py)', text):
        assert (ROOT / config).exists()
    main = (ROOT / 'simclr_cifar' / 'main.py').read_text()
    own = {
        '--name',
        '--zone',
        '--type',
        '--version',
        '--fetch_every',
        '--spot',
        '--keep',
        '--dry_run',
        '--look',
        '--delete',
    }
    for flag in set(re.findall(r'--(?:config\.)?[a-z]+_[a-z_]+', text)) - own:
        field = flag.removeprefix('--config.')
        assert (field in config_lib.defaults()) if 'config.' in flag else (f"'{field[2:]}'" in main), flag
