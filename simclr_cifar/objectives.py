"""Objectives: unit-norm embeddings to a loss and an in-batch accuracy. Pure functions of arrays.

A batch is pairs of embeddings, float [G, C, D] anchors and as many positives: G groups of C pairs. Who is of one class
is told by labels, int [G, C], of any numbers: the classes of images, or a number for each pair where nothing else is
known to be alike. Losses are means over this replica's anchors; with an axis name those of all replicas are what an
anchor is compared with, and the mean of the replicas' gradients is the gradient of the global batch's loss.

Similarities are computed in float32 and for as many anchors at a time as have _LARGEST_LOGITS of them, and in the
gradient again: memory grows with the batch, not with its square.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import lax

from simclr_cifar import pieces
from simclr_cifar.config import InputError

# Of a batch at once: 64 MB.
_LARGEST_LOGITS = 2**24


def anchor_positive(
    anchors: jax.Array,
    positives: jax.Array,
    labels: jax.Array,
    temperature: float,
    negatives: str = 'group',
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of every anchor finding its own positive among positives of other classes.

    With logits[a, p] = <anchor a, positive p> / temperature, the loss is the mean over anchors of
    logsumexp_p logits[a, p] - logits[a, a], and the accuracy how often logits[a, a] is an anchor's largest logit (the
    first of equals). Source: the Keras example "Metric learning for image similarity search" (M. Kelcey, 2020), one
    group being its batch; with 'batch' negatives it is the N-pair loss (Sohn, 2016) on several pairs per class.

    Args:
      anchors: float [G, C, D], unit norm; one anchor for each of G groups and C classes.
      positives: float [G, C, D], unit norm; positives[g, c] belongs to anchors[g, c].
      labels: int [G, C]; within a group they differ.
      temperature: above 0.
      negatives: 'group' sets an anchor against the C positives of its group; 'batch' against the positives of all
        groups, save the other positives of its own class, which are no negatives.
      axis_name: the replicas' named axis, over which 'batch' gathers the positives; None: this replica's only.

    Returns:
      (loss, accuracy): float32 scalars.

    Example:
      >>> eye = jnp.eye(3)[None]
      >>> loss, accuracy = anchor_positive(eye, eye, jnp.arange(3)[None], temperature=1.0)
      >>> print(f'{loss:.4f} {accuracy:.0f}')  # log(e + 2) - 1
      0.5514 1
    """
    if negatives == 'group':
        logits = _similarities('gae,gpe->gap', anchors, positives) / temperature
        own = jnp.broadcast_to(jnp.arange(anchors.shape[1]), labels.shape)
        losses, right = _cross_entropy(logits, own)
        return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))
    if negatives != 'batch':
        raise ValueError(f"negatives must be 'group' or 'batch', not {negatives!r}")
    anchors, positives, labels = _flat(anchors, positives, labels)
    numbers = _numbers(len(anchors), axis_name)
    positives, all_labels = _of_all_replicas((positives, labels), axis_name)

    def of_some(anchors, labels, numbers):
        logits = _similarities('ae,pe->ap', anchors, positives) / temperature
        own = numbers[:, None] == jnp.arange(len(positives))[None, :]
        of_class = labels[:, None] == all_labels[None, :]
        return _cross_entropy(jnp.where(of_class & ~own, -jnp.inf, logits), numbers)

    return _mean_over_anchors(of_some, (anchors, labels, numbers), len(positives))


