"""Several processes on this machine, as a person or a cluster starts them."""

import itertools
import json
import signal
import time
import types

import numpy as np
import pytest
from programs import errors_of, finish, losses, started, wait_for_epoch, weights

from simclr_cifar import processes

SMALL = [
    *('--config=configs/smoke.py', '--config.num_epochs=4', '--config.batches_per_epoch=8', '--config.milestones=2,'),
    *('--config.channels=8,8', '--config.checkpoint_every_epochs=1', '--config.groups_per_batch=4'),
]


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """A run of two processes, which share this host's memory."""
    run = tmp_path_factory.mktemp('two') / 'run'
    told = "parallel.free_memory = lambda sharing: print('sharing', sharing, flush=True) or 2**40"
    with started(2, *SMALL, f'--workdir={run}', first=f'from simclr_cifar import parallel; {told}') as group:
        ended = finish(group)
    assert all('sharing 2\n' in output for _, output, _ in ended)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert 'Training on 2 of 2 cpu in 2 processes' in ended[0][1]
    assert 'epoch' not in ended[1][1]
    assert (run / 'report.html').exists()
    return run


def test_processes_train_what_one_trains(two_processes, tmp_path):
    with started(1, *SMALL, f'--workdir={tmp_path / "run"}', devices=4) as group:
        assert finish(group)[0][0] == 0
    np.testing.assert_allclose(losses(two_processes), losses(tmp_path / 'run'), rtol=1e-5)
    ours, theirs = weights(two_processes), weights(tmp_path / 'run')
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


