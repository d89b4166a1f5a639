"""What SIGTERM and SIGINT do: end in order, and by a second one at once."""

import contextlib
import os
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_deferring = False
_reason = None


class Interrupted(BaseException):
    """The process was asked to end; what was finished is kept."""


def handle() -> None:
    """Makes a first signal raise `Interrupted` in the main thread, and a second one end the process at once."""
    global _deferring, _reason
    _deferring, _reason = False, None
    for number in _SIGNALS:
        signal.signal(number, _asked)


def _asked(number: int, frame) -> None:
    global _reason
    for each in _SIGNALS:
        signal.signal(each, _asked_again)
    _reason = signal.Signals(number).name
    if not _deferring:
        raise Interrupted(_reason)
    # Not by print, which the signal may have come in the midst of.
    os.write(1, b'Stopping when what is under way is saved; another signal stops at once\n')


def _asked_again(number: int, frame) -> None:
    os._exit(128 + number)  # The default would be to ignore it, where the process is a container's first.


def requested() -> str | None:
    """Returns the signal that came, if one did."""
    return _reason


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within the block a first signal is only noted: who defers it looks for it with `requested`."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before
