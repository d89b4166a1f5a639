"""Whether a machine, or the machines of a cluster, are fit for a config: a line for each thing that can be wrong."""

import importlib.metadata
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from packaging.requirements import Requirement

from simclr_cifar import beginning, data, models, parallel, processes, sampling, step
from simclr_cifar.config import InputError
from simclr_cifar.feed import Feed, is_resident
from simclr_cifar.file_systems import without_locks

_REQUIREMENTS = pathlib.Path(__file__).parent.parent / 'requirements.txt'
_GIB = 2**30
_IMAGES = 64  # encoded in either precision


def examine(
    config: ml_collections.ConfigDict, data_dir: str | None, cache_dir: str | None, workdir: pathlib.Path
) -> bool:
    """Prints what is found, 'ok' or 'no' and what to do, and returns whether all is well, in every process.

    Of several processes the leader prints all of its own, the others what is wrong.

    Args:
      config: validated.
      data_dir, cache_dir: as `data.load`.
      workdir: where the run's folder would be.
    """
    well, splits = True, {}

    def check(name: str, function: Callable[[], str]) -> None:
        nonlocal well
        try:
            mark, found = 'ok', function()
        except InputError as error:
            mark, found, well = 'no', ' '.join(str(error).split()), False
        except Exception as error:  # Of a driver or a compiler that is broken there are many kinds.
            mark, found, well = 'no', f'{type(error).__name__}: {" ".join(str(error).split())[:500]}', False
        if processes.is_leader():
            print(f'{mark}  {name:10} {found}', flush=True)
        elif mark == 'no':
            print(f'{mark}  {name:10} (on {platform.node()}) {found}', flush=True)

    check('versions', _versions)
    check('devices', _devices)
    check('data', lambda: _data(config, data_dir, cache_dir, splits))
    if splits:
        check('config', lambda: _config(config, splits['train']))
    check('workdir', lambda: _workdir(workdir))
    if processes.everywhere(well):
        check('memory', lambda: _memory(config, splits['train']))
        check('replicas', lambda: _replicas(config, splits['train']))
        check('bfloat16', lambda: _precision(config, splits['train']))
    return processes.everywhere(well)


def _versions() -> str:
    wrong, found = [], []
    if _REQUIREMENTS.exists():
        lines = [line.partition('#')[0].strip() for line in _REQUIREMENTS.read_text().splitlines()]
    else:  # Installed without its checkout.
        lines = importlib.metadata.requires('simclr_cifar')
    for requirement in (Requirement(line) for line in lines if line):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f'{requirement.name} is not installed')
            continue
        if version not in requirement.specifier:
            wrong.append(f'{requirement.name} is {version}, not {requirement.specifier}')
        if requirement.name in ('jax', 'flax', 'optax'):
            found.append(f'{requirement.name} {version}')
    if wrong:
        raise InputError(f'{"; ".join(wrong)}; pip install -r requirements.txt')
    return f'Python {platform.python_version()}, {", ".join(found)}'


def _devices() -> str:
    if jax.default_backend() == 'cpu' and shutil.which('nvidia-smi'):
        raise InputError('this machine has an NVIDIA GPU that JAX does not see; pip install -r requirements-cuda.txt')
    counts = [sum(device.process_index == number for device in jax.devices()) for number in range(jax.process_count())]
    kind = jax.devices()[0].device_kind
    if len(set(counts)) > 1:
        raise InputError(f'the processes have {counts} devices ({kind}); start them on machines of one kind')
    return f'{counts[0]} {kind}' + (f' in each of {len(counts)} processes' if len(counts) > 1 else '')


def _data(config, data_dir, cache_dir, splits: dict) -> str:
    started = time.monotonic()
    splits |= data.load_splits(config, data_dir, cache_dir)
    sizes = ', '.join(f'{len(dataset.labels):,} {split}' for split, dataset in splits.items())
    return f'{config.dataset}: {sizes} images, there in {time.monotonic() - started:.1f} s'


def _config(config, training: data.Dataset) -> str:
    beginning.require_trainable(config, training)
    mesh = parallel.make_mesh(config.groups_per_batch)
    if mesh.size < jax.device_count():
        return (
            f'batches of {config.groups_per_batch} groups use {mesh.size} of {jax.device_count()} devices; a multiple '
            f'of {jax.device_count()} would use all'
        )
    return f'batches of {config.groups_per_batch} groups use every device'


def _workdir(workdir: pathlib.Path) -> str:
    if not processes.is_leader():
        return ''  # Which alone writes there.
    nearest = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    content = np.random.default_rng(0).bytes(2**20)
    try:
        with tempfile.TemporaryDirectory(dir=nearest) as folder:
            path = pathlib.Path(folder) / 'written'
            path.write_bytes(content)
            if path.read_bytes() != content:
                raise InputError(
                    f'--workdir={workdir}: what is written in {nearest} is not what is read; choose another'
                )
            lacking = without_locks(pathlib.Path(folder))
    except OSError as error:
        raise InputError(
            f'--workdir={workdir}: {nearest} cannot be written ({error.strerror}); choose another'
        ) from error
    free = shutil.disk_usage(nearest).free
    if free < _GIB:
        raise InputError(f'--workdir={workdir}: {free / _GIB:.1f} GiB are free; make room for 1')
    told = f'{nearest}: written, read, deleted; {free / _GIB:,.0f} GiB are free'
    if lacking:  # You can train there.
        told += f'; its file system has no locks ({lacking}): start only one process at a time in a folder'
    return told


