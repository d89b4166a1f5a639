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

from simclr_cifar import augment, convolutions, models, objectives, optimizers, parallel, pieces, sampling

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

    The step is (state, key of the seed's augmentation, images uint8 [N, H, W, C], rows, pairs int32 [2, G, C]: this
    replica's anchors and positives, groups int32 [G]: their numbers within the global batch) -> (state, metrics), with
    'loss' and 'accuracy' float32 scalars of the global batch. Rows, int32 [2, G, C], tell where in images the pairs
    are; None: images are all training images, which pairs are indices of.

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

    def train_step(
        state: TrainState, key, images: jax.Array, rows: jax.Array | None, pairs: jax.Array, groups: jax.Array
    ):
        _, num_groups, num_classes = pairs.shape
        statistics = {name: values for name, values in state.variables.items() if name != 'params'}
        limit = num_groups if images_at_once is None or statistics else images_at_once // (2 * num_classes)
        size = pieces.largest_divisor(num_groups, limit)
        step_key, epoch = jax.random.fold_in(key, state.step), state.step // config.batches_per_epoch

        def look(rows, pairs, groups):
            """int32 [g, 2, C] each, [g] -> augmented float32 images [2 g C, H, W, C]."""
            drawn = models.to_float(images[(pairs if rows is None else rows).reshape(-1)])
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
                return models.unit(embeddings).reshape(*batch[1].shape, -1), new

            _, pairs, groups = batch
            if statistics:
                embeddings, new = embed(batch)
            else:
                embeddings, new = pieces.concatenated(lambda some: embed(some)[0], batch, min(size, len(groups))), {}
            labels = sampling.labels(config, pairs)
            loss, accuracy = objective(embeddings[:, 0], embeddings[:, 1], labels)
            return loss, (accuracy, new)

        batch = None if rows is None else rows.swapaxes(0, 1), pairs.swapaxes(0, 1), groups
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


def _make_scan(config: ml_collections.ConfigDict, axis_size: int, images_at_once: int | None) -> Callable:
    """Returns (states, seeds, images or None, pairs of each seed, their images or None) -> (states, metrics)."""
    train_step = make_train_step(config, images_at_once)

    def scan(states, seeds, images, pairs, read):
        groups = _own_groups(config, axis_size)
        keys = [jax.random.fold_in(jax.random.key(seed), _AUGMENTATION) for seed in seeds]

        def step_of(state, key, pairs, read):
            if read is None:
                return train_step(state, key, images, None, pairs, groups)
            pictures = read.reshape(-1, *read.shape[3:])
            rows = jnp.arange(len(pictures)).reshape(read.shape[:3])
            return train_step(state, key, pictures, jnp.broadcast_to(rows, pairs.shape), pairs, groups)

        def step_of_each(states, drawn):
            stepped = map(step_of, states, keys, *drawn)
            return tuple(zip(*stepped, strict=True))

        return lax.scan(step_of_each, tuple(states), (pairs, read))

    return scan


def _own_groups(config: ml_collections.ConfigDict, axis_size: int) -> jax.Array:
    """Returns the numbers of this replica's groups within the global batch, int32 [G / axis_size]."""
    local_groups = config.groups_per_batch // axis_size
    return lax.axis_index(parallel.AXIS) * local_groups + jnp.arange(local_groups)


def draw_pairs(config: ml_collections.ConfigDict, seed: jax.Array, first_step: jax.Array, groups, index) -> jax.Array:
    """Returns a seed's pairs of an epoch; arguments and result as of `sampling.epoch_pairs`."""
    key = jax.random.fold_in(jax.random.key(seed), _SAMPLING)
    return sampling.epoch_pairs(config, key, first_step, groups, index)


def probed(index: sampling.ClassIndex) -> jax.Array:
    """Returns the training images whose embeddings an epoch returns: int32 [_PROBED], of all classes."""
    return index.order[np.linspace(0, len(index.order) - 1, _PROBED).astype(np.int32)]


def make_epoch(config: ml_collections.ConfigDict, axis_size: int, images_at_once: int | None = None) -> Callable:
    """Returns the per-replica epoch, batches_per_epoch steps of each of several seeds, for axis_size replicas.

    The epoch is (states, one of each seed; seeds, int32 scalars; images uint8 [N, H, W, C]; index:
    sampling.ClassIndex) -> (states, metrics), with one dictionary of metrics for each seed: 'loss' and 'accuracy',
    float32 [batches_per_epoch], and 'embeddings', float32 [_PROBED, D], those of training images of all classes after
    the last step. Every replica draws its share of each batch's groups.
    """
    scan, model = _make_scan(config, axis_size, images_at_once), models.make_model(config)

    def epoch(states, seeds, images: jax.Array, index: sampling.ClassIndex):
        # Drawn ahead: in the loop, a tiny program of its own before every step.
        pairs = [
            draw_pairs(config, seed, state.step, _own_groups(config, axis_size), index)
            for seed, state in zip(seeds, states, strict=True)
        ]
        states, metrics = scan(states, seeds, images, pairs, [None] * len(seeds))
        embeddings = [
            models.encode(model, state.variables, images[probed(index)])[config.representation] for state in states
        ]
        return states, [own | {'embeddings': rows} for own, rows in zip(metrics, embeddings, strict=True)]

    return epoch


def make_steps(config: ml_collections.ConfigDict, axis_size: int, images_at_once: int | None = None) -> Callable:
    """Returns some per-replica steps of an epoch, on images that were read ahead.

    They are (states, one of each seed; seeds, int32 scalars; pairs, int32 [S, 2, g, C] of each seed, those of this
    replica's g groups; their images, uint8 [S, 2, g, C, H, W, C], or [S, 1, ...] where a pair is one image seen twice)
    -> (states, metrics) as of `make_epoch`, of S steps and without embeddings.
    """
    scan = _make_scan(config, axis_size, images_at_once)
    return lambda states, seeds, pairs, images: scan(states, seeds, None, pairs, images)


def compile_epoch(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns the epoch of several seeds in one program, compiled for the mesh; it consumes the states it is given.

    Called as the epoch, with a leading axis of seeds on the leaves of states and metrics.
    """
    return _compile(config, mesh, make_epoch, parallel.REPLICATED, lambda _, index: len(index.counts), of_seeds=False)


def compile_steps(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns some steps of several seeds in one program, compiled for the mesh; it consumes the states it is given.

    Called as of `make_steps`, with a leading axis of seeds everywhere, and the groups of pairs and images divided over
    the mesh.
    """
    in_specs = (*[parallel.REPLICATED] * 2, *[parallel.split_along(3)] * 2)
    return _compile(config, mesh, make_steps, in_specs, lambda pairs, _: pairs.shape[-1], of_seeds=True)


def _compile(config, mesh, make, in_specs, num_classes, of_seeds):
    """Compiles what `make` returns for several seeds.

    Args:
      config: the run's.
      mesh: where it runs.
      make: `make_epoch` or `make_steps`.
      in_specs: of its result's arguments.
      num_classes: from its result's last two arguments to how many classes a group has.
      of_seeds: whether each seed has these two of its own.
    """
    function = make(config, mesh.size, _IMAGES_AT_ONCE_ON_CPU if parallel.is_cpu(mesh) else None)

    def side_by_side(states, seeds, *given):
        def of_each(tree):
            return [jax.tree.map(lambda leaf, number=number: leaf[number], tree) for number in range(len(seeds))]

        own = map(of_each, given) if of_seeds else given
        trained = zip(*function(of_each(states), list(seeds), *own), strict=True)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)

    def one_program(states, seeds, *given):
        classes = 1 if config.pairs == 'views' else num_classes(*given)
        images = 2 * classes * config.groups_per_batch // mesh.size

        def of_one(one):
            state, seed, *own = one
            states, metrics = function([state], [seed], *([[tree] for tree in own] or given))
            return states[0], metrics[0]

        # Few images leave a device idle, which the other seeds' fill; many do not, and kernels that differ from seed to
        # seed are slow: one seed after the other then.
        few = images <= convolutions.IMAGES_IN_PRODUCTS_ON_A_GPU
        run = jax.vmap(of_one) if few else functools.partial(lax.map, of_one)
        return run((states, seeds, *(given if of_seeds else ())))

    # A CPU's cores run the seeds' products one beside the other better than they run a batched one.
    chosen = side_by_side if parallel.is_cpu(mesh) else one_program
    return parallel.pmapped(chosen, mesh, in_specs=in_specs, donate_argnums=(0,))


def compile_probe(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns (states of several seeds, images uint8 [N, H, W, C]) -> their embeddings, float32 [seeds, N, D]."""
    model = models.make_model(config)

    def probe(state, images):
        return models.encode(model, state.variables, images)[config.representation]

    return parallel.pmapped(jax.vmap(probe, in_axes=(0, None)), mesh)


def compile_encode(config: ml_collections.ConfigDict, mesh: Mesh) -> Callable:
    """Returns (variables, images) -> what `models.encode` returns of them, compiled, images divided over the mesh."""
    model = models.make_model(config)
    return parallel.pmapped(
        lambda variables, images: models.encode(model, variables, images),
        mesh,
        in_specs=(parallel.REPLICATED, parallel.SPLIT),
        out_specs=parallel.SPLIT,
    )
