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

from simclr_cifar import models, objectives, parallel, sampling

# Streams of random numbers, each folded into the run's root key.
_INITIALISATION, _SAMPLING = range(2)
# Images whose embeddings an epoch returns.
_PROBED = 256


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


def make_train_step(config: ml_collections.ConfigDict, axis_size: int) -> Callable:
    """Returns the per-replica step, to run with the named axis `parallel.AXIS` of axis_size replicas.

    The step is (state, seed int32 scalar, images uint8 [N, H, W, C], index: sampling.ClassIndex) -> (state, metrics),
    with 'loss' and 'accuracy' float32 scalars of the global batch. Every replica draws its share of the batch's groups.
    """
    encoder, optimizer = models.make_encoder(config), _optimizer(config)
    local_groups = config.groups_per_batch // axis_size

    def train_step(state: TrainState, seed: jax.Array, images: jax.Array, index: sampling.ClassIndex):
        key = jax.random.fold_in(jax.random.key(seed), _SAMPLING)
        groups = lax.axis_index(parallel.AXIS) * local_groups + jnp.arange(local_groups)
        pairs = jnp.stack(sampling.pairs(key, state.step, groups, index))

        def loss_and_accuracy(params):
            # Anchors and positives in one pass.
            embeddings = models.encode(encoder, params, images[pairs.reshape(-1)])
            anchors, positives = embeddings.reshape(*pairs.shape, -1)
            return objectives.anchor_positive(
                anchors, positives, config.temperature, config.negatives, axis_name=parallel.AXIS
            )

        (loss, accuracy), gradient = jax.value_and_grad(loss_and_accuracy, has_aux=True)(state.params)
        gradient, loss, accuracy = lax.pmean((gradient, loss, accuracy), parallel.AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), {'loss': loss, 'accuracy': accuracy}

    return train_step


def make_epoch(config: ml_collections.ConfigDict, axis_size: int) -> Callable:
    """Returns the per-replica epoch, batches_per_epoch steps.

    It is called as the step. Its metrics are 'loss' and 'accuracy', float32 [batches_per_epoch], and 'embeddings',
    float32 [_PROBED, D], those of training images of all classes after the last step.
    """
    train_step, encoder = make_train_step(config, axis_size), models.make_encoder(config)

    def epoch(state: TrainState, seed: jax.Array, images: jax.Array, index: sampling.ClassIndex):
        state, metrics = lax.scan(
            lambda state, _: train_step(state, seed, images, index), state, length=config.batches_per_epoch
        )
        probed = index.order[np.linspace(0, len(index.order) - 1, _PROBED).astype(np.int32)]
        return state, metrics | {'embeddings': models.encode(encoder, state.params, images[probed])}

    return epoch


def compile_epoch(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns the epoch of several seeds in one program, compiled for the mesh; it consumes the states it is given.

    Called as the epoch, with a leading axis of seeds on states and seeds; the metrics get one.
    """
    epoch = jax.vmap(make_epoch(config, mesh.size), in_axes=(0, 0, None, None))
    return parallel.pmapped(epoch, mesh, donate_argnums=(0,))


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