@pytest.mark.parametrize(('victim', 'by'), [(1, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_one_that_is_lost_ends_the_other_and_both_go_on(two_processes, tmp_path, victim, by):
    run = tmp_path / 'run'
    # Images that each process reads for itself train as those that it holds do.
    flags = [*SMALL, f'--workdir={run}', '--peer_timeout=20', '--config.resident=no']
    with started(2, *flags) as group:
        wait_for_epoch(run, 1)
        group[victim].send_signal(by)
        since = time.monotonic()
        _, errors = group[1 - victim].communicate(timeout=120)
        assert time.monotonic() - since < 50
    assert group[1 - victim].returncode == 1, errors
    (line,) = errors_of(errors)
    assert 'the same command, in every process, goes on' in line
    with started(2, *flags) as group:
        ended = finish(group)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert 'Going on from epoch' in ended[0][1]
    assert json.loads((run / 'metrics.json').read_text()) == json.loads((two_processes / 'metrics.json').read_text())
    for name, values in weights(two_processes).items():
        np.testing.assert_array_equal(weights(run)[name], values)


@pytest.mark.parametrize('asked', [[1], [0, 1]])
def test_a_signal_to_some_has_all_save_and_leave(tmp_path, asked):
    run = tmp_path / 'run'
    flags = [flag for flag in SMALL if not flag.startswith(('--config.num', '--config.checkpoint', '--config.mile'))]
    flags += ['--config.num_epochs=100000', '--config.checkpoint_every_epochs=100000', '--config.milestones=100000,']
    flags += [f'--workdir={run}']
    with started(2, *flags) as group:
        while not (run / 'history.csv').exists() or len(losses(run)) < 3:
            time.sleep(0.05)
        for number in asked:
            group[number].send_signal(signal.SIGTERM)
        ended = finish(group)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert 'Stopped by' in ended[0][1]
    (saved,) = (run / 'checkpoints').iterdir()
    assert int(saved.name) == len(losses(run))


SLOW_EVALUATION = (
    'import time; from simclr_cifar import evaluate; save = evaluate.save; '
    'evaluate.save = lambda *arguments: (time.sleep(8), save(*arguments))'
)


def test_a_signal_to_one_that_waits_for_the_evaluation_has_all_save_and_leave(tmp_path):
    run = tmp_path / 'run'
    with started(2, *SMALL, f'--workdir={run}', first=SLOW_EVALUATION) as group:
        wait_for_epoch(run, 2)
        group[1].send_signal(signal.SIGTERM)
        ended = finish(group)
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert 'Stopped by' in ended[0][1]
    assert (run / 'checkpoints' / '3').exists()
    assert not (run / 'checkpoints' / '4').exists()


def test_what_fails_in_one_ends_all_with_its_reason(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{"config": {"seed": 5}}')
    with started(2, *SMALL, f'--workdir={tmp_path / "run"}') as group:
        (status, _, errors), (other_status, _, other_errors) = finish(group)
    assert (status, other_status) == (2, 1)
    (line,) = errors_of(errors)
    assert 'seed was 5 and is 0' in line
    assert errors_of(other_errors) == [line.replace('error: ', 'error: process 0 failed: ')]


def test_a_device_that_fails_in_one_ends_all_with_its_reason(tmp_path):
    broken = (
        'import jax, sys; from simclr_cifar import beginning; '
        "lost = jax.errors.JaxRuntimeError('INTERNAL: the device is lost'); "
        "'--process_id=1' in sys.argv and setattr("
        "beginning, 'require_trainable', lambda *_: (_ for _ in ()).throw(lost))"
    )
    since = time.monotonic()
    with started(2, *SMALL, f'--workdir={tmp_path / "run"}', first=broken) as group:
        (status, _, errors), (other_status, _, other_errors) = finish(group)
    assert time.monotonic() - since < 45  # Sooner than it would be missed.
    assert (status, other_status) == (1, 1)
    (line,) = errors_of(other_errors)
    assert 'INTERNAL: the device is lost' in line
    assert errors_of(errors) == [line.replace('error: ', 'error: process 1 failed: ')]


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--coordinator=127.0.0.1:1'], '--num_processes: is missing'),
        (['--num_processes=2', '--process_id=0'], '--coordinator: is missing'),
        (['--coordinator=here', '--num_processes=2', '--process_id=0'], '--coordinator=here: give HOST:PORT'),
        (['--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=2'], '--process_id=2: of 2 processes'),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(flags, said, tmp_path):
    with started(1, *SMALL, f'--workdir={tmp_path / "run"}', *flags) as group:
        ((status, _, errors),) = finish(group)
    assert status == 2
    assert said in errors_of(errors)[0]
    assert not (tmp_path / 'run').exists()


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    with started(2, *SMALL, f'--workdir={tmp_path / "run"}', '--config.groups_per_batch=3') as group:
        ended = finish(group)
    # One that is slow to start may hear of it from the other.
    assert 2 in {status for status, _, _ in ended} <= {1, 2}
    for _, _, errors in ended:
        assert '--config.groups_per_batch=3: 2 processes cannot share' in errors_of(errors)[0]
    assert not (tmp_path / 'run').exists()


def test_those_on_this_host_are_counted(monkeypatch):
    hosts = {'hosts/7/0': 'here', 'hosts/7/1': 'there', 'hosts/7/2': 'here'}
    client = types.SimpleNamespace(key_value_set=hosts.__setitem__, key_value_dir_get=lambda _: hosts.items())
    monkeypatch.setattr(processes.distributed, 'global_state', types.SimpleNamespace(client=client, process_id=0))
    monkeypatch.setattr(processes, '_agreements', itertools.count(7))
    monkeypatch.setattr(processes, 'meet', lambda: None)
    monkeypatch.setattr(processes.socket, 'gethostname', lambda: 'here')
    assert processes.on_this_host() == 2


def test_a_leader_that_does_not_listen_keeps_no_one(monkeypatch):
    client = types.SimpleNamespace(key_value_set=lambda *_: time.sleep(60))
    monkeypatch.setattr(processes.distributed, 'global_state', types.SimpleNamespace(client=client, process_id=1))
    monkeypatch.setattr(processes, '_BEAT', 0.01)
    since = time.monotonic()
    processes._fail('a reason')
    assert time.monotonic() - since < 30


def test_a_process_alone_agrees_with_itself():
    assert processes.is_leader()
    assert processes.agree({'epoch': 3}) == {'epoch': 3}
    assert (processes.any_of(True), processes.any_of(False)) == (True, False)
    tree = {'kernel': np.ones(3)}
    assert processes.from_leader(tree) is tree
    with processes.together(None, None, None, 60):
        pass
