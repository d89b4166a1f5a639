"""What is printed may be lost; the work is not, and its exit status stays."""

import os
import pty
import subprocess
import sys
import time

import pytest
from programs import ROOT, losses, weights

SMALL = [
    *('--config=configs/smoke.py', '--config.num_epochs=3', '--config.batches_per_epoch=20', '--config.milestones=2,'),
    *('--config.channels=8,8', '--config.checkpoint_every_epochs=1'),
]
ENVIRONMENT = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': str(ROOT)}
WRITERS = """
import logging, sys, warnings
import absl.logging
import tqdm
from simclr_cifar import streams
streams.outlast()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print('x' * 10_000, file=stream, flush=True)
    bar = tqdm.tqdm(total=2, file=stream)
    bar.update(1)
    bar.write('line', file=stream)
    bar.close()
warnings.warn('warned')
logging.error('logged')
absl.logging.error('logged')
print('kept for the end')
sys.exit(7)
"""


def shell(redirected, *arguments, **options):
    """Runs Python under a shell, which redirects its output, and returns the status and what the shell's own got."""
    program = ['bash', '-c', f'set -o pipefail; "$@" {redirected}', 'bash', sys.executable, *map(str, arguments)]
    return subprocess.run(
        program, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240, **options
    )


GONE = {
    'the reader leaves': '2>&1 | head -1 >/dev/null',
    'one reader leaves': '| head -1 >/dev/null',
    'the disk is full': '>/dev/full 2>&1',
    'closed from the start': '>&- 2>&-',
    'all is closed from the start': '<&- >&- 2>&-',
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run whose output was read to its end."""
    run = tmp_path_factory.mktemp('whole') / 'run'
    result = shell('', '-m', 'simclr_cifar.main', *SMALL, f'--workdir={run}')
    assert (result.returncode, result.stderr) == (0, '')
    return run


def assert_same(run, whole):
    assert losses(run) == losses(whole)
    assert (run / 'metrics.json').read_bytes() == (whole / 'metrics.json').read_bytes()
    names = [
        sorted(str(path.relative_to(each)) for path in each.glob('[!.t]*') if path.is_file()) for each in (run, whole)
    ]
    assert names[0] == names[1]
    for name, array in weights(whole).items():
        assert (weights(run)[name] == array).all()


@pytest.mark.parametrize('how', ['the reader leaves', 'the disk is full', 'all is closed from the start'])
def test_training_goes_on_without_its_output(how, whole, tmp_path):
    result = shell(GONE[how], '-m', 'simclr_cifar.main', *SMALL, f'--workdir={tmp_path / "run"}')
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert_same(tmp_path / 'run', whole)


@pytest.mark.parametrize('how', GONE)
def test_no_writer_raises_and_the_status_is_that_of_the_work(how):
    result = shell(GONE[how], '-c', WRITERS)
    assert result.returncode == 7, result.stderr
    assert 'Traceback' not in result.stderr
    assert 'Exception ignored' not in result.stderr


def test_bad_input_keeps_its_status_where_nobody_reads():
    result = shell('2>&1 | true', '-m', 'simclr_cifar.main', '--config=configs/smoke.py', '--confg')
    assert (result.returncode, result.stderr) == (2, '')


def test_no_file_takes_the_place_of_a_closed_stream():
    program = (
        'import os, sys, tempfile; from simclr_cifar import streams; streams.outlast()\n'
        'with tempfile.TemporaryFile() as file: sys.exit(file.fileno())'
    )
    assert shell('<&- >&- 2>&-', '-c', program).returncode > 2


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything():
    program = (
        'from simclr_cifar import streams; streams.outlast()\nfor n in range(40_000): print(n)\nprint(streams.lost())'
    )
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with subprocess.Popen(
        [sys.executable, '-c', program], stdout=writing, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        os.close(writing)
        time.sleep(1)  # Until it is full.
        with open(reading) as pipe:
            lines = pipe.read().splitlines()
        assert (process.wait(), process.stderr.read()) == (0, b'')
    assert lines == [*map(str, range(40_000)), 'None']


def test_a_name_that_the_encoding_lacks_is_printed_with_escapes():
    program = "from simclr_cifar import streams; streams.outlast(); print('caf\\u00e9 \\udcff'); print('→')"
    environment = ENVIRONMENT | {'PYTHONIOENCODING': 'ascii'}
    result = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, check=False)
    assert (result.stdout, result.stderr) == (b'caf\\xe9 \\udcff\n\\u2192\n', b'')


def test_streams_that_are_not_the_process_s_own_stay(capsys):
    from simclr_cifar import streams

    before = sys.stdout, sys.stderr
    streams.outlast()
    assert (sys.stdout, sys.stderr) == before
    assert streams.lost() is None


def on_a_terminal(run, first='pass'):
    """Starts a run on a terminal of its own; returns the process and the descriptor that holds the terminal."""
    holding, terminal = pty.openpty()
    own = 'import fcntl, runpy, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)'
    module = "runpy.run_module('simclr_cifar.main', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, '-c', f'{own}; {first}; {module}', *SMALL, f'--workdir={run}'],
        cwd=ROOT,
        env=ENVIRONMENT,
        **dict.fromkeys(('stdin', 'stdout', 'stderr'), terminal),
        start_new_session=True,
    )
    os.close(terminal)
    return process, holding


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_run_whose_terminal_is_gone_saves_and_leaves(whole, tmp_path):
    run = tmp_path / 'run'
    process, holding = on_a_terminal(run)
    with process:
        wait_for(run / 'config.json', process)
        os.close(holding)
        assert process.wait(120) == 0
    assert not (run / 'metrics.json').exists()
    result = shell('', '-m', 'simclr_cifar.main', *SMALL, f'--workdir={run}')
    assert (result.returncode, result.stderr) == (0, '')
    assert_same(run, whole)


def test_a_run_that_ignores_the_loss_of_its_terminal_goes_on(whole, tmp_path):
    run = tmp_path / 'run'
    process, holding = on_a_terminal(run, 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)')
    with process:
        wait_for(run / 'config.json', process)
        os.close(holding)
        assert process.wait(120) == 0
    assert_same(run, whole)
