"""What signals do: the work ends in order, and by a second SIGTERM or SIGINT at once."""

import contextlib
import os
import signal
from collections.abc import Iterator

_REQUESTS = (signal.SIGTERM, signal.SIGINT)
# A connection that was lost, and what clusters send before their SIGTERM. Such a signal often comes more than once, as
# SIGHUP does from the shell and from the kernel, so only a request that is repeated is impatience.
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_deferring = False
_reason = None
_requests = 0


class Interrupted(BaseException):
    """The process was asked to end; what was finished is kept."""


def handle() -> None:
    """Makes a first signal raise `Interrupted` in the main thread, and a second request end the process at once.

    A warning that the process was started to ignore, as by nohup, stays ignored.
    """
    global _deferring, _reason, _requests
    _deferring, _reason, _requests = False, None, 0
    for number in _REQUESTS:
        signal.signal(number, _asked)
    for number in _WARNINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _asked)


def _asked(number: int, frame) -> None:
    global _reason, _requests
    if number in _REQUESTS:
        _requests += 1
        if _requests > 1:
            os._exit(128 + number)  # The default would be to ignore it, where the process is a container's first.
    if _reason:
        return
    _reason = signal.Signals(number).name
    if not _deferring:
        raise Interrupted(_reason)
    # Not by print, which the signal may have come in the midst of. Who reads may be gone.
    with contextlib.suppress(OSError):
        os.write(1, b'Stopping when what is under way is saved; a second SIGTERM or Ctrl-C stops at once\n')


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
