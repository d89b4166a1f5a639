"""launch/tpu_vm.sh, with a gcloud that notes what it is asked and misbehaves as it is told."""

import os
import signal
import time

import pytest
from launching import PROGRAM, TPU, TpuScript, assert_refused

DELETE = 'launch/tpu_vm.sh --name=trial --zone=us-east5-b --delete'


@pytest.fixture
def tpu(tmp_path):
    return TpuScript(tmp_path)


def changing(calls):
    return [call for call in calls if ' create ' in call or ' delete ' in call or ' scp ' in call or ' ssh ' in call]


def test_a_tpu_is_asked_for_used_and_given_back(tpu):
    result, calls = tpu(*TPU, *PROGRAM, '--classes=truck,cat')
    assert result.returncode == 0, result.stderr
    assert calls[0] == (
        'compute tpus queued-resources create trial --zone=us-east5-b --node-id=trial --accelerator-type=v6e-16 '
        '--runtime-version=v2-alpha-tpuv6e'
    )
    (program,) = [call for call in calls if 'simclr_cifar.main' in call]
    assert '--worker=all' in program
    assert 'set -o pipefail; ' in program  # Lest the status be that of the log's writer.
    assert '--workdir=../run --stopped_status=75 --config=configs/mine.py --classes=truck\\,cat 2>&1' in program
    assert calls[-1] == 'compute tpus queued-resources delete trial --zone=us-east5-b --force --quiet'
    assert (tpu.folder / 'runs' / 'trial' / 'history.csv').read_text() == 'fetched\n'


def test_a_tpu_that_is_taken_away_is_asked_for_again_with_the_run_as_it_was(tpu):
    (tpu.folder / 'runs' / 'trial').mkdir(parents=True)
    result, calls = tpu(*TPU, '--spot', *PROGRAM, END='taken')
    assert result.returncode == 0, result.stderr
    assert sum('create' in call and '--spot' in call for call in calls) == 2
    assert sum('simclr_cifar.main' in call for call in calls) == 2
    assert any(call.endswith('runs/trial trial:run') for call in calls)
    assert ' delete ' in calls[-1]


def test_a_tpu_that_is_deleted_from_elsewhere_is_not_asked_for_again(tpu):
    result, calls = tpu(*TPU, *PROGRAM, END='deleted')
    assert result.returncode == 1
    assert sum(' create ' in call for call in calls) == 1
    assert 'deleted from elsewhere' in result.stderr


@pytest.mark.parametrize('nodes', ['', 'trial'])
def test_a_tpu_that_is_there_already_is_refused_and_stays(tpu, nodes):
    if not nodes:
        tpu.state.write_text('ACTIVE\n')
    result, calls = tpu(*TPU, *PROGRAM, NODES=nodes)
    assert_refused(result, '--name=trial: ', 'there already', '--reuse')
    assert not changing(calls)


def test_a_tpu_that_is_reused_is_never_deleted(tpu):
    tpu.state.write_text('ACTIVE\n')
    result, calls = tpu('--name=trial', '--zone=us-east5-b', '--reuse', *PROGRAM)
    assert result.returncode == 0, result.stderr
    assert not [call for call in calls if ' create ' in call or ' delete ' in call]
    assert DELETE in result.stderr and 'costs money' in result.stderr
    for end in ('refused', 'taken'):
        result, calls = tpu(*TPU, '--reuse', *PROGRAM, END=end)
        assert result.returncode != 0
        assert not [call for call in calls if ' create ' in call or ' delete ' in call]
    tpu.state.unlink()
    result, calls = tpu(*TPU, '--reuse', *PROGRAM)
    assert_refused(result, '--reuse: there is no TPU named trial')


def test_a_run_here_is_not_replaced_by_the_run_of_a_reused_tpu(tpu):
    tpu.state.write_text('ACTIVE\n')
    tpu.run.touch()
    (tpu.folder / 'runs' / 'trial').mkdir(parents=True)
    (tpu.folder / 'runs' / 'trial' / 'history.csv').write_text('mine\n')
    result, _ = tpu(*TPU, '--reuse', *PROGRAM)
    assert result.returncode == 0, result.stderr
    (before,) = (tpu.folder / 'runs').glob('trial-before-*')
    assert (before / 'history.csv').read_text() == 'mine\n'
    assert (tpu.folder / 'runs' / 'trial' / 'history.csv').read_text() == 'fetched\n'


