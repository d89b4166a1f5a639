"""Our training step as a contender, and the rate that bounds it."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from simclr_cifar import data, parallel, sampling, step

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


def prepare(num_classes: int, batches: int = 0, groups: int = 0, num_seeds: int = 1, recipe: str = 'c10', **fields):
    """Returns (config, stacked states of the seeds, seeds, images, index, the compiled epoch), as `train` has them.

    Args:
      num_classes: the first so many.
      batches: of an epoch; 0: the recipe's.
      groups: of a batch; 0: the recipe's.
      num_seeds: trained together.
      recipe: the name of a file in configs/.
      fields: of the config, where they are not to be the recipe's.
    """
    config = runpy.run_path(str(_CONFIGS / f'{recipe}.py'))['get_config']().unlock()
    config.update(num_classes=num_classes, **fields)
    config.batches_per_epoch = batches or config.batches_per_epoch
    config.groups_per_batch = groups or config.groups_per_batch
    train = data.select(data.load(config.dataset, 'train'), num_classes=num_classes)
    mesh = parallel.make_mesh(config.groups_per_batch)
    seeds = np.arange(config.seed, config.seed + num_seeds, dtype=np.int32)
    states = [step.init_state(config, train.images, int(seed)) for seed in seeds]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    stacked, seeds = parallel.replicate((stacked, seeds), mesh)
    images = parallel.replicate(np.asarray(train.images), mesh)
    index = parallel.replicate(sampling.class_index(train.labels, num_classes), mesh)
    return config, stacked, seeds, images, index, step.compile_epoch(config, mesh)


def epoch(num_classes: int, batches: int):
    """A repetition is one epoch; the first compiles it."""
    _, stacked, seeds, images, index, run_epoch = prepare(num_classes, batches)

    def run():
        nonlocal stacked
        stacked, metrics = jax.block_until_ready(run_epoch(stacked, seeds, images, index))
        return {'loss': float(metrics['loss'].mean())}

    return run


def reference(num_classes: int, steps: int):
    """A repetition returns what peers are to reproduce.

    It is 'weights', the initial ones as a list of float32 arrays (kernels HWIO or [in, out], each with its bias [out]),
    'pairs', int32 [steps, 2, C], indices of images, and 'losses', float32 [steps], of these batches in training.
    """
    config, stacked, seeds, images, index, run_epoch = prepare(num_classes, steps)

    def run():
        params = jax.tree.map(lambda leaf: np.array(leaf[0]), stacked.variables['params'])
        convolutions = (params['encoder'][f'convolution_{number}'] for number in range(len(config.channels)))
        layers = [*convolutions, params['head']['Dense_0']]
        key = jax.random.fold_in(jax.random.key(config.seed), step._SAMPLING)
        pairs = [np.asarray(sampling.draw(key, number, jnp.arange(1), index))[:, 0] for number in range(steps)]
        _, metrics = run_epoch(stacked, seeds, images, index)
        return {
            'weights': [array for layer in layers for array in (layer['kernel'], layer['bias'])],
            'pairs': np.stack(pairs),
            'losses': np.asarray(metrics['loss'][0]),
        }

    return run


def matmul(size: int, products: int):
    """A repetition is so many products of float32 matrices of size x size."""
    left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32)
    product = jax.jit(lambda left, right: jnp.einsum('ij,jk->ik', left, right, precision=lax.Precision.HIGHEST))

    def run():
        for _ in range(products):
            product(left, right).block_until_ready()

    return run
