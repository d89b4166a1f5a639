"""What the rows of `benchmarks.gpu` measure, and the same on any device of JAX.

Libraries are imported where they are used: each contender's process has its own, and only those hold the card.
"""

import functools
import gzip
import json
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
    """A repetition leaves an epoch's trace in the folder and tells what is in it; the arguments are `prepare`'s."""
    import jax

    from benchmarks import step_jax

    config, states, *inputs, run_epoch = step_jax.prepare(**arguments)

    def run():
        warm, _ = jax.block_until_ready(run_epoch(states, *inputs))
        with jax.profiler.trace(folder):
            jax.block_until_ready(run_epoch(warm, *inputs))
        return {'text': _trace_in_words(folder, config.batches_per_epoch)}

    return run


def _trace_in_words(folder: str, steps: int) -> str:
    """Returns how many launches a step has, how long they take, and how long the device waits between them."""
    (path,) = pathlib.Path(folder).glob('plugins/profile/*/*.trace.json.gz')
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    devices = {event['pid'] for event in events if '/device:GPU' in str(event.get('args', {}).get('name'))}
    threads = {
        (event['pid'], event['tid']): event['args']['name'] for event in events if event.get('name') == 'thread_name'
    }
    # A device's other lines repeat its streams' events by module and by operation.
    launches = [
        (event['ts'], event['ts'] + event['dur'])
        for event in events
        if event.get('ph') == 'X' and event['pid'] in devices and 'Stream' in threads[event['pid'], event['tid']]
    ]
    if not launches:
        raise NotMeasured('the trace holds no launches')
    graphs = sum('GraphLaunch' in event.get('name', '') for event in events)
    starts, ends = np.array(sorted(launches)).T
    span, busy = ends.max() - starts.min(), (ends - starts).sum()
    return (
        f'{len(launches) / steps:.1f} launches a step of {busy / len(launches):.2f} µs each (median '
        f'{np.median(ends - starts):.2f}); {span / steps:.1f} µs a step, {100 * busy / span:.0f} % of it in launches; '
        f'{graphs / steps:.2f} replays of a CUDA graph a step'
    )


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


def pytorch_resnet(batch: int, steps: int, compile_mode: str | None = None):
    """A call is so many training steps of ResNet-18 on pairs of views, images as they are: no augmentation."""
    try:
        import torch
    except ImportError:
        raise NotMeasured('no torch') from None
    if not torch.cuda.is_available():
        raise NotMeasured('torch without CUDA')
    torch.set_float32_matmul_precision('high')
    torch.backends.cudnn.benchmark = True
    from benchmarks import convolutions_torch

    return _repeated(convolutions_torch.training_steps(batch, steps, compile_mode), torch.cuda.max_memory_allocated)


def recipe(name: str, num_seeds: int, **fields):
    """A repetition trains a recipe's seeds together and tells the training time and their test images' kNN accuracy.

    Args:
      name: of a file in configs/.
      num_seeds: from the recipe's on.
      fields: of the config, where they are not to be the recipe's.
    """
    import jax

    from benchmarks import step_jax
    from simclr_cifar import data, evaluate, metrics, neighbours, parallel, step

    config, states, *inputs, run_epoch = step_jax.prepare(10, recipe=name, num_seeds=num_seeds, **fields)
    run_epoch = run_epoch.lower(states, *inputs).compile()
    mesh, splits = parallel.make_mesh(config.groups_per_batch), data.load_splits(config)

    def run():
        nonlocal states
        started = time.perf_counter()
        for _ in range(config.num_epochs):
            states, history = run_epoch(states, *inputs)
        history = jax.block_until_ready(history)
        seconds = time.perf_counter() - started
        encode, scores = step.compile_encode(config, mesh), []
        for number in range(num_seeds):
            state = jax.tree.map(lambda leaf, number=number: np.array(leaf[number]), states)
            embed = evaluate._embedder(config, mesh, splits, encode, state.average or state.variables)
            _, nearest = neighbours.top_k(embed('test'), embed('train'), metrics.KNN_K)
            votes = metrics.knn_vote(splits['train'].labels[nearest], 10)
            scores.append(float(np.mean(votes == splits['test'].labels)))
        spread = f'{np.median(scores):.4f} ({min(scores):.4f}-{max(scores):.4f})'
        loss = float(history['loss'][:, -1].mean())
        return {
            'text': f'{seconds:.2f} s of training, {seconds / num_seeds:.2f} a seed; kNN accuracy {spread}, '
            f'mean {np.mean(scores):.4f}, n = {num_seeds}; last loss {loss:.4f}',
            'peak_bytes': _peak_bytes(),
        }

    return run
