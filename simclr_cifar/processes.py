"""The processes that train together, on one host or many. The only module that knows which of them this is.

Process 0 is the leader: it alone reads and writes the files of a run, and what depends on them or on the clock it
decides for all. Every process watches over the others, since one that waits for a lost one waits for ever.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

# JAX has no public way to ask whether its environment is a cluster, nor to the key-value store of its processes.
from jax._src import distributed
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from simclr_cifar.config import InputError, RunFailed
from simclr_cifar.interruption import Interrupted, deferred

_BEAT = 1.0  # seconds from one sign of life to the next
_GLANCE = 0.002  # seconds between looks at who has come
_A_WHILE = 1000  # milliseconds, for which no signal is heard
_EXIT_FAILED = 1
_REMEDY = 'what was finished is kept; the same command, in every process, goes on'

_agreements, _meetings = itertools.count(), itertools.count()


class ProcessLost(RunFailed):
    """Another process is no longer there."""


@contextlib.contextmanager
def together(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Iterator[None]:
    """Joins the other processes, where there are any, for the length of a block; none leaves it before the others.

    To be entered before JAX is asked for devices. What is None is taken from the environment: Slurm, Open MPI, a Cloud
    TPU VM, GKE, a Kubernetes Job or JobSet. What the block raises in one process ends all.

    Args:
      coordinator: HOST:PORT, where process 0 listens.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      timeout: seconds after which a process that is not heard of is taken for lost, and this one ends.

    Raises:
      InputError: arguments that do not belong together, or not all processes came.
      ProcessLost: a transfer between the processes failed.
    """
    _start(coordinator, num_processes, process_id, timeout)
    if distributed.global_state.client is None:
        yield
        return
    leaving = threading.Event()
    threading.Thread(target=_watch, args=(timeout, leaving), daemon=True).start()
    try:
        yield
        with deferred():  # The work is done.
            meet()
            _leave('finished', 60 * _A_WHILE)
    except Interrupted as error:
        if not _leave('interrupted', 5 * _A_WHILE):  # As a rule all are, and leave together.
            _fail(f'told to end by {error}')
        raise
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' in str(error):
            _fail(str(error))
            raise
        line = (
            f'a computation, or a transfer between processes, failed ({str(error).splitlines()[0]}): most likely one '
            f'of them has ended; {_REMEDY}'
        )
        _fail(line)
        if not is_leader():
            _end(line)
        raise ProcessLost(line) from error
    except Exception as error:
        leaving.set()
        _fail(str(error) or type(error).__name__)
        raise
    finally:
        leaving.set()


def _leave(name: str, timeout: int) -> bool:
    """Waits so many milliseconds for all to be here, and parts from them; whether they came."""
    try:
        distributed.global_state.client.wait_at_barrier(name, timeout)
    except jax.errors.JaxRuntimeError:
        return False
    if is_leader():
        time.sleep(_BEAT)  # It goes last: JAX aborts those who find it gone.
    jax.distributed.shutdown()
    return True


def _fail(reason: str) -> None:
    """Tells the other processes, which ends them."""

    def tell():
        key = f'failed/{distributed.global_state.process_id}'
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            distributed.global_state.client.key_value_set(key, ' '.join(reason.split()))

    # A leader that was stopped does not listen, and telling it would take for ever.
    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(5 * _BEAT)
    if is_leader():
        time.sleep(3 * _BEAT)  # What it says is heard as long as it is there.


def _start(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float) -> None:
    given = {'--coordinator': coordinator, '--num_processes': num_processes, '--process_id': process_id}
    missing = [flag for flag, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise InputError(f'{missing[0]}: is missing; give {", ".join(given)} all together, or none')
    if missing and not _cluster_of_several():
        return
    if not missing:
        host, _, port = coordinator.rpartition(':')
        if not host or not port.isdigit():
            raise InputError(f'--coordinator={coordinator}: give HOST:PORT of process 0, as 10.0.0.1:1234')
        if not 0 <= process_id < num_processes:
            raise InputError(f'--process_id={process_id}: of {num_processes} processes it is 0 to {num_processes - 1}')
    # JAX would end a process whose neighbour is lost by abort(), with a stack and without a remedy. Where that is the
    # leader it still does: sleep(SIGABRT), which takes 6 s, puts that off until _watch has said what to do.
    jax.config.update('jax_enable_recoverability', True)
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    # It handles SIGTERM, as does this program.
    jax.config.update('jax_enable_preemption_service', False)
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=int(max(100, 2 * timeout))
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f'--coordinator={coordinator or "(as the environment tells)"}: the processes did not come together '
            f'({str(error).splitlines()[0]}); start all of them, each with its own number, where they reach process 0'
        ) from error


def _cluster_of_several() -> bool:
    for cluster in ClusterEnv._cluster_types:
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return cluster.get_process_count() > 1
    return False


def is_leader() -> bool:
    """Whether this process reads and writes the files of a run."""
    return distributed.global_state.process_id == 0


def agree(value):
    """Returns the leader's value, of JSON's types, in every process; waits for the leader as long as it takes."""
    client = distributed.global_state.client
    if client is None:
        return value
    key = f'agreed/{next(_agreements)}'
    if is_leader():
        client.key_value_set(key, json.dumps(value))
        return value
    while True:
        try:
            return json.loads(client.blocking_key_value_get(key, _A_WHILE))
        except jax.errors.JaxRuntimeError as error:  # Between two calls signals are heard.
            if 'DEADLINE_EXCEEDED' not in str(error):
                raise


def any_of(asked: bool) -> bool:
    """Returns, the same in every process, whether the leader or, until just now, another was asked."""
    client = distributed.global_state.client
    if client is None:
        return asked
    if asked and not is_leader():
        client.key_value_set('asked/stop', '', allow_overwrite=True)
    return agree(asked or bool(client.key_value_dir_get('asked/')))


def everywhere(well: bool) -> bool:
    """Returns whether it is so in every process; all have to ask."""
    meet()
    return bool(np.all(multihost_utils.process_allgather(np.array(well))))


def on_this_host() -> int:
    """Returns how many of the processes are on this one's host; all have to ask."""
    client = distributed.global_state.client
    if client is None:
        return 1
    own, name = socket.gethostname(), f'hosts/{next(_agreements)}/'
    client.key_value_set(f'{name}{distributed.global_state.process_id}', own)
    meet()
    return sum(host == own for _, host in client.key_value_dir_get(name))


