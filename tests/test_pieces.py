import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simclr_cifar import pieces


@pytest.mark.parametrize(
    ('count', 'limit', 'size'), [(12, 12, 12), (12, 100, 12), (12, 11, 6), (12, 5, 4), (7, 6, 1), (4, 0, 1)]
)
def test_pieces_are_as_long_as_divides_the_whole(count, limit, size):
    assert pieces.largest_divisor(count, limit) == size


@pytest.mark.parametrize('size', [1, 2, 3, 6])
def test_pieces_give_what_the_whole_gives(size):
    rows = {'a': np.arange(12.0).reshape(6, 2), 'b': np.arange(6)}

    def of_rows(rows):
        return rows['a'] * rows['b'][:, None], rows['b'] + 1

    for found, expected in zip(pieces.concatenated(of_rows, rows, size), of_rows(rows), strict=True):
        np.testing.assert_array_equal(found, expected)

    def of_columns(rows):
        return {'product': rows['a'].T @ rows['a'], 'count': jnp.sum(rows['b'])}

    jax.tree.map(np.testing.assert_array_equal, pieces.summed(of_columns, rows, size), of_columns(rows))


@pytest.mark.parametrize('size', [100, 1000])
def test_of_several_pieces_nothing_is_kept_for_the_gradient(size):
    def loss(rows):
        # Every sine's gradient takes a cosine of what it was given.
        def sines(rows):
            for _ in range(8):
                rows = jnp.sin(rows)
            return rows

        return jnp.sum(pieces.concatenated(sines, rows, size))

    _, gradient = jax.linearize(loss, jnp.ones((1000, 100)))
    kept = sum(leaf.size for leaf in jax.tree.leaves(gradient) if leaf.shape)
    assert kept // (1000 * 100) == (8 if size == 1000 else 1)
