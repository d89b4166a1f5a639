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

from simclr_cifar import augment, models, objectives, optimizers, parallel, pieces, sampling

# Streams of random numbers, each folded into the run's root key.
_INITIALISATION, _SAMPLING, _AUGMENTATION = range(3)
# Images whose embeddings an epoch returns.
_PROBED = 256
# Whose activations a CPU's caches hold: of larger batches a few groups at a time are nearly twice as fast.
_IMAGES_AT_ONCE_ON_CPU = 80


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32 scalar, batches trained on so far.
      variables: the model's, 'params' and, where it has any, 'batch_stats'.
      opt_state: the optimiser's state.
      average: as variables, exponential moving averages of them; {} where none are kept.
    """

    step: jax.Array
    variables: dict
    opt_state: optax.OptState
    average: dict


def init_state(config: ml_collections.ConfigDict, images: np.ndarray, seed: int) -> TrainState:
    """Returns the state before the first step; images are the training images, uint8 [N, H, W, C]."""
    key = jax.random.fold_in(jax.random.key(seed), _INITIALISATION)
    variables = models.init(models.make_model(config), key, images)
    opt_state = optimizers.make_optimizer(config).init(variables['params'])
    return TrainState(jnp.zeros((), jnp.int32), variables, opt_state, variables if config.average_decay else {})


def make_train_step(config: ml_collections.ConfigDict, images_at_once: int | None = None) -> Callable:
    """Returns the per-replica step, to run with the named axis `parallel.AXIS`.

    The step is (state, key of the seed's augmentation, images uint8 [N, H, W, C], pairs int32 [2, G, C]: this replica's
    anchors and positives, groups int32 [G]: their numbers within the global batch) -> (state, metrics), with 'loss' and
    'accuracy' float32 scalars of the global batch.

    Args:
      config: the run's.
      images_at_once: activations are kept of no more images than this, or of one group; None: of the batch. Of a larger
        batch a few groups at a time are trained on, which with a loss of the whole batch encodes every image twice.
        Batch statistics are of the whole batch: a model that has them is trained on the batch at once.
    """
    model, optimizer = models.make_model(config), optimizers.make_optimizer(config)
    objective = objectives.make_objective(config, parallel.AXIS)
    augment_image = augment.make_augment(config)
    of_groups = config.objective == 'anchor_positive' and config.negatives == 'group'

    def train_step(state: TrainState, key: jax.Array, images: jax.Array, pairs: jax.Array, groups: jax.Array):
        _, num_groups, num_classes = pairs.shape
        statistics = {name: values for name, values in state.variables.items() if name != 'params'}
        limit = num_groups if images_at_once is None or statistics else images_at_once // (2 * num_classes)
        size = pieces.largest_divisor(num_groups, limit)
        step_key, epoch = jax.random.fold_in(key, state.step), state.step // config.batches_per_epoch

        def look(pairs, groups):
            """int32 [g, 2, C], [g] -> augmented float32 images [2 g C, H, W, C]."""
            drawn = models.to_float(images[pairs.reshape(-1)])
            if augment_image is None:
                return drawn
            # An example's number is its place in the global batch.
            places = jnp.arange(2 * num_classes)[None, :] + 2 * num_classes * groups[:, None]
            keys = jax.vmap(lambda place: jax.random.fold_in(step_key, place))(places.reshape(-1))
            own_keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(pairs.reshape(-1))
            return jax.vmap(augment_image, in_axes=(0, 0, None, 0))(keys, own_keys, epoch, drawn)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def differentiated(params, batch):
            def embed(batch):
                # Anchors and positives in one pass.
                variables = {'params': params, **statistics}
                embeddings, new = model.apply(variables, look(*batch), train=True, mutable=list(statistics))
                return models.unit(embeddings).reshape(*batch[0].shape, -1), new

            pairs, groups = batch
            if statistics:
                embeddings, new = embed(batch)
            else:
                embeddings, new = pieces.concatenated(lambda some: embed(some)[0], batch, min(size, len(groups))), {}
            labels = sampling.labels(config, pairs)
            loss, accuracy = objective(embeddings[:, 0], embeddings[:, 1], labels)
            return loss, (accuracy, new)

        batch = pairs.swapaxes(0, 1), groups
        if of_groups:
            # Groups know nothing of each other: the mean over pieces is the batch's.
            total = pieces.summed(functools.partial(differentiated, state.variables['params']), batch, size)
            found = jax.tree.map(lambda leaf: leaf * (size / num_groups), total)
        else:
            found = differentiated(state.variables['params'], batch)
        (loss, (accuracy, statistics)), gradient = lax.pmean(found, parallel.AXIS)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.variables['params'])
        variables = {'params': optax.apply_updates(state.variables['params'], updates), **statistics}
        average = state.average
        if config.average_decay:
            # Early averages are of all steps so far, lest the first weights stay in them.
            decay = jnp.minimum(config.average_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(variables, average, 1 - decay)
        return TrainState(state.step + 1, variables, opt_state, average), {'loss': loss, 'accuracy': accuracy}

    return train_step


def make_epoch(config: ml_collections.ConfigDict, axis_size: int, images_at_once: int | None = None) -> Callable:
    """Returns the per-replica epoch, batches_per_epoch steps of each of several seeds, for axis_size replicas.

    The epoch is (states, one of each seed; seeds, int32 scalars; images uint8 [N, H, W, C]; index:
    sampling.ClassIndex) -> (states, metrics), with one dictionary of metrics for each seed: 'loss' and 'accuracy',
    float32 [batches_per_epoch], and 'embeddings', float32 [_PROBED, D], those of training images of all classes after
    the last step. Every replica draws its share of each batch's groups.
    """
    train_step, model = make_train_step(config, images_at_once), models.make_model(config)
    local_groups = config.groups_per_batch // axis_size

    def epoch(states, seeds, images: jax.Array, index: sampling.ClassIndex):
        groups = lax.axis_index(parallel.AXIS) * local_groups + jnp.arange(local_groups)
        keys = [jax.random.key(seed) for seed in seeds]
        augmentation_keys = [jax.random.fold_in(key, _AUGMENTATION) for key in keys]

        def step_of_each(states, pairs):
            batches = zip(states, augmentation_keys, pairs, strict=True)
            stepped = [train_step(state, key, images, own, groups) for state, key, own in batches]
            return tuple(zip(*stepped, strict=True))

        # Drawn ahead: in the loop, a tiny program of its own before every step.
        pairs = [
            sampling.epoch_pairs(config, jax.random.fold_in(key, _SAMPLING), state.step, groups, index)
            for key, state in zip(keys, states, strict=True)
        ]
        states, metrics = lax.scan(step_of_each, tuple(states), pairs)
        probed = images[index.order[np.linspace(0, len(index.order) - 1, _PROBED).astype(np.int32)]]
        embeddings = [models.encode(model, state.variables, probed)[config.representation] for state in states]
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
    """Returns (variables, images) -> what `models.encode` returns of them, compiled, images divided over the mesh."""
    model = models.make_model(config)
    return parallel.pmapped(
        lambda variables, images: models.encode(model, variables, images),
        mesh,
        in_specs=(parallel.REPLICATED, parallel.SPLIT),
        out_specs=parallel.SPLIT,
    )
