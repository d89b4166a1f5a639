"""Figures of embeddings as a whole: clusters, a linear probe, alignment, uniformity, rank. Pure functions of arrays."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_KMEANS_STARTS = 10


def clustering(embeddings: np.ndarray, labels: np.ndarray, num_clusters: int) -> dict[str, float]:
    """Returns how well k-means clusters of the embeddings agree with the classes.

    With mutual information I, entropies H and expectation E over random clusterings of the same sizes, nmi is
    I / mean(H) and ami (I - E[I]) / (mean(H) - E[I]), mean(H) being the arithmetic mean of the classes' and the
    clusters' entropies (Vinh et al., 2010, "Information Theoretic Measures for Clusterings Comparison"). The clusters
    are the same on any number of processors. Embeddings with fewer distinct points than clusters make fewer clusters.

    Args:
      embeddings: float [N, D], finite.
      labels: int [N].
      num_clusters: at most N.

    Returns:
      nmi and ami; 1 is agreement, and about 0 in ami is what chance would give.
    """
    # Two thirds of a second to import, which only this function needs.
    import threadpoolctl
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    # The order in which several threads add up their shares of a centre is left to chance.
    with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        clusters = KMeans(num_clusters, n_init=_KMEANS_STARTS, random_state=0).fit_predict(embeddings)
    return {
        'nmi': float(normalized_mutual_info_score(labels, clusters)),
        'ami': float(adjusted_mutual_info_score(labels, clusters)),
    }


def linear_probe(
    train_embeddings: np.ndarray,
    train_labels: np.ndarray,
    embeddings: np.ndarray,
    num_classes: int,
    ridge: float = 1.0,
) -> np.ndarray:
    """Returns the classes, int32 [N], that a linear classifier of training embeddings predicts for others.

    Ridge regression of one-hot labels with an intercept, which is not penalised: with X and Y the training embeddings
    and one-hot labels less their means, the weights are (X^T X + ridge I)^-1 X^T Y (Hoerl & Kennard, 1970); the largest
    output is the prediction, the lower label of equals.

    Args:
      train_embeddings: float32 [M, D].
      train_labels: int [M], in [0, num_classes).
      embeddings: float32 [N, D].
      num_classes: C.
      ridge: the penalty on the squared weights, above 0.
    """
    return np.asarray(_linear_probe(train_embeddings, train_labels, embeddings, num_classes, ridge))


@functools.partial(jax.jit, static_argnames='num_classes')
def _linear_probe(train_embeddings, train_labels, embeddings, num_classes, ridge):
    targets = jax.nn.one_hot(train_labels, num_classes)
    centre, target_mean = jnp.mean(train_embeddings, axis=0), jnp.mean(targets, axis=0)
    # The means solve for the intercept, and centring loses fewer digits than a column of ones.
    centred = train_embeddings - centre[None]
    exact = lax.Precision.HIGHEST
    gram = jnp.einsum('nd,ne->de', centred, centred, precision=exact)
    moments = jnp.einsum('nd,nc->dc', centred, targets - target_mean[None], precision=exact)
    factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(len(gram)))
    weights = jax.scipy.linalg.cho_solve(factor, moments)
    outputs = jnp.einsum('nd,dc->nc', embeddings - centre[None], weights, precision=exact) + target_mean[None]
    return jnp.argmax(outputs, axis=1)


def alignment(embeddings: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean squared distance ||x - y||^2 over all pairs of different images of the same class.

    Exact, as a class of n images at mean m has sum over its ordered pairs of ||x - y||^2 = 2 n sum ||x - m||^2. Source:
    "Understanding Contrastive Representation Learning through Alignment and Uniformity" (Wang & Isola, 2020).

    Args:
      embeddings: float [N, D].
      labels: int [N].

    Returns:
      In [0, 4] for unit norm, less is closer; NaN where no class has 2 images.
    """
    embeddings = np.asarray(embeddings, np.float64)
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    num_pairs = np.sum(counts * (counts - 1))
    if not num_pairs:
        return float('nan')
    means = np.stack([np.bincount(labels, column) for column in embeddings.T], axis=1) / counts[:, None]
    squared_distances = np.sum((embeddings - means[labels]) ** 2, axis=1)
    return float(2 * np.sum(counts * np.bincount(labels, squared_distances)) / num_pairs)


def uniformity(embeddings: np.ndarray) -> float:
    """Returns log E exp(-2 ||x - y||^2) over all pairs of different images, exact.

    Source: "Understanding Contrastive Representation Learning through Alignment and Uniformity" (Wang & Isola, 2020).

    Args:
      embeddings: float32 [N, D], unit norm; N at least 2.

    Returns:
      In [-8, 0] for unit norm: 0 where all are equal, less is more uniform.
    """
    row_means = np.asarray(_mean_kernels(embeddings), np.float64)
    return float(np.log(np.mean(row_means)))


@jax.jit
def _mean_kernels(embeddings):
    """[N, D] -> [N], the mean of exp(-2 ||x - y||^2) over the others."""
    squared_norms = jnp.sum(embeddings**2, axis=1)
    indices = jnp.arange(len(embeddings))

    def mean_kernel(index):
        products = jnp.einsum('d,nd->n', embeddings[index], embeddings, precision=lax.Precision.HIGHEST)
        squared_distances = squared_norms[index] + squared_norms - 2 * products
        kernels = jnp.exp(-2 * jnp.maximum(squared_distances, 0))
        return jnp.sum(jnp.where(indices == index, 0, kernels)) / (len(embeddings) - 1)

    return lax.map(mean_kernel, indices, batch_size=256)


def effective_rank(embeddings: np.ndarray) -> float:
    """Returns the exponential of the entropy of the singular values, normalised to sum 1: over how many dimensions.

    Of the [N, D] matrix as it is, not centred, from the eigenvalues of its Gram matrix in float64; singular values that
    are rounding are none. Source: "The effective rank" (Roy & Vetterli, 2007); RankMe (Garrido et al., 2023).

    Args:
      embeddings: float [N, D].

    Returns:
      From 1, where all lie on one line through the origin (all equal, all zero), to D.
    """
    embeddings = np.asarray(embeddings, np.float64)
    eigenvalues = np.linalg.eigvalsh(embeddings.T @ embeddings)
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    singular_values = np.sqrt(eigenvalues[kept])
    shares = singular_values / np.sum(singular_values)
    return float(np.exp(-np.sum(shares * np.log(shares))))
