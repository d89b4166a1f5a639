"""Programs with sub-commands or few flags: bad input is answered in one line, with exit status 2."""

import argparse
import os
import re
import sys
from collections.abc import Callable

from simclr_cifar import streams
from simclr_cifar.config import InputError

BAD_INPUT = 2
_FAILED = 1


class NotLocal(ValueError, argparse.ArgumentTypeError):
    """A path that is not of this machine's file system."""


def local_path(path: str) -> str:
    """Returns a path of a flag with a leading '~' expanded, as a shell leaves it alone after '='.

    Raises:
      NotLocal: it is an address, as gs://bucket/folder.
    """
    if re.match('[a-zA-Z][a-zA-Z0-9+.-]*://', path):
        raise NotLocal(
            f"'{path}' is an address; give a folder of this machine: mount the bucket (gcsfuse, mount-s3), or copy "
            'before and after, as the files in launch/ do'
        )
    return os.path.expanduser(path)


def fail(message, status: int) -> int:
    """Prints what is wrong in one line on standard error and returns the status."""
    print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """An argument parser that answers in one line and takes no flag by its beginning."""

    def __init__(self, *arguments, **keywords):
        keywords = {'allow_abbrev': False, 'formatter_class': argparse.RawDescriptionHelpFormatter} | keywords
        super().__init__(*arguments, **keywords)

    def error(self, message: str):
        """Ends the process."""
        sys.exit(fail(f'{message}; --help lists the flags', BAD_INPUT))


def answered(command: Callable[..., int], *arguments) -> int:
    """Returns the exit status of a command, which is told in one line where its input is bad.

    The command goes on without standard output and standard error if they cannot be written.
    """
    streams.outlast()
    try:
        return command(*arguments)
    except InputError as error:
        return fail(error, BAD_INPUT)
    except ModuleNotFoundError as error:
        return fail(f'{error.name} is not installed; pip install -r requirements-search.txt', BAD_INPUT)
    except KeyboardInterrupt:
        return fail('stopped; what was finished is kept', 130)


def printed() -> int:
    """Returns the exit status of a command whose result is what it printed: 0 if all of that was written."""
    error = streams.lost()
    if error is None:
        return 0
    if isinstance(error, BrokenPipeError):
        return _FAILED  # Who reads has read enough.
    return fail(f'standard output: cannot be written ({error.strerror}); print to another place', _FAILED)
