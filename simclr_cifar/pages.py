"""Pages: templates to one file that opens offline, pictures packed into one image, and what an explorer shows."""

import base64
import io
import math
import pathlib

import jinja2
import numpy as np
from PIL import Image

from simclr_cifar.files import write

# Of 255, CIFAR's pictures are off by 4 on average at 80. WebP has half as many pixels of colour as of brightness and
# blends neighbouring ones, so a picture's edge is repeated around it: else its neighbour's colour would come in.
_WEBP_QUALITY = 80
_BORDER = 2
_TSNE_ITERATIONS = 500
_PERPLEXITY = 30
# The projection's drawing, in units of its own, and its margin.
_WIDTH, _HEIGHT, _MARGIN = 640, 480, 16
_MISTAKES = 8


def render(template: str, path: pathlib.Path, **context) -> None:
    """Writes a template of this package, filled from the context, in which every string is text and no markup.

    Raises:
      jinja2.UndefinedError: the template names something that the context lacks.
    """
    write(path, _environment().get_template(template).render(**context))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('simclr_cifar'),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {'percent': percent, 'thousands': thousands, 'row_shares': row_shares}
    return environment


def percent(value: float, digits: int = 1) -> str:
    """Returns a share in percent, '12.3 %', or a dash where it is no number."""
    return f'{100 * value:.{digits}f} %' if math.isfinite(value) else '\N{EN DASH}'


def thousands(value: int) -> str:
    """Returns a whole number with commas between thousands."""
    return f'{value:,}'


def row_shares(counts) -> list[list[float]]:
    """Returns each count, [R, C], over its row's sum; 0 in a row without counts."""
    counts = np.asarray(counts, np.float64)
    return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()


def data_uri(kind: str, image: bytes) -> str:
    """Returns an encoded image, 'png' or 'webp', as the URI that a page shows it by."""
    return f'data:image/{kind};base64,' + base64.b64encode(image).decode()


def picture_atlas(images: np.ndarray, quality: int = _WEBP_QUALITY) -> dict:
    """Packs pictures into one image, a grid of tiles filled row by row.

    Args:
      images: uint8 [M, H, W, C], C 1 or 3.
      quality: WebP's, 0 to 100.

    Returns:
      uri, the image as a data URI; columns and rows of the grid; width and height of a picture; border, what is around
      it in its tile on the left and above; tile_width and tile_height.
    """
    count, height, width, channels = images.shape
    columns = max(math.ceil(math.sqrt(count)), 1)
    rows = max(math.ceil(count / columns), 1)
    tile_height, tile_width = (size + size % 2 + 2 * _BORDER for size in (height, width))
    tiles = np.pad(
        np.broadcast_to(images, (count, height, width, 3)) if channels == 1 else images,
        ((0, 0), (_BORDER, _BORDER + height % 2), (_BORDER, _BORDER + width % 2), (0, 0)),
        mode='edge',
    )
    tiles = np.concatenate([tiles, np.full((rows * columns - count, *tiles.shape[1:]), 128, np.uint8)])
    grid = tiles.reshape(rows, columns, tile_height, tile_width, 3).swapaxes(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(grid.reshape(rows * tile_height, columns * tile_width, 3)).save(
        buffer, 'webp', quality=quality, method=6
    )
    return {
        'uri': data_uri('webp', buffer.getvalue()),
        'columns': columns,
        'rows': rows,
        'width': width,
        'height': height,
        'border': _BORDER,
        'tile_width': tile_width,
        'tile_height': tile_height,
    }


def project(embeddings: np.ndarray) -> np.ndarray:
    """Returns the t-SNE of embeddings in two dimensions, the same at every call.

    Args:
      embeddings: float32 [T, D], of unit norm, so that Euclidean neighbours are cosine neighbours.

    Returns:
      float64 [T, 2]; all 0 where there are fewer than 3 embeddings or no two that differ.
    """
    count = len(embeddings)
    if count < 3 or np.ptp(embeddings, axis=0).max(initial=0) < 1e-6:
        return np.zeros((count, 2))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # t-SNE starts from two principal components, which one dimension does not have.
    padded = np.pad(embeddings, ((0, 0), (0, max(2 - embeddings.shape[1], 0)))).astype(np.float64)
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (count - 1) / 3),
        init='pca',
        random_state=0,
        max_iter=_TSNE_ITERATIONS,
    )
    # Threads that wait for each other cost more than they save on so few points, several times over on busy cores.
    with threadpool_limits(1):
        return tsne.fit_transform(padded).astype(np.float64)