def _memory(config, training: data.Dataset) -> str:
    mesh = parallel.make_mesh(config.groups_per_batch)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[None], step.init_state(config, training.images, config.seed))
    arguments = parallel.replicate((state, np.zeros(1, np.int32)), mesh)
    feed = Feed(config, mesh, training, 1, processes.agree(is_resident(config, training)))
    started = time.monotonic()
    needed = feed.lower(*arguments).compile().memory_analysis()
    seconds = time.monotonic() - started
    num_bytes = needed.temp_size_in_bytes + needed.argument_size_in_bytes
    num_bytes += needed.output_size_in_bytes - needed.alias_size_in_bytes
    free = parallel.free_memory(processes.on_this_host())
    told = f'{feed}; training takes {num_bytes / _GIB:.2f} GiB of a device, {free / _GIB:.1f} are there'
    if num_bytes > free:
        raise InputError(f'{told}; lower --config.groups_per_batch, or take more devices')
    return f'{told}; compiled in {seconds:.1f} s'


def _replicas(config, training: data.Dataset) -> str:
    """A batch's loss and gradient on one device and on all, each of which sees other images."""
    if jax.device_count() == 1:
        return 'one device: nothing to compare'
    counts = np.bincount(training.labels, minlength=len(training.class_names))
    training = data.sample(training, np.minimum(counts, max(50, 2 * jax.device_count())), 0)
    # Parameters after a step of plain SGD are those before it, less the gradient.
    plain = _changed(
        config,
        **{'optimizer': 'sgd', 'learning_rate': 1.0, 'momentum': 0.0, 'weight_decay': 0.0, 'schedule': 'constant'},
        **{'warmup_share': 0.0, 'average_decay': 0.0, 'batches_per_epoch': 1},
        groups_per_batch=jax.device_count(),
    )
    initial = step.init_state(plain, training.images, plain.seed)
    index = sampling.class_index(training.labels, len(training.class_names))

    def stepped(mesh):
        arguments = jax.tree.map(lambda leaf: np.asarray(leaf)[None], initial), np.zeros(1, np.int32)
        arguments = parallel.replicate((*arguments, np.asarray(training.images), index), mesh)
        states, metrics = step.compile_epoch(plain, mesh)(*arguments)
        return jax.tree.map(np.asarray, states.variables['params']), float(np.asarray(metrics['loss'])[0, 0])

    (alone, loss), (together, other_loss) = (
        stepped(parallel.one_device()),
        stepped(parallel.make_mesh(jax.device_count())),
    )
    largest = max(jax.tree.leaves(jax.tree.map(_apart, initial.variables['params'], alone)))
    apart = max(jax.tree.leaves(jax.tree.map(_apart, alone, together)))
    told = (
        f'on 1 and {jax.device_count()} devices the loss is {loss:.6f} and {other_loss:.6f}, the gradient, of up to '
        f'{largest:.2g}, differs by up to {apart:.2g}'
    )
    if not (abs(loss - other_loss) <= 1e-4 * abs(loss) and apart <= 1e-3 * largest):
        raise InputError(f'{told}: what the devices exchange goes wrong; update the driver and jaxlib, and report it')
    return told


def _apart(one, other) -> float:
    return float(np.max(np.abs(np.asarray(one) - np.asarray(other))))


def _precision(config, training: data.Dataset) -> str:
    """What computing in bfloat16 makes of the embeddings before training, and of the time."""
    variables = step.init_state(config, training.images, config.seed).variables
    images = np.asarray(training.images[:_IMAGES])
    embeddings, seconds = {}, {}
    for dtype in ('float32', 'bfloat16'):
        model = models.make_model(_changed(config, compute_dtype=dtype))
        encode = jax.jit(lambda variables, images, model=model: models.encode(model, variables, images))
        jax.block_until_ready(encode(variables, images))
        started = time.monotonic()
        embeddings[dtype] = np.asarray(encode(variables, images)['features'])
        seconds[dtype] = time.monotonic() - started
    least = float(np.min(np.sum(embeddings['float32'] * embeddings['bfloat16'], axis=1)))
    told = (
        f'features as in float32 to a cosine of {least:.4f}, in {seconds["bfloat16"] / seconds["float32"]:.1f} times '
        'the time'
    )
    if not least > 0.99:
        raise InputError(f'{told}; keep --config.compute_dtype=float32')
    return told


def _changed(config: ml_collections.ConfigDict, **fields) -> ml_collections.ConfigDict:
    changed = config.copy_and_resolve_references().unlock()
    changed.update(fields)
    return changed.lock()