def test_a_client_that_is_not_signed_in_is_told_at_once(tpu):
    tpu.offline.touch()
    result, calls = tpu(*TPU, *PROGRAM)
    assert_refused(result, 'You do not currently have an active account', 'gcloud auth login')
    assert not changing(calls)


def test_a_client_that_is_signed_out_while_the_program_runs_deletes_nothing_and_says_what_it_costs(tpu):
    result, calls = tpu(*TPU, *PROGRAM, END='offline')
    assert result.returncode == 255
    assert not [call for call in calls if ' delete ' in call]
    for words in ('could not be fetched', 'costs money', DELETE):
        assert words in result.stderr


def test_a_program_that_fails_gives_the_tpu_back_and_its_status(tpu):
    result, calls = tpu(*TPU, *PROGRAM, PROGRAM_STATUS='2')
    assert result.returncode == 2
    assert sum('simclr_cifar.main' in call for call in calls) == 1
    assert ' delete ' in calls[-1]
    result, calls = tpu(*TPU, '--keep', *PROGRAM, PROGRAM_STATUS='2')
    assert not any(' delete ' in call for call in calls)
    assert 'costs money' in result.stderr and DELETE in result.stderr


def test_a_program_that_wrote_nothing_gives_the_tpu_back(tpu):
    result, calls = tpu(*TPU, *PROGRAM, END='refused')
    assert result.returncode == 2
    assert ' delete ' in calls[-1]
    assert 'wrote no run' in result.stdout


def test_a_run_that_cannot_be_fetched_keeps_its_tpu(tpu):
    result, calls = tpu(*TPU, *PROGRAM, UNREACHABLE='yes')
    assert result.returncode == 1
    assert not any(' delete ' in call for call in calls)
    for words in ('could not be fetched', 'costs money', DELETE):
        assert words in result.stderr
    assert 'The run:' not in result.stdout


def test_a_tpu_that_cannot_be_deleted_is_said_to_cost_money(tpu):
    result, _ = tpu(*TPU, *PROGRAM, UNDELETABLE='yes')
    assert result.returncode == 1
    for words in ('could not be deleted', 'costs money', DELETE):
        assert words in result.stderr


def test_a_tpu_that_cannot_be_had_ends_in_one_line(tpu):
    result, calls = tpu(*TPU, *PROGRAM, NO_QUOTA='yes')
    assert_refused(result, '--type=v6e-16: ')
    assert not any(' delete ' in call for call in calls)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_stopped_fetches_and_deletes(tpu, number):
    process = tpu.start(*TPU, *PROGRAM, END='hanging')
    deadline = time.monotonic() + 20
    while not os.path.exists(f'{tpu.calls}.started') and time.monotonic() < deadline:
        time.sleep(0.05)
    tpu.run.touch()
    process.send_signal(number)
    result, calls = tpu.end(process, timeout=20)
    assert result.returncode == 128 + number, result.stderr
    assert ' delete ' in calls[-1]
    assert (tpu.folder / 'runs' / 'trial' / 'history.csv').exists()


def test_output_that_closes_leaves_no_tpu_behind(tpu):
    process = tpu.start(*TPU, *PROGRAM)
    process.stdout.close()
    process.stderr.close()
    process.wait(timeout=60)
    assert not tpu.state.exists()


def test_a_dry_run_prints_what_it_would_do_and_does_nothing(tpu):
    result, calls = tpu(*TPU, '--dry_run', *PROGRAM)
    assert (result.returncode, calls) == (0, []), result.stderr
    for words in ('queued-resources create trial', 'archive', 'simclr_cifar.main', 'queued-resources delete trial'):
        assert words in result.stdout
    assert not (tpu.folder / 'runs').exists()
