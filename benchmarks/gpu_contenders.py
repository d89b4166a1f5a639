"""What the rows of `benchmarks.gpu` measure, and the same on any device of JAX.

Libraries are imported where they are used: each contender's process has its own, and only those hold the card.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

DIMENSIONS, NEIGHBOURS = 128, 10  # of a search
QUEUED = 16  # products or copies in flight, so that the card never waits for the host
_REPETITION_SECONDS = 0.5
_ROOT = pathlib.Path(__file__).parents[1]


class NotMeasured(Exception):
    """The machine lacks what a contender needs."""


def _repeated(call: Callable[[], None], peak_bytes: Callable[[], int | None] | None = None):
    """Returns a contender's run: its repetitions are as many calls as fill _REPETITION_SECONDS, its first one two.

    Args:
      call: ends when the device is done.
      peak_bytes: gives the peak of device memory so far; None: JAX's.
    """
    calls = 0

    def run():
        nonlocal calls
        if calls:
            for _ in range(calls):
                call()
            return None
        times = [time.perf_counter()]
        for _ in range(2):
            call()
            times.append(time.perf_counter())
        calls = max(1, round(_REPETITION_SECONDS / (times[2] - times[1])))
        return {'calls': calls, 'first_seconds': times[1] - times[0], 'peak_bytes': (peak_bytes or _peak_bytes)()}

    return run


def _peak_bytes() -> int | None:
    import jax

    # A CPU does not count.
    return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def _queued(function: Callable, *arrays):
    import jax

    def call():
        for _ in range(QUEUED):
            result = function(*arrays)
        # The last is done last; the others' memory is free for the next at once.
        jax.block_until_ready(result)

    return _repeated(call)


def device():
    """A repetition returns JAX's platform and kind of device."""
    import jax

    return lambda: {'platform': jax.devices()[0].platform, 'kind': jax.devices()[0].device_kind}


def matmul(size: int, dtype: str, precision: str):
    """A call is QUEUED products of matrices of size x size."""
    import jax
    import jax.numpy as jnp

    left, right = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    return _queued(jax.jit(functools.partial(jnp.matmul, precision=precision)), left, right)


def copy(size: int):
    """A call is QUEUED copies of so many bytes."""
    import jax
    import jax.numpy as jnp

    return _queued(jax.jit(jnp.copy), jnp.ones(size // 4, jnp.float32))


def epochs(count: int, **arguments):
    """A call is so many epochs, one after the other; the arguments are `step_jax.prepare`'s."""
    import jax

    from benchmarks import step_jax

    _, states, seeds, images, index, run_epoch = step_jax.prepare(**arguments)

    def call():
        nonlocal states
        for _ in range(count):
            states, metrics = run_epoch(states, seeds, images, index)
        jax.block_until_ready((states, metrics))

    return _repeated(call)


def search(queries: int, gallery: int):
    """A call searches for items of the gallery, a multiple of 100, itself; it raises where they are not found."""
    import jax

    from simclr_cifar import neighbours

    def unit_vectors(key):
        vectors = jax.random.normal(key, (gallery // 100, DIMENSIONS))
        return vectors / jax.numpy.linalg.norm(vectors, axis=1, keepdims=True)

    # In pieces, whose temporaries do not show in the peak of memory.
    make = jax.jit(lambda keys: jax.lax.map(unit_vectors, keys).reshape(-1, DIMENSIONS))
    items = make(jax.random.split(jax.random.key(0), 100))
    sought = np.asarray(items[:queries])

    def call():
        _, indices = neighbours.top_k(sought, items, NEIGHBOURS)
        if not np.array_equal(indices[:, 0], np.arange(queries)):
            raise ValueError('an item is not its own nearest')

    return _repeated(call)


def evaluation(**arguments):
    """A call evaluates the test split; the arguments are `step_jax.prepare`'s."""
    import jax

    from benchmarks import step_jax
    from simclr_cifar import data, evaluate, parallel

    config, *inputs, run_epoch = step_jax.prepare(**arguments)
    states, _ = run_epoch(*inputs)
    state = jax.tree.map(lambda leaf: np.array(leaf[0]), states)
    run = evaluate.make_evaluate(config, parallel.make_mesh(config.groups_per_batch), data.load_splits(config))
    return _repeated(lambda: run(state, ['test']))


def compilation(cache: str, **arguments):
    """A repetition compiles an epoch; the arguments are `step_jax.prepare`'s, cache the persistent cache's folder."""
    import jax

    from benchmarks import step_jax

    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    _, *inputs, run_epoch = step_jax.prepare(**arguments)

    def run():
        run_epoch.lower(*inputs).compile()
        return {}

    return run


def trace(folder: str, **arguments):
    """A repetition leaves an epoch's trace in the folder; the arguments are `step_jax.prepare`'s."""
    import jax

    from benchmarks import step_jax

    _, states, *inputs, run_epoch = step_jax.prepare(**arguments)

    def run():
        warm, _ = jax.block_until_ready(run_epoch(states, *inputs))
        with jax.profiler.trace(folder):
            jax.block_until_ready(run_epoch(warm, *inputs))
        return {'text': folder}

    return run


def study(flags: tuple[str, ...], cache: str):
    """A repetition is the study as a command, in a folder of its own; cache is the compilation cache's."""
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    environment.pop('XLA_PYTHON_CLIENT_PREALLOCATE', None)  # As its user's.

    def command(*arguments):
        line = [sys.executable, '-m', 'simclr_cifar.main', *arguments]
        done = subprocess.run(line, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().rpartition('\n')[2])

    command('--mode=prepare', '--config=configs/c10.py')

    def run():
        with tempfile.TemporaryDirectory() as folder:
            command('--mode=study', '--config=configs/study.py', f'--workdir={folder}/study', *flags)
        return {}

    return run


def pytorch(device: str, **arguments):
    """A call is an epoch; the arguments are `step_torch.epoch`'s."""
    try:
        import torch
    except ImportError:
        raise NotMeasured('no torch') from None
    if device == 'cuda' and not torch.cuda.is_available():
        raise NotMeasured('torch without CUDA')
    torch.set_float32_matmul_precision('high')
    from benchmarks import step_torch

    peak_bytes = torch.cuda.max_memory_allocated if device == 'cuda' else lambda: None
    return _repeated(step_torch.epoch(**arguments), peak_bytes)
