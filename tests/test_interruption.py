import signal

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


def test_after_the_first_signal_the_next_is_not_handled():
    with interruption.deferred():
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
