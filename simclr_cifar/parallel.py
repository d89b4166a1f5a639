"""Devices and what runs on all of them. The only module that knows how many devices there are."""

from collections.abc import Callable

import jax
import numpy as np
import psutil
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from simclr_cifar.config import InputError

AXIS = 'data'  # the named axis of the replicas

REPLICATED = PartitionSpec()
SPLIT = PartitionSpec(AXIS)


def split_along(axis: int) -> PartitionSpec:
    """Returns the spec of what is divided along its axis of this number, from 0."""
    return PartitionSpec(*[None] * axis, AXIS)


def make_mesh(groups_per_batch: int) -> Mesh:
    """Returns a mesh of as many devices as share the groups equally: a batch of one group uses one device.

    Of several processes each brings as many devices.

    Raises:
      InputError: there are more processes than groups, or they cannot share them equally.
    """
    processes = jax.process_count()
    if groups_per_batch % processes:
        raise InputError(
            f'--config.groups_per_batch={groups_per_batch}: {processes} processes cannot share a batch of so many '
            f'groups equally; choose a multiple of {processes}, or start fewer processes'
        )
    each = max(n for n in range(1, jax.local_device_count() + 1) if groups_per_batch % (n * processes) == 0)
    devices = [[device for device in jax.devices() if device.process_index == p][:each] for p in range(processes)]
    return Mesh(np.ravel(devices), (AXIS,))


def one_device() -> Mesh:
    """Returns a mesh of one of this process's devices."""
    return Mesh(np.array(jax.local_devices()[:1]), (AXIS,))


def local_mesh() -> Mesh:
    """Returns a mesh of this process's devices."""
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def pmapped(
    function: Callable,
    mesh: Mesh,
    in_specs=REPLICATED,
    out_specs=REPLICATED,
    donate_argnums: tuple[int, ...] = (),
) -> Callable:
    """Compiles a per-replica function with the named axis AXIS to run on every device of the mesh.

    The function runs unchanged under `jax.pmap(axis_name=AXIS)`. Arguments and results are whole on each device where
    their spec is REPLICATED, and divided along their first axis where it is SPLIT.
    """
    # With check_vma=True the gradient of a replicated argument arrives summed over the axis already, and the pmean that
    # a per-replica step takes of it would give the gradient times the number of devices.
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate_argnums)


def replicate(tree, mesh: Mesh):
    """Returns the tree with every array, the same in all processes, whole on each device of the mesh."""
    sharding = NamedSharding(mesh, REPLICATED)
    if all(device.process_index == jax.process_index() for device in mesh.devices.flat):
        return jax.device_put(tree, sharding)
    # device_put would compare the processes' arrays first, by sending them.
    return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda _: leaf), tree)


def divide(local: np.ndarray, mesh: Mesh, axis: int) -> jax.Array:
    """Returns an array divided along an axis, of which each process has a share, in their order."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, split_along(axis)), local)


def shape(shape: tuple[int, ...], dtype, mesh: Mesh, spec: PartitionSpec = REPLICATED) -> jax.ShapeDtypeStruct:
    """Returns what stands for an array on the mesh where a program is compiled."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def in_padded_batches(function: Callable, inputs: np.ndarray, batch_size: int, mesh: Mesh):
    """Applies a function to every row once, in batches of one shape.

    Args:
      function: what `pmapped` made of (batch [B, ...]) -> a tree of [B, ...] with SPLIT in and out.
      inputs: [N, ...]; the last batch is filled up with copies of its first row, whose results are dropped.
      batch_size: B, rounded up to a multiple of the devices.
      mesh: the function's.

    Returns:
      The tree, of [N, ...] on the host.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    outputs = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        padding = np.repeat(batch[:1], batch_size - len(batch), axis=0)
        outputs.append(function(jax.device_put(np.concatenate([batch, padding]), NamedSharding(mesh, SPLIT))))
    return jax.tree.map(lambda *of_batches: np.concatenate(of_batches)[: len(inputs)], *jax.device_get(outputs))


def is_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is of CPU devices."""
    return mesh.devices.flat[0].platform == 'cpu'


def free_memory(sharing: int = 1) -> int:
    """Returns the bytes of memory that each device of this process has left for this program.

    Args:
      sharing: how many processes of it, with as many devices each, share the host's memory.
    """
    devices = jax.local_devices()
    told = devices[0].memory_stats() or {}
    if 'bytes_limit' in told:
        return told['bytes_limit'] - told.get('bytes_in_use', 0)
    return psutil.virtual_memory().available // (len(devices) * sharing)


def describe(mesh: Mesh) -> str:
    """Returns the mesh's devices in words, as '1 of 8 cpu' or '8 of 8 cpu in 2 processes'."""
    in_processes = f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return f'{mesh.size} of {jax.device_count()} {mesh.devices.flat[0].device_kind}{in_processes}'