def explorer(
    pictures: dict[str, np.ndarray],
    confusions: dict[str, np.ndarray],
    class_names: list[str],
    split: str,
    projection: np.ndarray,
) -> dict:
    """Returns what the explorer macro shows, all of it fit for JSON.

    Args:
      pictures: the arrays of a run's pictures.npz; see `evaluate`.
      confusions: heading to counts, int [C, C]; the pictures' pairs are behind the first one's cells. None where there
        are no classes.
      class_names: of the C classes.
      split: of the pictures.
      projection: float [T, 2], of pictures['projection_embedding'].

    Returns:
      atlas, as `picture_atlas`; class_names; split; confusions, (heading, counts) each; mistakes, the first confusion's
      (row, column, share) with the largest shares; points, (x, y, class, vote) in a drawing of width and height;
      client, what explorer.js needs, pictures by their number in the atlas.
    """
    labels = pictures['image_label'].tolist()
    headings = [(heading, counts.tolist()) for heading, counts in confusions.items()]
    counts = headings[0][1] if headings else []
    places = _fit(projection).tolist()
    shown, votes = pictures['projection_picture'].tolist(), pictures['projection_vote'].tolist()
    return {
        'atlas': picture_atlas(pictures['images']),
        'class_names': list(class_names),
        'split': split,
        'confusions': headings,
        'mistakes': _mistakes(counts) if headings else [],
        'points': [(*place, labels[picture], vote) for place, picture, vote in zip(places, shown, votes, strict=True)],
        'width': _WIDTH,
        'height': _HEIGHT,
        'client': {
            'classes': list(class_names),
            'split': split,
            'counts': counts,
            'indices': pictures['image_index'].tolist(),
            'labels': labels,
            'cells': _cells(pictures, len(class_names)),
            'gallery': [
                {'query': query, 'neighbours': neighbours, 'similarities': similarities}
                for query, neighbours, similarities in zip(
                    pictures['gallery_query'].tolist(),
                    pictures['gallery_neighbours'].tolist(),
                    _rounded(pictures['gallery_similarities']),
                    strict=True,
                )
            ],
            'points': [
                {'place': place, 'picture': picture, 'vote': vote}
                for place, picture, vote in zip(places, shown, votes, strict=True)
            ],
        },
    }


def _cells(pictures: dict[str, np.ndarray], classes: int) -> list[list]:
    """Returns for each of the cells, row by row, its pairs (query, neighbour, similarity)."""
    labels = pictures['image_label']
    cells = [[] for _ in range(classes**2)]
    for query, neighbour, similarity in zip(
        pictures['cell_query'].tolist(),
        pictures['cell_neighbour'].tolist(),
        _rounded(pictures['cell_similarity']),
        strict=True,
    ):
        cells[labels[query] * classes + labels[neighbour]].append((query, neighbour, similarity))
    return cells


def _mistakes(counts: list[list[int]]) -> list[tuple[int, int, float]]:
    shares = np.array(row_shares(counts))
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind='stable')[:_MISTAKES]
    rows, columns = (axis.tolist() for axis in np.unravel_index(order, shares.shape))
    found = zip(rows, columns, shares[rows, columns].tolist(), strict=True)
    return [(row, column, round(share, 4)) for row, column, share in found if share]


def _fit(projection: np.ndarray) -> np.ndarray:
    """Returns the points, [T, 2], moved and scaled alike on both axes to fill the drawing, in tenths of its unit."""
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    low, span = (projection.min(axis=0), np.ptp(projection, axis=0)) if len(projection) else (np.zeros(2), np.zeros(2))
    scale = np.min(room / np.maximum(span, 1e-9))
    return np.round((projection - low - span / 2) * scale + np.array([_WIDTH, _HEIGHT]) / 2, 1)


def _rounded(similarities: np.ndarray) -> list:
    return np.round(similarities.astype(np.float64), 4).tolist()
