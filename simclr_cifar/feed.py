"""Training images on their way to the devices: all of them beforehand, or those of a few steps at a time."""

import contextlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from simclr_cifar import parallel, pieces, processes, sampling, step
from simclr_cifar.data import Dataset

_LARGEST_SHARE = 0.5  # of a device's free memory, for all images
_CHUNK_BYTES = 64 * 2**20  # of images that a process reads at once
_CHUNKS_AHEAD = 2  # read before they are asked for, and given to the device before it has finished others


def is_resident(config: ml_collections.ConfigDict, training: Dataset) -> bool:
    """Whether devices are to hold all training images: as the config says, or where they have room for them.

    All processes have to ask.
    """
    if config.resident == 'auto':
        return training.images.nbytes <= _LARGEST_SHARE * parallel.free_memory(processes.on_this_host())
    return config.resident == 'yes'


class Feed:
    """What trains on a split. Batches are the same whether all images are on the devices or not.

    Args:
      config: validated.
      mesh: the devices that train.
      training: the split.
      num_seeds: of the runs that are trained together.
      resident: whether each device holds all images; if not, this process reads those of its own devices' groups.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, mesh: Mesh, training: Dataset, num_seeds: int, resident: bool
    ):
        self._config, self._mesh, self._training, self._resident = config, mesh, training, resident
        self._index = sampling.class_index(training.labels, len(training.class_names))
        num_classes = 1 if config.pairs == 'views' else len(training.class_names)
        self._pairs = num_seeds, config.batches_per_epoch, 2, config.groups_per_batch, num_classes
        self._drawn = sampling.images_of_class(config)
        bytes_of_step = num_seeds * self._drawn * config.groups_per_batch * num_classes * math.prod(self._image_shape)
        limit = _CHUNK_BYTES * jax.process_count() // bytes_of_step
        self._steps = pieces.largest_divisor(config.batches_per_epoch, limit)

    @property
    def _image_shape(self) -> tuple[int, ...]:
        return self._training.images.shape[1:]

    def __str__(self) -> str:
        size = f'{self._training.images.nbytes / 2**20:,.1f} MiB of images'
        return f'{size} on each device' if self._resident else f'{size}, read {self._steps} steps at a time'

    def lower(self, states: step.TrainState, seeds: jax.Array) -> jax.stages.Lowered:
        """Returns the program that trains, an epoch or as many steps as are read at a time, to be compiled.

        Args:
          states: of the seeds, with a leading axis, whole on each device; or their shapes.
          seeds: int32 [num_seeds], likewise.
        """
        if self._resident:
            whole = jax.tree.map(
                lambda leaf: parallel.shape(leaf.shape, leaf.dtype, self._mesh), (self._training.images, self._index)
            )
            return step.compile_epoch(self._config, self._mesh).lower(states, seeds, *whole)
        num_seeds, _, twice, *groups = self._pairs
        shapes = [
            parallel.shape((num_seeds, self._steps, *of_step), dtype, self._mesh, parallel.split_along(3))
            for of_step, dtype in (
                ((twice, *groups), np.int32),
                ((self._drawn, *groups, *self._image_shape), np.uint8),
            )
        ]
        return step.compile_steps(self._config, self._mesh).lower(states, seeds, *shapes)

    @contextlib.contextmanager
    def epochs(self, states: step.TrainState, seeds: jax.Array) -> Iterator[Callable]:
        """Gives the compiled epoch, states -> (states, metrics) as `step.compile_epoch`'s, for the length of a block.

        It consumes the states it is given, and is to be called with those that it returned: the first time with these
        here, which arguments are as of `lower`.
        """
        program = self.lower(states, seeds).compile()
        if self._resident:
            whole = parallel.replicate((np.asarray(self._training.images), self._index), self._mesh)
            yield lambda states: program(states, seeds, *whole)
            return
        probe = step.compile_probe(self._config, self._mesh)
        probed = parallel.replicate(self._training.images[step.probed(self._index)], self._mesh)
        first_epoch = int(np.asarray(states.step)[0]) // self._config.batches_per_epoch
        with _read_ahead(self._read(np.asarray(seeds), first_epoch)) as chunks:

            def epoch(states):
                metrics = []
                for chunk in itertools.islice(chunks, self._config.batches_per_epoch // self._steps):
                    if len(metrics) >= _CHUNKS_AHEAD:
                        jax.block_until_ready(metrics[-_CHUNKS_AHEAD])
                    states, of_chunk = program(states, seeds, *chunk)
                    metrics.append(of_chunk)
                of_epoch = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *metrics)
                return states, of_epoch | {'embeddings': probe(states, probed)}

            yield epoch

    def _read(self, seeds: np.ndarray, first_epoch: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields (pairs, images) as of `step.compile_steps`, of one chunk of steps after the other."""
        own_groups = self._config.groups_per_batch // jax.process_count()
        groups = jax.process_index() * own_groups + np.arange(own_groups)
        draw = jax.jit(
            jax.vmap(
                lambda seed, first_step: step.draw_pairs(self._config, seed, first_step, groups, self._index), (0, None)
            )
        )
        for epoch in range(first_epoch, self._config.num_epochs):
            pairs = np.asarray(draw(seeds, epoch * self._config.batches_per_epoch))
            for first in range(0, self._config.batches_per_epoch, self._steps):
                of_chunk = pairs[:, first : first + self._steps]
                rows = of_chunk[:, :, : self._drawn]
                images = self._training.images[rows.reshape(-1)].reshape(*rows.shape, *self._image_shape)
                yield tuple(parallel.divide(part, self._mesh, axis=3) for part in (of_chunk, images))


@contextlib.contextmanager
def _read_ahead(chunks: Iterator) -> Iterator[Iterator]:
    """Gives an iterator over the same, which a thread computes before they are asked for."""
    with contextlib.ExitStack() as stack:
        thread = ThreadPoolExecutor(1, 'feed')
        stack.callback(thread.shutdown, cancel_futures=True)

        def read():
            waiting = deque(thread.submit(next, chunks, None) for _ in range(_CHUNKS_AHEAD))
            while (chunk := waiting.popleft().result()) is not None:
                waiting.append(thread.submit(next, chunks, None))
                yield chunk

        yield read()
