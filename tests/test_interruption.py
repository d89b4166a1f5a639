import signal
import subprocess
import sys

import pytest

from simclr_cifar import interruption
from simclr_cifar.interruption import Interrupted


@pytest.fixture(autouse=True)
def handled():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    interruption.handle()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._reason = None


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
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