def sup_con(
    anchors: jax.Array,
    positives: jax.Array,
    labels: jax.Array,
    temperature: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Supervised contrastive loss: every embedding finds all of its class among all others, each in a softmax.

    Of all 2 G C embeddings z, anchors and positives alike, with logits[i, j] = <z_i, z_j> / temperature and P(i) the
    others of i's class, the loss is the mean over i of -1 / |P(i)| sum_{p in P(i)} (logits[i, p] - logsumexp_{j != i}
    logits[i, j]): the average over positives is outside the logarithm. The accuracy is how often the largest logit of
    an embedding is with one of its class. Source: L_out of "Supervised Contrastive Learning" (Khosla et al., 2020).

    Args:
      anchors: float [G, C, D], unit norm.
      positives: float [G, C, D], unit norm.
      labels: int [G, C], of anchors[g, c] and of positives[g, c].
      temperature: above 0.
      axis_name: the replicas' named axis, over which the others are gathered; None: this replica's only.

    Returns:
      (loss, accuracy): float32 scalars.
    """
    pair = _flat(anchors, positives)
    embeddings, labels = jnp.concatenate(pair), jnp.tile(labels.reshape(-1), 2)
    numbers = _numbers(len(embeddings), axis_name)
    others, all_labels = _of_all_replicas((embeddings, labels), axis_name)

    def of_some(embeddings, labels, numbers):
        logits = _similarities('ae,pe->ap', embeddings, others) / temperature
        itself = numbers[:, None] == jnp.arange(len(others))[None, :]
        of_class = (labels[:, None] == all_labels[None, :]) & ~itself
        logits = jnp.where(itself, -jnp.inf, logits)
        mean_positive = jnp.sum(jnp.where(of_class, logits, 0), axis=1) / jnp.sum(of_class, axis=1)
        right = jnp.take_along_axis(of_class, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - mean_positive, right

    return _mean_over_anchors(of_some, (embeddings, labels, numbers), len(others))


def nt_xent(
    anchors: jax.Array,
    positives: jax.Array,
    temperature: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Normalised temperature-scaled cross-entropy: every embedding finds the other of its pair among all others.

    `sup_con` where nothing is of a class but the two of a pair, and so with one positive each. Source: "A Simple
    Framework for Contrastive Learning of Visual Representations" (Chen et al., 2020).

    Args:
      anchors: float [G, C, D], unit norm.
      positives: float [G, C, D], unit norm; positives[g, c] belongs to anchors[g, c].
      temperature: above 0.
      axis_name: as of `sup_con`.

    Returns:
      (loss, accuracy): float32 scalars.
    """
    pairs = _numbers(math.prod(anchors.shape[:2]), axis_name).reshape(anchors.shape[:2])
    return sup_con(anchors, positives, pairs, temperature, axis_name)


def siglip(
    anchors: jax.Array,
    positives: jax.Array,
    labels: jax.Array,
    temperature: float,
    bias: float,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Pairwise sigmoid loss: every anchor and positive are told to be of one class, or of two, each on their own.

    With logits[a, p] = <anchor a, positive p> / temperature + bias and z[a, p] = 1 where both are of one class,
    otherwise -1, the loss is the mean over anchors of sum_p log(1 + exp(-z[a, p] logits[a, p])). The accuracy is how
    often an anchor's largest logit is with a positive of its class. Source: "Sigmoid Loss for Language Image
    Pre-Training" (Zhai et al., 2023), whose temperature and bias are learnt, from 0.1 and -10.

    Args:
      anchors: float [G, C, D], unit norm.
      positives: float [G, C, D], unit norm.
      labels: int [G, C], of anchors[g, c] and of positives[g, c].
      temperature: above 0.
      bias: added to every logit; below 0 as most pairs are of two classes.
      axis_name: the replicas' named axis, over which the positives are gathered; None: this replica's only.

    Returns:
      (loss, accuracy): float32 scalars.
    """
    anchors, positives, labels = _flat(anchors, positives, labels)
    positives, all_labels = _of_all_replicas((positives, labels), axis_name)

    def of_some(anchors, labels):
        logits = _similarities('ae,pe->ap', anchors, positives) / temperature + bias
        of_class = labels[:, None] == all_labels[None, :]
        losses = jnp.sum(jax.nn.softplus(jnp.where(of_class, -logits, logits)), axis=1)
        return losses, jnp.take_along_axis(of_class, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]

    return _mean_over_anchors(of_some, (anchors, labels), len(positives))


def simplex(
    anchors: jax.Array, positives: jax.Array, labels: jax.Array, temperature: float, label_smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy of every embedding finding its class among fixed directions, a regular simplex's vertices.

    Class c's vertex v_c, of C, is 1 - 1/C in dimension c and -1/C in the others of the first C, then of norm 1: any two
    are equally far apart, as far as C directions can be. With logits[c] = <z, v_c> / temperature the loss is the
    mean over all embeddings of the cross-entropy with targets of label_smoothing / C for every class and
    1 - label_smoothing more for the own. The accuracy is how often the own class has the largest logit.

    It is the normalised softmax (Zhai & Wu, 2018, "Classification is a Strong Baseline for Deep Metric Learning") with
    class vectors that need no training, as the layer before them can turn its outputs any way (Pernici et al., 2019,
    "Fix Your Features: Stationary and Maximally Discriminative Embeddings using Regular Polytope (Fixed Classifier)
    Networks"; Zhu et al., 2021, "A Geometric Analysis of Neural Collapse with Unconstrained Features").

    Args:
      anchors: float [G, C, D], unit norm, D at least C.
      positives: float [G, C, D], unit norm.
      labels: int [G, C], of anchors[g, c] and of positives[g, c], each in [0, C).
      temperature: above 0.
      label_smoothing: from 0 to 1.

    Returns:
      (loss, accuracy): float32 scalars, of this replica's embeddings.
    """
    num_classes, dimensions = anchors.shape[1:]
    pair = _flat(anchors, positives)
    embeddings, labels = jnp.concatenate(pair), jnp.tile(labels.reshape(-1), 2)
    vertices = np.eye(num_classes, dimensions)
    vertices[:, :num_classes] -= 1 / num_classes
    vertices *= math.sqrt(num_classes / (num_classes - 1))
    logits = _similarities('ae,ce->ac', embeddings, vertices) / temperature
    losses, right = _cross_entropy(logits, labels)
    # Of targets that are all alike: the mean over classes.
    evenly = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    losses = (1 - label_smoothing) * losses + label_smoothing * evenly
    return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))


