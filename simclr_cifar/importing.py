"""Libraries that are imported when they are needed: an import that fails is told as what it is, in one line."""

import importlib
import textwrap
import traceback
import types

from simclr_cifar.config import InputError

_LONGEST = 200  # characters of another library's words


def module(name: str, what: str) -> types.ModuleType:
    """Returns a module, imported if it was not.

    Args:
      name: the module's, with those of its packages.
      what: the flag with its value, or the folder, that needs it.

    Raises:
      InputError: the import fails, for whatever reason.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # A library that checks versions raises errors of its own.
        raise failure(error, what) or _told(name, error, what) from error


def failure(error: BaseException | None, what: str) -> InputError | None:
    """Returns the error to raise if another one came from an import, however deep; None: it came from something else.

    Args:
      error: any that was caught.
      what: as of `module`.
    """
    while error is not None:
        # An error of a module's own code has passed the frame that ran this code, of whatever kind the error is.
        running = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == '<module>']
        if running:
            return _told(running[-1].f_globals.get('__name__', 'a module'), error, what)
        if isinstance(error, ImportError):
            return _told(error.name or 'a module', error, what)
        error = error.__cause__ or error.__context__
    return None


def _told(name: str, error: BaseException, what: str) -> InputError:
    reason = textwrap.shorten(str(error), _LONGEST, placeholder='...') or type(error).__name__
    return InputError(
        f'{what}: {name} cannot be imported ({reason}), so nothing was read and the data is not to blame; run pip '
        'install --upgrade -r requirements.txt, in a new environment if another package forbids these versions'
    )
