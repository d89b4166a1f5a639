"""The launch files of clusters and clouds: what they run, with stand-ins, and what they ask of the program."""

import datetime
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from launching import ROOT, assert_refused, environment_with, write_program

from simclr_cifar import config as config_lib

# Copies as rsync does, and ends as $RSYNC tells, once for each call: the numbers of one line.
RSYNC = """#!/bin/bash
echo copying >> "$CALLS"
read -r first rest < "$CALLS.results"; echo "$rest" > "$CALLS.results"
if [ "${first:-0}" = 0 ]; then rm -rf "${@: -1}"; cp -r "${@: -2:1}" "${@: -1}"; fi
exit "${first:-0}"
"""
# Trains until two copies were made, or as long as it is let.
PROGRAM = """#!/bin/bash
trap 'echo saved > "$workdir/stopped"; exit 75' TERM
for argument; do case $argument in --workdir=*) workdir=${argument#*=} ;; esac; done
echo half > "$workdir/history.csv"
touch "$CALLS.started"
for ((i = 0; i < 400 && $(grep -c copying "$CALLS") < ${COPIES:-2}; i++)); do sleep.real 0.05; done
echo whole > "$workdir/history.csv"
exit "${STATUS:-0}"
"""


class SkyPilot:
    """Runs the commands of launch/skypilot.yaml with a folder for the bucket."""

    def __init__(self, folder):
        self.bucket, self.home, self.calls = folder / 'bucket', folder / 'home', folder / 'calls'
        self._folder = folder
        for path in (self.bucket, self.home):
            path.mkdir()
        write_program(folder / 'bin' / 'rsync', RSYNC)
        write_program(folder / 'bin' / 'sleep', '#!/bin/bash\nexec sleep.real 0.05\n')
        write_program(folder / 'bin' / 'sleep.real', '#!/bin/bash\nPATH=/usr/bin:/bin exec sleep "$1"\n')
        write_program(folder / '.venv' / 'bin' / 'python', PROGRAM)

    def start(self, results='', **variables):
        commands = (ROOT / 'launch' / 'skypilot.yaml').read_text().partition('\nrun: |\n')[2]
        commands = textwrap.dedent(commands).replace('/bucket/$RUN', f'{self.bucket}/$RUN')
        self.calls.write_text('')
        (self._folder / 'calls.results').write_text(f'{results}\n')
        variables = {'RUN': 'trial', 'FLAGS': '', 'HOME': self.home, 'CALLS': self.calls} | variables
        return subprocess.Popen(
            ['bash', '-c', commands],
            cwd=self._folder,
            env=environment_with(self._folder / 'bin', **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process):
        output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def __call__(self, *arguments, **variables):
        return self.end(self.start(*arguments, **variables))

    def kept(self):
        return (self.bucket / 'trial' / 'history.csv').read_text().strip()


@pytest.fixture
def sky(tmp_path):
    return SkyPilot(tmp_path)


def test_files_that_vanish_while_they_are_copied_stop_no_copying(sky):
    result = sky('24 24 0', COPIES=3)
    assert (result.returncode, result.stderr) == (0, '')
    assert sky.calls.read_text().count('copying') >= 4  # Three while it trained, one at the end.
    assert sky.kept() == 'whole'


@pytest.mark.parametrize('status', [0, 1, 75])
def test_the_last_copy_is_made_whatever_came_before(sky, status):
    result = sky('23 11', STATUS=status)
    assert result.returncode == status
    assert 'warning: copying to the bucket failed with status 23' in result.stderr
    assert sky.kept() == 'whole'


def test_a_last_copy_that_fails_is_reported(sky):
    result = sky(' '.join(['0 0'] + ['30'] * 9))
    assert result.returncode == 1
    assert 'error: the last copy to the bucket failed' in result.stderr


def test_a_machine_that_is_taken_away_saves_and_copies(sky):
    process = sky.start(COPIES=999)
    while not os.path.exists(f'{sky.calls}.started'):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert sky.end(process).returncode == 75
    assert (sky.bucket / 'trial' / 'stopped').exists()


def test_the_last_copy_waits_for_the_one_under_way(sky, tmp_path):
    rsync = RSYNC.replace('if [', 'echo begins >> "$CALLS"\nsleep.real 0.3\necho ends >> "$CALLS"\nif [', 1)
    write_program(tmp_path / 'bin' / 'rsync', rsync)
    assert sky(COPIES=1).returncode == 0
    events = [line for line in sky.calls.read_text().splitlines() if line != 'copying']
    assert events == ['begins', 'ends'] * (len(events) // 2)


def test_the_run_is_fetched_whole_or_not_at_all(sky):
    (sky.bucket / 'trial').mkdir()
    (sky.bucket / 'trial' / 'history.csv').write_text('earlier')
    (sky.home / 'runs' / 'trial.partial').mkdir(parents=True)
    (sky.home / 'runs' / 'trial.partial' / 'rest').touch()  # Of a fetching that was interrupted.
    write_program(sky.home.parent / 'bin' / 'cp', '#!/bin/bash\nexit 1\n')
    result = sky()
    assert (result.returncode, sky.calls.read_text()) == (1, '')
    assert result.stderr.startswith('error: RUN=trial: cannot be fetched')
    assert sky.kept() == 'earlier'
    (sky.home.parent / 'bin' / 'cp').unlink()
    assert sky().returncode == 0
    assert sorted(os.listdir(sky.home / 'runs' / 'trial')) == ['history.csv']


@pytest.mark.parametrize('name', ['', '..', 'a/b', '.hidden'])
def test_no_name_lets_the_copying_remove_other_files_of_the_bucket(sky, name):
    result = sky(RUN=name)
    assert_refused(result, f'RUN={name}: ')
    assert sky.calls.read_text() == ''


@pytest.fixture
def slurm(tmp_path):
    """Runs a copy of launch/slurm.sbatch as Slurm does; returns the result and what srun was asked."""
    checkout = tmp_path / 'checkout'
    (checkout / 'simclr_cifar').mkdir(parents=True)
    (checkout / 'simclr_cifar' / 'main.py').touch()
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', checkout / '.venv'], check=True)
    binaries = tmp_path / 'bin'
    write_program(
        binaries / 'srun', '#!/bin/bash\necho "$PWD $*" > "$CALLS"; kill -${SIGNAL:-TERM} $PPID; sleep 0.3; exit 75\n'
    )
    write_program(binaries / 'squeue', '#!/bin/bash\n[ -n "$END" ] && echo "$END"\n')
    for name in ('scancel', 'scontrol'):
        write_program(binaries / name, f'#!/bin/bash\necho {name} "$@" >> "$CALLS.told"\n')

    def run(*flags, cwd, **variables):
        (tmp_path / 'calls.told').unlink(missing_ok=True)
        variables = {'CALLS': tmp_path / 'calls', 'SLURM_SUBMIT_DIR': cwd, 'SLURM_JOB_ID': 7, 'END': ''} | variables
        with open(ROOT / 'launch' / 'slurm.sbatch') as script:
            result = subprocess.run(
                ['bash', '-s', '--', *flags],
                stdin=script,
                cwd=cwd,
                env=environment_with(binaries, **variables),
                capture_output=True,
                text=True,
                timeout=60,
            )
        calls, told = tmp_path / 'calls', tmp_path / 'calls.told'
        return result, calls.read_text() if calls.exists() else '', told.read_text() if told.exists() else ''

    run.checkout = checkout
    return run


def test_slurm_runs_the_checkout_with_the_callers_paths(slurm, tmp_path):
    python = f'{slurm.checkout}/.venv/bin/python -P -m simclr_cifar.main --stopped_status=75'
    _, call, _ = slurm('--config=configs/c10.py', cwd=slurm.checkout)
    assert call == f'{slurm.checkout} --kill-on-bad-exit=0 {python} --config=configs/c10.py\n'
    _, call, _ = slurm('--config=mine.py', cwd=tmp_path, CHECKOUT=slurm.checkout)
    assert call == f'{tmp_path} --kill-on-bad-exit=0 {python} --config=mine.py\n'


def test_slurm_goes_on_after_its_time_limit_and_keeps_the_programs_status(slurm):
    soon = (datetime.datetime.now() + datetime.timedelta(seconds=60)).isoformat(timespec='seconds')
    result, _, told = slurm(cwd=slurm.checkout, END=soon)
    assert (result.returncode, told) == (75, 'scancel --signal=TERM 7\nscontrol requeue 7\n')
    for name in ('USR1', 'USR2', 'HUP'):  # As sbatch --signal=B:USR1@300 asks for.
        result, _, told = slurm(cwd=slurm.checkout, END=soon, SIGNAL=name)
        assert (result.returncode, told) == (75, 'scancel --signal=TERM 7\nscontrol requeue 7\n')
    result, _, told = slurm(cwd=slurm.checkout)  # squeue fails.
    assert (result.returncode, told) == (75, 'scancel --signal=TERM 7\n')


def test_slurm_refuses_another_folder_and_a_broken_environment(slurm, tmp_path):
    assert_refused(slurm(cwd=tmp_path)[0], 'is not the checkout', 'CHECKOUT=')
    (slurm.checkout / '.venv' / 'pyvenv.cfg').unlink()
    assert_refused(slurm(cwd=slurm.checkout)[0], f'{slurm.checkout}/.venv: ', 'launch/local.sh --help')


OWN = {'--fetch_every', '--dry_run'}  # Those of launch/tpu_vm.sh that look like the program's.


@pytest.mark.parametrize('name', ['gke_jobset.yaml', 'skypilot.yaml', 'slurm.sbatch', 'tpu_vm.sh', 'Dockerfile'])
def test_what_cluster_files_ask_of_the_program_there_is(name):
    text = (ROOT / 'launch' / name).read_text()
    for config in re.findall(r'--config=(configs/\w+\.py)', text):
        assert (ROOT / config).exists()
    main = (ROOT / 'simclr_cifar' / 'main.py').read_text()
    for flag in set(re.findall(r'--(?:config\.)?[a-z]+_[a-z_]+', text)) - OWN:
        field = flag.removeprefix('--config.')
        assert (field in config_lib.defaults()) if 'config.' in flag else (f"'{field[2:]}'" in main), flag


def test_a_container_finds_the_package_from_any_folder_and_keeps_its_runs():
    text = (ROOT / 'launch' / 'Dockerfile').read_text()
    assert 'PYTHONPATH=/simclr_cifar' in text and 'PYTHONSAFEPATH=1' in text
    assert 'RUN ln -s /runs runs' in text  # The default folder of a run, which --rm would remove.
