"""The training step of one replica, and an epoch of them as one compiled program."""

import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from simclr_cifar import models, objectives, parallel, pieces, sampling

# Streams of random numbers, each folded into the run's root key.
_INITIALISATION, _SAMPLING = range(2)
# Images whose embeddings an epoch returns.
_PROBED = 256
# Whose activations a CPU's caches hold: of larger batches a few groups at a time are nearly twice as fast.
_IMAGES_AT_ONCE_ON_CPU = 80


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32 scalar, batches trained on so far.
      params: the encoder's parameters.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_state(config: ml_collections.ConfigDict, image_shape: tuple[int, ...], seed: int) -> TrainState:
    """Returns the state before the first step; image_shape is (H, W, C)."""
    key = jax.random.fold_in(jax.random.key(seed), _INITIALISATION)
    params = _init_params(models.make_encoder(config), key, image_shape)
    return TrainState(jnp.zeros((), jnp.int32), params, _optimizer(config).init(params))


@functools.partial(jax.jit, static_argnames=('encoder', 'image_shape'))
def _init_params(encoder, key, image_shape):
    return encoder.init(key, jnp.zeros((1, *image_shape)))['params']


def make_train_step(config: ml_collections.ConfigDict, images_at_once: int | None = None) -> Callable:
    """Returns the per-replica step, to run with the named axis `parallel.AXIS`.

    The step is (state, images uint8 [N, H, W, C], pairs int32 [2, G, C]: this replica's anchors and positives) ->
    (state, metrics), with 'loss' and 'accuracy' float32 scalars of the global batch.

    Args:
      config: the run's.
      images_at_once: activations are kept of no more images than this, or of one group; None: of the batch. Of a larger
        batch a few groups at a time are trained on, which with 'batch' negatives encodes every image twice.
    """
    encoder, optimizer = models.make_encoder(config), _optimizer(config)

    def train_step(state: TrainState, images: jax.Array, pairs: jax.Array):
        _, num_groups, num_classes = pairs.shape
        limit = num_groups if images_at_once is None else images_at_once // (2 * num_classes)
        size = pieces.largest_divisor(num_groups, limit)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def differentiated(params, groups):
            def embed(groups):
                # Anchors and positives in one pass.
                return models.encode(encoder, params, images[groups.reshape(-1)]).reshape(*groups.shape, -1)

            embeddings = pieces.concatenated(embed, groups, min(size, len(groups)))
            anchors, positives = embeddings.swapaxes(0, 1)
            return objectives.anchor_positive(
                anchors, positives, config.temperature, config.negatives, axis_name=parallel.AXIS
            )

        groups = pairs.swapaxes(0, 1)
        if config.negatives == 'group':
            # Groups know nothing of each other: the mean over pieces is the batch's.
            total = pieces.summed(functools.partial(differentiated, state.params), groups, size)
            found = jax.tree.map(lambda leaf: leaf * (size / num_groups), total)
        else:
            found = differentiated(state.params, groups)
        (loss, accuracy), gradient = lax.pmean(found, parallel.AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {'loss': loss, 'accuracy': accuracy}

    return train_step


def make_epoch(config: ml_collections.ConfigDict, axis_size: int, images_at_once: int | None = None) -> Callable:
    """Returns the per-replica epoch, batches_per_epoch steps of each of several seeds, for axis_size replicas.

    The epoch is (states, one of each seed; seeds, int32 scalars; images uint8 [N, H, W, C]; index:
    sampling.ClassIndex) -> (states, metrics), with one dictionary of metrics for each seed: 'loss' and 'accuracy',
    float32 [batches_per_epoch], and 'embeddings', float32 [_PROBED, D], those of training images of all classes after
    the last step. Every replica draws its share of each batch's groups.
    """
    train_step, encoder = make_train_step(config, images_at_once), models.make_encoder(config)
    local_groups = config.groups_per_batch // axis_size

    def epoch(states, seeds, images: jax.Array, index: sampling.ClassIndex):
        groups = lax.axis_index(parallel.AXIS) * local_groups + jnp.arange(local_groups)

        def draw(first_step, seed):
            key = jax.random.fold_in(jax.random.key(seed), _SAMPLING)
            steps = first_step + jnp.arange(config.batches_per_epoch)
            return jax.vmap(lambda step: jnp.stack(sampling.pairs(key, step, groups, index)))(steps)

        def step_of_each(states, pairs):
            stepped = [train_step(state, images, own) for state, own in zip(states, pairs, strict=True)]
            return tuple(zip(*stepped, strict=True))

        # Drawn ahead: in the loop, a tiny program of its own before every step.
        pairs = [draw(state.step, seed) for state, seed in zip(states, seeds, strict=True)]
        states, metrics = lax.scan(step_of_each, tuple(states), pairs)
        probed = images[index.order[np.linspace(0, len(index.order) - 1, _PROBED).astype(np.int32)]]
        embeddings = [models.encode(encoder, state.params, probed) for state in states]
        return states, [own | {'embeddings': rows} for own, rows in zip(metrics, embeddings, strict=True)]

    return epoch


def compile_epoch(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns the epoch of several seeds in one program, compiled for the mesh; it consumes the states it is given.

    Called as the epoch, with a leading axis of seeds on the leaves of states and metrics.
    """
    epoch = make_epoch(config, mesh.size, _IMAGES_AT_ONCE_ON_CPU if parallel.is_cpu(mesh) else None)

    def side_by_side(states, seeds, images, index):
        own = [jax.tree.map(lambda leaf, number=number: leaf[number], states) for number in range(len(seeds))]
        trained = zip(*epoch(own, list(seeds), images, index), strict=True)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)

    @functools.partial(jax.vmap, in_axes=(0, 0, None, None))
    def vectorised(state, seed, images, index):
        states, metrics = epoch([state], [seed], images, index)
        return states[0], metrics[0]

    # A CPU's cores run the seeds' products one beside the other better than they run a batched one.
    return parallel.pmapped(side_by_side if parallel.is_cpu(mesh) else vectorised, mesh, donate_argnums=(0,))


def compile_encode(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns (params, images uint8 [B, H, W, C]) -> unit-norm float32 [B, D], compiled, B divided over the mesh."""
    encoder = models.make_encoder(config)
    return parallel.pmapped(
        lambda params, images: models.encode(encoder, params, images),
        mesh,
        in_specs=(parallel.REPLICATED, parallel.SPLIT),
        out_specs=parallel.SPLIT,
    )


def _optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)