def meet() -> None:
    """Waits until all processes are here, as long as it takes: transfers between devices may wait for 30 s only."""
    client = distributed.global_state.client
    if client is None:
        return
    name = f'meeting/{next(_meetings)}/'
    client.key_value_set(f'{name}{distributed.global_state.process_id}', '')
    while is_leader() and len(client.key_value_dir_get(name)) < distributed.global_state.num_processes:
        time.sleep(_GLANCE)
    agree(None)


def from_leader(tree):
    """Returns the leader's arrays in every process, whose own are of the same shapes."""
    meet()
    return multihost_utils.broadcast_one_to_all(tree, is_source=is_leader()) if jax.process_count() > 1 else tree


def _watch(timeout: float, leaving: threading.Event) -> None:
    """Ends the process where another is not heard of for so many seconds, unless it leaves by itself."""
    own, count = distributed.global_state.process_id, distributed.global_state.num_processes
    # The leader watches all others, they the leader, so that what is sent grows with their number, not its square.
    watched = {'leader/0'} if own else {f'other/{number}' for number in range(1, count)}
    beats, heard = {}, dict.fromkeys(watched, time.monotonic())
    # A thread of its own, as a call to a leader that is stopped does not return.
    threading.Thread(target=_listen, args=(beats, heard, leaving), daemon=True).start()
    while not leaving.wait(_BEAT):
        for key, when in list(heard.items()):
            silence = time.monotonic() - when
            ended = (
                key == 'leader/0'
                and silence > 2 * _BEAT
                and _nobody_listens(distributed.global_state.coordinator_address)
            )
            if (ended or silence > timeout) and not leaving.is_set():
                host = beats.get(key, '').partition(' ')[2] or 'an unknown host'
                what = 'has ended' if ended else f'is not heard of for {timeout:g} s'
                _end(f'process {_number(key)} of {count} (on {host}) {what}; {_REMEDY}')


def _listen(beats: dict[str, str], heard: dict[str, float], leaving: threading.Event) -> None:
    """Gives signs of life, notes those of others and when they came, and ends the process where one has failed."""
    client, own = distributed.global_state.client, distributed.global_state.process_id
    while not leaving.wait(_BEAT):
        try:
            client.key_value_set(f'{"other" if own else "leader"}/{own}', f'{time.time()} {socket.gethostname()}', True)
            found = client.key_value_dir_get('leader/' if own else 'other/')
            failures = client.key_value_dir_get('failed/')
        except RuntimeError:  # The leader, who keeps them, is not there.
            continue
        for key, line in failures:
            if key != f'failed/{own}' and not leaving.is_set():
                _end(f'process {_number(key)} failed: {line}')
        for key, value in found:
            if beats.get(key) != value:
                beats[key], heard[key] = value, time.monotonic()


def _nobody_listens(address: str) -> bool:
    """Whether HOST:PORT refuses to be connected with: no process is there, not even one that is stopped."""
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), _BEAT).close()
    except OSError as error:
        return isinstance(error, ConnectionRefusedError)
    return False


def _number(key: str) -> str:
    return key.rpartition('/')[2]


def _end(line: str) -> None:
    """Ends the process at once: its main thread may wait for a process that is lost."""
    print(f'error: {line}', file=sys.stderr, flush=True)
    os._exit(_EXIT_FAILED)
