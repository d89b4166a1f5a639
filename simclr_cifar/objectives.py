"""Objectives: unit-norm embeddings to a loss and an in-batch accuracy. Pure functions of arrays."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from simclr_cifar import pieces

# Of 'batch' negatives at once: 64 MB.
_LARGEST_LOGITS = 2**24


def anchor_positive(
    anchors: jax.Array,
    positives: jax.Array,
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
      temperature: above 0.
      negatives: 'group' sets an anchor against the C positives of its group; 'batch' against the positives of all
        groups, save the other positives of its own class, which are no negatives; as many anchors at a time as have
        _LARGEST_LOGITS logits.
      axis_name: the replicas' named axis, over which 'batch' gathers the positives; None: this replica's only.

    Returns:
      (loss, accuracy): float32 scalars, means over this replica's anchors.

    Example:
      >>> eye = jnp.eye(3)[None]
      >>> loss, accuracy = anchor_positive(eye, eye, temperature=1.0)
      >>> print(f'{loss:.4f} {accuracy:.0f}')  # log(e + 2) - 1
      0.5514 1
    """
    anchors, positives = anchors.astype(jnp.float32), positives.astype(jnp.float32)
    num_groups, num_classes, _ = anchors.shape
    if negatives == 'group':
        logits = jnp.einsum('gae,gpe->gap', anchors, positives, precision=lax.Precision.HIGHEST) / temperature
        losses, right = _cross_entropy(logits, jnp.broadcast_to(jnp.arange(num_classes), (num_groups, num_classes)))
    elif negatives == 'batch':
        first_group = 0
        if axis_name is not None:
            positives = lax.all_gather(positives, axis_name, tiled=True)
            first_group = lax.axis_index(axis_name) * num_groups
        groups = first_group + jnp.arange(num_groups)

        def against_all(anchors_and_groups):
            return _against_all_positives(*anchors_and_groups, positives, temperature)

        size = pieces.largest_divisor(num_groups, _LARGEST_LOGITS // (len(positives) * num_classes**2))
        losses, right = pieces.concatenated(against_all, (anchors, groups), size)
    else:
        raise ValueError(f"negatives must be 'group' or 'batch', not {negatives!r}")
    return jnp.mean(losses), jnp.mean(right.astype(jnp.float32))


def _against_all_positives(anchors, groups, positives, temperature):
    """anchors [g, C, D], their groups' numbers [g], positives [G, C, D] -> (losses, right), [g, C] each."""
    num_classes = anchors.shape[1]
    logits = jnp.einsum('gae,hpe->gahp', anchors, positives, precision=lax.Precision.HIGHEST) / temperature
    same_class = jnp.eye(num_classes, dtype=bool)[None, :, None, :]
    same_group = (groups[:, None] == jnp.arange(len(positives))[None, :])[:, None, :, None]
    logits = jnp.where(same_class & ~same_group, -jnp.inf, logits)
    own = groups[:, None] * num_classes + jnp.arange(num_classes)[None, :]
    return _cross_entropy(logits.reshape(*anchors.shape[:2], -1), own)


def _cross_entropy(logits, own):
    """logits [G, C, P], own positives' indices [G, C] -> (losses, whether the largest logit is the own), [G, C]."""
    own_logits = jnp.take_along_axis(logits, own[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - own_logits, jnp.argmax(logits, axis=-1) == own


def chance_loss(num_groups: int, num_classes: int, negatives: str) -> float:
    """Returns `anchor_positive`'s loss where all embeddings are equal: the log of how many positives compete."""
    competing = num_classes if negatives == 'group' else 1 + num_groups * (num_classes - 1)
    return math.log(competing)
