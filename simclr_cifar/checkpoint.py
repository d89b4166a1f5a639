"""Checkpoints of the training state. The only module that knows Orbax."""

import contextlib
import ctypes
import hashlib
import json
import logging
import pathlib
import re
import shutil
from collections.abc import Sequence

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.experimental.v1._src.saving import execution

from simclr_cifar import file_systems, interruption, stored
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder, numbered, write_arrays
from simclr_cifar.step import TrainState

# Of several processes one alone reads and writes checkpoints; Orbax would have all of them come along.
_ALONE = ocp.Context()
_ALONE.multiprocessing.active_processes = {0}
# Which it heeds everywhere but where it compares all processes' paths.
execution._check_directory_consistency = lambda directory: None


# What a killed process was writing or deleting, by the names that Orbax and `Saver.wait` give it.
_UNFINISHED = re.compile(r'\d+(-deleted|\.orbax-checkpoint-tmp.*)')


class CheckpointDamaged(InputError):
    """A checkpoint cannot be read back as it was written."""


def saved_epochs(directory: pathlib.Path) -> list[int]:
    """Returns the epochs with a checkpoint, ascending."""
    return numbered(directory)


def restore(directory: pathlib.Path, epoch: int, like: TrainState) -> TrainState:
    """Returns the state of an epoch, in host memory, whatever devices it was saved from.

    Args:
      directory: the run's checkpoints.
      epoch: one of `saved_epochs`.
      like: a state of the same config.

    Raises:
      CheckpointDamaged: the checkpoint is incomplete or its content has changed.
      InputError: the checkpoint is of another architecture.
    """
    path = directory / str(epoch)
    logging.disable()  # What Orbax logs of a damaged checkpoint is said below in one line.
    with interruption.deferred():  # Which Orbax would take for damage.
        try:
            with file_systems.plain(directory) as plain, _ALONE:
                _read_through(plain / str(epoch))
                saved = ocp.load(plain / str(epoch))
                # Orbax checks that files are whole, not that their bytes are those written.
                intact = ocp.metadata(plain / str(epoch)).custom_metadata['digest'] == digest(saved)
        except Exception:  # Orbax has errors of many kinds for what is missing, cut off or changed.
            intact = False
        finally:
            logging.disable(logging.NOTSET)
    if interruption.requested():
        raise interruption.Interrupted(interruption.requested())
    if not intact:
        raise CheckpointDamaged(f'{path}: the checkpoint is damaged; use another epoch')
    saved = stored.renamed(saved)
    _require_same_shapes(path, saved, flax.serialization.to_state_dict(like))
    return flax.serialization.from_state_dict(like, saved)


def restore_latest(directories: Sequence[pathlib.Path], likes: Sequence[TrainState]) -> tuple[int, list[TrainState]]:
    """Returns the newest epoch that is intact in every directory, and its states; (0, likes) before the first is saved.

    Damaged checkpoints on the way, and those that others lack, are reported and moved to a folder beside, so that their
    epochs can be saved again. Nothing is moved where none is intact.

    Args:
      directories: of runs that are trained together.
      likes: a state of each run's config.

    Raises:
      InputError: a checkpoint of another architecture; or none of those that there are can be read.
    """
    common = set.intersection(*(set(saved_epochs(directory)) for directory in directories))
    epoch, states, damaged = 0, list(likes), []
    for candidate in sorted(common, reverse=True):
        restored = []
        for directory, like in zip(directories, likes, strict=True):
            try:
                restored.append(restore(directory, candidate, like))
            except CheckpointDamaged as error:
                damaged.append((directory, candidate, error))
        if len(restored) == len(directories):
            epoch, states = candidate, restored
            break
    if damaged and not epoch:
        raise InputError(
            f'{damaged[0][0]}: none of its checkpoints can be read; restore them from a copy, or choose another '
            'folder to train anew'
        )
    for directory, number, error in damaged:
        aside = _move_aside(directory, number, 'damaged')
        print(f'{error}. Moved to {aside}; going on from the one before.', flush=True)
    for directory in directories:
        for ahead in (number for number in saved_epochs(directory) if number > epoch):
            aside = _move_aside(directory, ahead, 'ahead')
            print(f'{directory / str(ahead)}: the runs beside it have none. Moved to {aside}.', flush=True)
    return epoch, states


def save_weights(run: RunFolder, epoch: int, state: TrainState) -> None:
    """Writes weights.npz: what an encoder is used with, and nothing that only training needs.

    It holds the model's variables, averaged where averages are kept, by their path, as 'params/head/Dense_0/kernel',
    and 'epoch', the one that they are of.
    """
    flat = flax.traverse_util.flatten_dict(state.average or state.variables, sep='/')
    write_arrays(run.weights, {'epoch': np.int32(epoch)} | {name: np.asarray(leaf) for name, leaf in flat.items()})


def read_weights(run: RunFolder, like: TrainState) -> TrainState:
    """Returns the variables that `save_weights` wrote, in a state that can be evaluated, not trained.

    Args:
      run: with weights.npz.
      like: a state of the same config.

    Raises:
      InputError: weights.npz is missing, unreadable or of another architecture.
    """
    arrays = run.read_weights()
    del arrays['epoch']
    variables = stored.renamed(flax.traverse_util.unflatten_dict(arrays, sep='/'))
    _require_same_shapes(run.weights, variables, like.variables)
    return like.replace(variables=variables, average={})


