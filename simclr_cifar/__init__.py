"""Image-similarity embeddings on CIFAR-10 by metric learning, in JAX and Flax."""

__version__ = '0.1.0'
