"""Standard output and standard error of a program that goes on without them: a reader may leave, a disk may be full."""

import contextlib
import io
import os
import select
import sys

_STREAMS = {'stdout': 1, 'stderr': 2}


class _Descriptor(io.FileIO):
    """A file descriptor that takes everything and drops what cannot be written; `lost` is the first reason."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, 'w', closefd=False)
        self.lost = None

    def write(self, content) -> int:
        try:
            # A pipe may be set not to block, by another program that shares it; None says that it is full.
            while (written := super().write(content)) is None:
                select.select([], [self], [])
            return written
        except OSError as error:
            self.lost = self.lost or error
            return len(content)


def outlast() -> None:
    """Makes what is printed from now on, by whatever library, never raise; what cannot be written is dropped.

    It is one place for all writers. The errors are a reader that has left (EPIPE), a full disk (ENOSPC), a terminal
    that is gone (EIO), a stream that was closed before the program started, and letters that the encoding lacks.
    Streams that are not the process's own, as a notebook's, stay.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # The next file that is opened would get this number, and what libraries print with it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor in _STREAMS.items():
        stream = getattr(sys, name)
        with contextlib.suppress(OSError):
            if stream is None:  # It was closed.
                setattr(sys, name, _writer(descriptor, 'utf-8', 'backslashreplace', True))
            elif isinstance(stream, io.TextIOWrapper) and stream.fileno() == descriptor and not _outlasts(stream):
                with contextlib.suppress(OSError):
                    stream.flush()
                errors = 'backslashreplace' if stream.errors == 'strict' else stream.errors
                by_line = stream.line_buffering or stream.write_through
                setattr(sys, name, _writer(descriptor, stream.encoding, errors, by_line))


def lost() -> OSError | None:
    """Returns why something that was printed on standard output is lost; None: nothing is."""
    if not _outlasts(sys.stdout):
        return None
    sys.stdout.flush()
    return sys.stdout.buffer.raw.lost


def _writer(descriptor: int, encoding: str, errors: str, by_line: bool) -> io.TextIOWrapper:
    buffer = io.BufferedWriter(_Descriptor(descriptor))
    return io.TextIOWrapper(buffer, encoding, errors, line_buffering=by_line)


def _outlasts(stream) -> bool:
    return isinstance(getattr(getattr(stream, 'buffer', None), 'raw', None), _Descriptor)
