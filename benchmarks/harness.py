"""Contenders in processes of their own, timed turn by turn."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable, Sequence

REPEATS = 5
# OpenMP threads spin for a while after their work, at the cost of whoever comes next.
_PAUSE_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
      title: what tables call it.
      function: 'module:function'. Called with the arguments it sets up and returns run(), which does one repetition to
        completion and returns figures (name to number or array) or None.
      arguments: the function's keyword arguments, picklable.
      may_fail: its failure is told in its row; that of others ends the benchmark.
    """

    title: str
    function: str
    arguments: dict = dataclasses.field(default_factory=dict)
    may_fail: bool = False


_PRODUCTS = {'size': 2048, 'products': 10}
# What the machine's limit is measured by.
PRODUCTS = Contender('products', 'benchmarks.step_jax:matmul', _PRODUCTS)


@dataclasses.dataclass
class Measurement:
    """What was measured of a contender.

    Attributes:
      title: the contender's.
      first_seconds: of the first repetition, which compiles what is compiled when it is first called.
      seconds: of the later repetitions.
      peak_bytes: the process's highest resident memory.
      figures: what the first repetition returned.
      failure: why there are no figures; '' where there are.
    """

    title: str
    first_seconds: float = float('nan')
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    figures: dict | None = None
    failure: str = ''

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def operations_per_second(products: Measurement) -> float:
    """Returns the rate, multiplications and additions a second, that PRODUCTS was measured at."""
    return _PRODUCTS['products'] * 2 * _PRODUCTS['size'] ** 3 / products.median


class ContenderFailed(Exception):
    """A contender's process raised or died."""


class _Process:
    """A contender set up in a process of its own: thread pools and devices are not shared."""

    def __init__(self, contender: Contender):
        context = multiprocessing.get_context('spawn')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender.function, contender.arguments))
        self._process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()

    def wait_for_setup(self) -> None:
        self._receive()

    def run(self):
        """Returns (seconds, peak_bytes, figures of the first repetition, then None)."""
        self._connection.send(None)
        return self._receive()

    def _receive(self):
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join(timeout=10)
            raise ContenderFailed(f'its process ended with exit status {self._process.exitcode}') from None
        if isinstance(answer, str):
            raise ContenderFailed(answer)
        return answer


def _serve(connection, function: str, arguments: dict) -> None:
    try:
        run = _resolve(function)(**arguments)
        connection.send(())
        first = True
        while True:
            connection.recv()
            started = time.perf_counter()
            figures = run()
            seconds = time.perf_counter() - started
            connection.send((seconds, peak_bytes(), figures if first else None))
            first = False
    except (EOFError, KeyboardInterrupt):  # Nothing more is wanted.
        return
    except Exception as error:
        traceback.print_exc()
        message = str(error).strip().partition('\n')[0]
        connection.send(f'{type(error).__name__}: {message}')


def _resolve(function: str) -> Callable:
    module, _, name = function.partition(':')
    return getattr(importlib.import_module(module), name)


def peak_bytes() -> int:
    """Returns the highest resident memory of this process."""
    # getrusage's peak begins with that of the process that started this one.
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(status.partition('VmHWM:')[2].split()[0])


def alternate(contenders: Sequence[Contender], repeats: int = REPEATS) -> list[Measurement]:
    """Returns the contenders' measurements: a first repetition each, then turn by turn, A B C A B C.

    Raises:
      ContenderFailed: one that may not.
    """
    measurements = [Measurement(contender.title) for contender in contenders]
    with contextlib.ExitStack() as stack:
        turns = []
        for contender, measurement in zip(contenders, measurements, strict=True):
            process = stack.enter_context(_Process(contender))
            turns.append((contender, process, measurement))
            with _noting_failure(contender, measurement):
                process.wait_for_setup()
        for repeat in range(repeats + 1):
            for contender, process, measurement in turns:
                if measurement.failure:
                    continue
                time.sleep(_PAUSE_SECONDS)
                with _noting_failure(contender, measurement):
                    seconds, measurement.peak_bytes, figures = process.run()
                    if repeat:
                        measurement.seconds.append(seconds)
                    else:
                        measurement.first_seconds, measurement.figures = seconds, figures
    return measurements


@contextlib.contextmanager
def _noting_failure(contender: Contender, measurement: Measurement):
    try:
        yield
    except ContenderFailed as error:
        if not contender.may_fail:
            raise ContenderFailed(f'{contender.title}: {error}') from None
        measurement.failure = str(error)


def once(contender: Contender) -> dict:
    """Returns the figures of one repetition.

    Raises:
      ContenderFailed: it failed.
    """
    (measurement,) = alternate([dataclasses.replace(contender, may_fail=False)], repeats=0)
    return measurement.figures


def paired_ratios(ours: Measurement, peer: Measurement) -> list[float]:
    """Returns our time over the peer's, turn by turn, so that what slowed both down cancels."""
    return [mine / theirs for mine, theirs in zip(ours.seconds, peer.seconds, strict=True)]