def evaluated_epoch(run: RunFolder, epoch: int | None, flag: str = '--checkpoint') -> int:
    """Returns the epoch that a run is evaluated at: the one asked for, or the one of its final figures, or the last.

    Args:
      run: with checkpoints, or with weights.npz alone.
      epoch: None: which the run chose.
      flag: which it was given by.

    Raises:
      InputError: there is nothing, or not of that epoch.
    """
    epochs = saved_epochs(run.checkpoints)
    if not epochs and run.weights.exists():
        epochs = [int(run.read_weights()['epoch'])]
    if not epochs:
        raise InputError(f'{run.flag}={run.path}: holds no checkpoint yet; train first')
    final = run.read_json(run.metrics) if run.metrics.exists() else {}
    chosen = final.get('epoch', epochs[-1]) if epoch is None else epoch
    if chosen not in epochs:
        there = ', '.join(map(str, epochs))
        raise InputError(f'{flag}={chosen}: no checkpoint of that epoch; there are {there}')
    return chosen


def read_evaluated(run: RunFolder, epoch: int, like: TrainState) -> TrainState:
    """Returns the state of an epoch that `evaluated_epoch` returned: from its checkpoint, or from weights.npz alone.

    Raises:
      InputError: as `restore` and `read_weights`.
    """
    return restore(run.checkpoints, epoch, like) if saved_epochs(run.checkpoints) else read_weights(run, like)


def _require_same_shapes(path: pathlib.Path, found: dict, expected: dict) -> None:
    found, expected = _shapes(found), _shapes(expected)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f'{path}: of another architecture ({name} is {found.get(name, "absent")}, the config '
                f'makes it {expected.get(name, "absent")}); use the config that it was trained with'
            )


def _move_aside(directory: pathlib.Path, epoch: int, why: str) -> pathlib.Path:
    aside = directory.with_name(f'checkpoints-{why}') / str(epoch)
    while aside.exists():
        aside = aside.with_name(f'{aside.name}-again')
    aside.parent.mkdir(exist_ok=True)
    (directory / str(epoch)).rename(aside)
    return aside


class Saver:
    """Saves states in the background; keeps the newest few and every milestone.

    Args:
      directory: the run's checkpoints; made where missing.
      keep: how many of the newest to keep.
      milestones: epochs never to delete.
    """

    def __init__(self, directory: pathlib.Path, keep: int, milestones: list[int]):
        self.directory, self._stack = directory.absolute(), contextlib.ExitStack()
        self._keep, self._milestones = keep, milestones
        self._saving = None
        directory.mkdir(parents=True, exist_ok=True)
        if file_systems.without_locks(directory):
            # Orbax locks what it writes, even a folder that is its own; a file can stand for the lock.
            for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
                context['file_io_locking'] = {'mode': 'lockfile'}
        for path in directory.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        self._plain = self._stack.enter_context(file_systems.plain(directory))

    def save(self, epoch: int, state: TrainState) -> None:
        """Copies the state to the host and writes it in the background, after the one before is written."""
        self.wait()
        # Host arrays: the checkpoint knows nothing of devices, and training may go on and overwrite the state.
        tree = jax.tree.map(np.array, flax.serialization.to_state_dict(state))
        file_systems.require_space(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        with _ALONE:
            self._saving = ocp.save_async(
                self._plain / str(epoch), tree, overwrite=True, custom_metadata={'digest': digest(tree)}
            )

    def wait(self) -> None:
        """Returns once what was saved is on disk and what is no longer kept is not; raises what kept it from there."""
        if self._saving is None:
            return
        try:
            self._saving.result()
        except Exception:
            self._saving = None
            raise
        self._saving = None
        _return_memory()
        for epoch in set(saved_epochs(self.directory)[: -self._keep]) - set(self._milestones):
            # Renamed first, as half a checkpoint under its own name would be taken for a damaged one.
            deleted = (self.directory / str(epoch)).rename(self.directory / f'{epoch}-deleted')
            shutil.rmtree(deleted, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with self._stack:
            self.wait()


def _return_memory() -> None:
    """Gives back what is free: a save scatters tens of kB over its threads' heaps, where glibc would keep them."""
    with contextlib.suppress(AttributeError):  # Where there is another C library.
        ctypes.CDLL(None).malloc_trim(0)


def _read_through(path: pathlib.Path) -> None:
    """Raises where a part cannot be read: Orbax would read all at once and leave a traceback for each that fails."""
    for name in ('_CHECKPOINT_METADATA', 'state/_METADATA'):
        json.loads((path / name).read_text())
    # A path, not an address: in 'file://...' some characters of a path stand for something else.
    base = {'driver': 'file', 'path': f'{path.absolute()}/state/'}
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': base}).result()
    keys = store.list().result()
    if not keys:
        raise FileNotFoundError(path)
    for key in keys:
        if not store.read(key).result().value:  # What an absent file held reads as nothing.
            raise FileNotFoundError(key)


def _shapes(tree: dict) -> dict[str, str]:
    flat = flax.traverse_util.flatten_dict(tree, sep='/')
    return {name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}' for name, leaf in flat.items()}


def weights_digest(state: TrainState) -> str:
    """Returns the digest of what an evaluation measures of a state: its weights, averaged where averages are kept."""
    return digest(jax.tree.map(np.asarray, state.average or state.variables))


def digest(tree: dict) -> str:
    """Returns a SHA-256 of a tree of arrays: their names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, leaf in sorted(flax.traverse_util.flatten_dict(tree, sep='/').items()):
        sha.update(f'{name} {leaf.dtype} {leaf.shape}'.encode())
        sha.update(np.ascontiguousarray(leaf).tobytes())
    return sha.hexdigest()
