"""The main program in processes of its own, for the tests that start, stop and compare it."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent


def _start(number, of, port, flags, devices, first, quiet):
    where = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={of}', f'--process_id={number}'] if of > 1 else []
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'}
    environment['JAX_NUM_CPU_DEVICES'] = str(devices)
    module = "runpy.run_module('simclr_cifar.main', run_name='__main__', alter_sys=True)"
    program = ['-c', f'import runpy; {first}; {module}'] if first else ['-m', 'simclr_cifar.main']
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *program, *map(str, flags), *where],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=output,
        text=True,
    )


@contextlib.contextmanager
def started(count, *flags, devices=1, first='', quiet=False):
    """Starts so many processes of one run; kills what is left of them at the end.

    Args:
      count: of the processes.
      flags: of each.
      devices: simulated ones of each.
      first: Python code for each to run before the program.
      quiet: whether what they print is thrown away rather than kept.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    group = [_start(number, count, port, flags, devices, first, quiet) for number in range(count)]
    try:
        yield group
    finally:
        for process in group:
            process.kill()
            process.communicate()


def finish(group):
    """Returns the (status, standard output, standard error) of each, once all have ended."""
    ended = []
    for process in group:
        output, errors = process.communicate(timeout=240)
        ended.append((process.returncode, output, errors))
    return ended


def wait_for_epoch(run, epoch):
    deadline = time.monotonic() + 120
    while not (run / 'checkpoints' / str(epoch)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def errors_of(text):
    return [line for line in text.splitlines() if line.startswith('error: ')]


def losses(run):
    return [float(line.split(',')[2]) for line in (run / 'history.csv').read_text().splitlines()[1:]]


def weights(run):
    with np.load(run / 'weights.npz') as packed:
        return dict(packed)
