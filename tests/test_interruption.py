import json
import signal
import subprocess
import sys
import time

import pytest
from programs import finish, losses, started

from simclr_cifar import interruption
from simclr_cifar.interruption import Interrupted

SMALL = [
    *('--config=configs/smoke.py', '--config.num_epochs=4', '--config.batches_per_epoch=60', '--config.milestones=2,'),
    *('--config.channels=8,8', '--config.checkpoint_every_epochs=1'),
]
WARNINGS = [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
SIGNALS = [signal.SIGTERM, signal.SIGINT, *WARNINGS]


@pytest.fixture(autouse=True)
def handled():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interruption.handle()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._reason = None


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_interrupts_at_once_where_nothing_is_deferred(number):
    with pytest.raises(Interrupted, match=number.name):
        signal.raise_signal(number)


def test_a_block_that_defers_is_finished_first():
    with interruption.deferred():
        assert interruption.requested() is None
        signal.raise_signal(signal.SIGTERM)
        assert interruption.requested() == 'SIGTERM'


def test_a_block_leaves_nothing_deferred():
    with pytest.raises(ValueError, match='own'), interruption.deferred():
        raise ValueError('own')
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_ends_the_process():
    program = (
        'import os, signal, sys, time; from simclr_cifar import interruption; interruption.handle();\n'
        'with interruption.deferred():\n'
        '    signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGINT); sys.exit(3)'
    )
    assert subprocess.run([sys.executable, '-c', program], check=False, stdout=subprocess.DEVNULL).returncode == 130


def ends(*numbers):
    """Returns the status of a process that gets these signals while it defers them, and of itself ends with 3."""
    raised = '; '.join(f'signal.raise_signal({int(number)})' for number in numbers)
    program = (
        f'import signal, sys; from simclr_cifar import interruption; interruption.handle()\n'
        f'with interruption.deferred(): {raised}; sys.exit(3)'
    )
    return subprocess.run([sys.executable, '-c', program], check=False, stdout=subprocess.DEVNULL).returncode


@pytest.mark.parametrize('number', WARNINGS)
def test_a_warning_may_come_again_and_before_a_request(number):
    assert ends(number, number, signal.SIGHUP, signal.SIGTERM, number) == 3
    assert ends(signal.SIGTERM, number) == 3
    assert ends(number, signal.SIGTERM, signal.SIGTERM) == 128 + signal.SIGTERM


@pytest.mark.parametrize('number', WARNINGS)
def test_what_the_process_was_started_to_ignore_stays_ignored(number):
    program = (
        f'import signal; signal.signal({int(number)}, signal.SIG_IGN); '
        'from simclr_cifar import interruption; interruption.handle(); '
        f'signal.raise_signal({int(number)})'
    )
    assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0


def test_a_signal_is_noted_where_nobody_reads():
    program = (
        'import signal; from simclr_cifar import interruption; interruption.handle()\n'
        'with interruption.deferred(): signal.raise_signal(signal.SIGHUP)\n'
        'raise SystemExit(3)'
    )
    with open('/dev/full', 'w') as full:
        ended = subprocess.run([sys.executable, '-c', program], check=False, stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (3, b'')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A run that nothing came in the way of."""
    run = tmp_path_factory.mktemp('uninterrupted') / 'run'
    with started(1, *SMALL, f'--workdir={run}') as group:
        ((status, _, errors),) = finish(group)
    assert status == 0, errors
    return run


def interrupt(number, when, *flags):
    """Starts a run, sends a signal once `when` holds, and returns the status and what was printed."""
    with started(1, *SMALL, *flags) as group:
        deadline = time.monotonic() + 120
        while not when() and time.monotonic() < deadline:
            time.sleep(0.005)
        group[0].send_signal(number)
        return finish(group)[0]


def saved_epochs(run):
    return sorted(int(path.name) for path in run.glob('checkpoints/*') if path.name.isdigit())


def assert_ends_as(run, uninterrupted):
    with started(1, *SMALL, f'--workdir={run}') as group:
        ((status, output, errors),) = finish(group)
    assert status == 0, errors
    assert 'Going on from epoch' in output
    assert losses(run) == losses(uninterrupted)
    for name in ('metrics.json', 'eval/2/metrics.json', 'eval/4/confusion.csv'):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
    digests = [
        json.loads((path / 'checkpoints' / '4' / '_CHECKPOINT_METADATA').read_text())['custom_metadata']['digest']
        for path in (uninterrupted, run)
    ]
    assert digests[0] == digests[1]


def test_killed_in_mid_epoch_and_resumed_is_never_killed(uninterrupted, tmp_path):
    run = tmp_path / 'run'
    status, _, _ = interrupt(signal.SIGKILL, lambda: saved_epochs(run), f'--workdir={run}')
    assert status == -signal.SIGKILL
    assert not (run / 'metrics.json').exists()
    assert_ends_as(run, uninterrupted)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_told_to_stop_it_saves_and_says_how_to_go_on(uninterrupted, tmp_path, number):
    run = tmp_path / 'run'
    status, output, errors = interrupt(
        *(number, lambda: (run / 'history.csv').exists() and losses(run), f'--workdir={run}'),
        *('--config.checkpoint_every_epochs=1000', '--stopped_status=75'),
    )
    assert (status, errors) == (75, '')
    assert output.splitlines()[-1] == f'Stopped by {number.name}; the same command goes on from the newest checkpoint'
    assert saved_epochs(run)[-1] == len(losses(run))
    assert not (run / 'metrics.json').exists()
    assert_ends_as(run, uninterrupted)


def test_told_to_stop_before_there_is_anything_to_save_it_stops(tmp_path):
    run = tmp_path / 'run'
    status, output, errors = interrupt(signal.SIGTERM, lambda: (run / '.lock').exists(), f'--workdir={run}')
    assert (status, errors) == (0, '')
    assert 'Stopped by SIGTERM' in output
