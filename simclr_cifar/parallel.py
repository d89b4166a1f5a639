"""Devices and what runs on all of them. The only module that knows how many devices there are."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = 'data'  # the named axis of the replicas

REPLICATED = PartitionSpec()
SPLIT = PartitionSpec(AXIS)


def make_mesh(groups_per_batch: int) -> Mesh:
    """Returns a mesh of as many devices as share the groups equally: a batch of one group uses one device."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if groups_per_batch % n == 0)
    return Mesh(np.array(devices[:count]), (AXIS,))


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
    """Returns the tree with every array whole on each device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))


def in_padded_batches(function: Callable, inputs: np.ndarray, batch_size: int, mesh: Mesh):
    """Applies a function to every row once, in batches of one shape.

    Args:
      function: what `pmapped` made of (batch [B, ...]) -> a tree of [B, ...] with SPLIT in and out.
      inputs: [N, ...]; the last batch is filled up with copies of the first row, whose results are dropped.
      batch_size: B, rounded up to a multiple of the devices.
      mesh: the function's.

    Returns:
      The tree, of [N, ...] on the host.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    outputs = []
    for start in range(0, len(inputs), batch_size):
        batch = inputs[start : start + batch_size]
        padding = np.repeat(inputs[:1], batch_size - len(batch), axis=0)
        outputs.append(function(jax.device_put(np.concatenate([batch, padding]), NamedSharding(mesh, SPLIT))))
    return jax.tree.map(lambda *of_batches: np.concatenate(of_batches)[: len(inputs)], *jax.device_get(outputs))


def is_cpu(mesh: Mesh) -> bool:
    """Whether the mesh is of CPU devices."""
    return mesh.devices.flat[0].platform == 'cpu'


def describe(mesh: Mesh) -> str:
    """Returns the mesh's devices in words, as '1 of 8 cpu'."""
    return f'{mesh.size} of {jax.device_count()} {mesh.devices.flat[0].device_kind}'