def _similarities(subscripts, embeddings, others):
    embeddings, others = embeddings.astype(jnp.float32), others.astype(jnp.float32)
    return jnp.einsum(subscripts, embeddings, others, precision=lax.Precision.HIGHEST)


def _flat(*arrays):
    """[G, C, ...] -> [G * C, ...] each."""
    return [array.reshape(-1, *array.shape[2:]) for array in arrays]


def _of_all_replicas(arrays, axis_name):
    """[N, ...] -> [R * N, ...] each; their gradient is the sum of the replicas'."""
    return arrays if axis_name is None else lax.all_gather(arrays, axis_name, tiled=True)


def _numbers(count, axis_name):
    """The numbers of this replica's rows among those of all: int32 [count]."""
    first = 0 if axis_name is None else lax.axis_index(axis_name) * count
    return first + jnp.arange(count)


def _mean_over_anchors(of_some, anchors, num_others):
    """The means of what a function of some anchors returns for each: its loss and whether it is right."""
    size = pieces.largest_divisor(len(anchors[0]), _LARGEST_LOGITS // num_others)
    losses, right = pieces.concatenated(lambda anchors: of_some(*anchors), anchors, size)
    return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))


def _cross_entropy(logits, own):
    """logits [..., P], own positives' indices [...] -> (losses, whether the largest logit is the own), [...]."""
    own_logits = jnp.take_along_axis(logits, own[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own_logits, jnp.argmax(logits, axis=-1) == own


def make_objective(config: ml_collections.ConfigDict, axis_name: str | None = None) -> Callable:
    """Returns the config's objective as (anchors, positives, labels) -> (loss, accuracy)."""
    temperature = config.temperature
    return {
        'anchor_positive': lambda *batch: anchor_positive(*batch, temperature, config.negatives, axis_name),
        'sup_con': lambda *batch: sup_con(*batch, temperature, axis_name),
        'nt_xent': lambda anchors, positives, _: nt_xent(anchors, positives, temperature, axis_name),
        'siglip': lambda *batch: siglip(*batch, temperature, config.logit_bias, axis_name),
        'simplex': lambda *batch: simplex(*batch, temperature, config.label_smoothing),
    }[config.objective]


def require_fit(config: ml_collections.ConfigDict, num_classes: int) -> None:
    """Checks that the config's embeddings have room for its objective.

    Raises:
      InputError: they have not.
    """
    if config.objective == 'simplex' and config.embedding_dim < num_classes:
        raise InputError(
            f'--config.embedding_dim={config.embedding_dim}: the simplex of {num_classes} classes needs as many '
            f'dimensions; make it {num_classes} or more'
        )


def chance(config: ml_collections.ConfigDict, num_classes: int) -> tuple[float, float]:
    """Returns the loss and the accuracy of guessing: where all embeddings are equal.

    Args:
      config: the run's.
      num_classes: how many classes there are to draw pairs from.
    """
    groups = config.groups_per_batch
    pairs, of_class = (groups, 1) if config.pairs == 'views' else (groups * num_classes, groups)
    if config.objective == 'anchor_positive':
        competing = num_classes if config.negatives == 'group' else 1 + pairs - of_class
        return math.log(competing), 1 / competing
    if config.objective == 'simplex':
        return math.log(num_classes), 1 / num_classes
    if config.objective == 'siglip':
        logit = 1 / config.temperature + config.logit_bias
        return of_class * _softplus(-logit) + (pairs - of_class) * _softplus(logit), of_class / pairs
    others = 2 * pairs - 1
    return math.log(others), (1 if config.objective == 'nt_xent' else 2 * of_class - 1) / others


def _softplus(number: float) -> float:
    return max(number, 0) + math.log1p(math.exp(-abs(number)))
