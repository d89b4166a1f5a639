"""A trained encoder from its run's folder, without the images that it was trained on."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from simclr_cifar import checkpoint, models, step, stored
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder


@dataclasses.dataclass(frozen=True)
class Trained:
    """An encoder with the weights of one epoch, which computes in float32 whatever it was trained in.

    Attributes:
      config: the run's.
      variables: the model's, averaged where averages are kept; on the host.
      epoch: that they are of.
      image_shape: (H, W, C) of the images that it takes.
      class_names: that it was trained on.
      fingerprint: of all that an embedding depends on: the same for the same weights, 16 hexadecimal digits.
    """

    config: ml_collections.ConfigDict
    variables: dict
    epoch: int
    image_shape: tuple[int, int, int]
    class_names: list[str]
    fingerprint: str

    def embed(self, images: jax.Array) -> jax.Array:
        """Returns the embeddings that the run's figures are of, float32 [B, D], unit norm; images uint8 [B, H, W, C].

        It can be traced, with a batch of any size that is not known yet.
        """
        model, name = models.make_model(self.config), self.config.representation
        own = models.encode(model, self.variables, images)[name]
        if not self.config.flip_averaging:
            return own
        return models.unit(own + models.encode(model, self.variables, jnp.flip(images, axis=2))[name])


def load(run: RunFolder, epoch: int | None = None) -> Trained:
    """Returns the encoder of a run.

    Args:
      run: with checkpoints, or with weights.npz alone.
      epoch: the checkpoint's; None: the one of the run's figures, or the last.

    Raises:
      InputError: there is no run, no such checkpoint, or it is damaged.
    """
    described, config = run.read_json(run.config), stored.from_json(run.read_config())
    shape, class_names = (described.get(name) for name in ('image_shape', 'class_names'))
    if not _are(shape, int) or len(shape) != 3 or min(shape) < 1:
        raise InputError(
            f'{run.flag}={run.path}: config.json does not tell the shape of its images; add it, as '
            '"image_shape": [32, 32, 3]'
        )
    if not _are(class_names, str):
        raise InputError(
            f'{run.flag}={run.path}: config.json does not tell its "class_names"; give the folder of a run'
        )
    stored.require_same_meaning(run, config, resumed=False)
    epoch, shape = checkpoint.evaluated_epoch(run, epoch, '--epoch'), tuple(shape)
    with config.unlocked():
        config.compute_dtype = 'float32'
    like = jax.eval_shape(lambda: step.init_state(config, np.zeros((1, *shape), np.uint8), config.seed))
    state = checkpoint.read_evaluated(run, epoch, like)
    variables = jax.tree.map(np.asarray, state.average or state.variables)
    depends = f'{config.encoder} {config.representation} {config.flip_averaging} {shape} '
    digest = hashlib.sha256((depends + checkpoint.digest(variables)).encode())
    return Trained(config, variables, epoch, shape, class_names, digest.hexdigest()[:16])


def _are(values, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
