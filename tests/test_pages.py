import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from simclr_cifar import pages

NAMES = ('<script>alert(1)</script>', 'a"b\'c<img src=x onerror=alert(1)>', 'cat & dog', 'W' * 60)
C = len(NAMES)
TITLE = f'{NAMES[0]} {NAMES[3]}'
NEAREST = 'Classes of the 4 nearest test images'
TEMPLATE = """
{% extends 'base.html' %}
{% import 'macros.html' as macros %}
{% block content %}
{{ macros.cards([(names[0], 0.1234, names[1]), ('seeds', '57.46 ± 0.31', '')]) }}
{{ macros.figure('data:image/png;base64,', names[0], names[1]) }}
{{ macros.figure('<svg viewBox="0 0 9 9"><path d="M0 0h9"/></svg>', 'A line.', names[1]) }}
{{ macros.table(['class', names[0]], [[names[0], 1]], names[2]) }}
{{ macros.matrix([[0, 0], [1, 199]], names[:2], 'Small', small=true) }}
<div id="twins" class="twins">{{ macros.atlas(atlas, 'twins') }}{{ macros.picture(atlas, 4, names[0], 48) }}</div>
{% for id, data in explorers %}{{ macros.explorer(data, id) }}{% endfor %}
{% endblock %}
"""

# Queries of the gallery: position, neighbours. Picture p is of class p % C.
GALLERY = [(0, [1, 2, 3, 5]), (1, [4, 5, 6, 7]), (6, [2, 10, 3, 7]), (3, [7, 11, 15, 19]), (4, [0, 8, 12, 1])]
# Pairs of the cells, most similar first within a cell; cell (0, 3) has a count and no pair, (1, 0) neither.
CELLS = [(0, 1, 0.99), (4, 5, 0.98), (8, 1, 0.5), (0, 4, 0.97), (2, 3, 0.96), (3, 7, 0.95)]


def smooth_images(count, height=32, width=32, channels=3):
    """Pictures unlike each other that WebP can code well: uint8 [count, height, width, channels]."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 256, (count, 2, 2, channels)).astype(np.float64)
    down, right = np.linspace(0, 1, height), np.linspace(0, 1, width)
    return np.einsum('nabc,ah,bw->nhwc', corners, [1 - down, down], [1 - right, right]).astype(np.uint8)


def tiles_of(atlas):
    """Returns the pictures of an atlas, uint8 [rows * columns, height, width, 3], as CSS cuts them out."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(atlas['uri'].partition(',')[2]))).convert('RGB'))
    return np.stack(
        [
            pixels[top : top + atlas['height'], left : left + atlas['width']]
            for top in range(atlas['border'], atlas['rows'] * atlas['tile_height'], atlas['tile_height'])
            for left in range(atlas['border'], atlas['columns'] * atlas['tile_width'], atlas['tile_width'])
        ]
    )


def make_explorer(channels=3, names=NAMES):
    count = 24
    projection = np.stack([np.arange(12) % 4, np.arange(12) // 4], axis=1) * 10.0
    rng = np.random.default_rng(0)
    pictures = {
        'image_index': np.arange(count) * 3 + 100,
        'image_label': np.arange(count) % C,
        'images': smooth_images(count, channels=channels),
        'gallery_query': np.array([query for query, _ in GALLERY]),
        'gallery_neighbours': np.array([found for _, found in GALLERY]),
        'gallery_similarities': -np.sort(-rng.uniform(0, 1, (len(GALLERY), 4)).astype(np.float32)),
        'cell_query': np.array([query for query, _, _ in CELLS]),
        'cell_neighbour': np.array([neighbour for _, neighbour, _ in CELLS]),
        'cell_similarity': np.array([similarity for _, _, similarity in CELLS], np.float32),
        'projection_picture': np.arange(12) + 6,
        'projection_vote': (np.arange(12) + 6) % C - (np.arange(12) == 5),
        'projection_embedding': rng.normal(size=(12, 8)).astype(np.float32),
    }
    counts = np.array([[5, 1234, 0, 3], [0, 8, 0, 0], [1, 1, 6, 2], [0, 0, 0, 9]])
    votes = np.eye(C, dtype=int)
    return pages.explorer(pictures, {NEAREST: counts, 'Vote': votes}, list(names), 'test', projection)


def render(explorers):
    contents = [(f'{name}-gallery', NAMES[0]) for name, _ in explorers]
    template = pages._environment().from_string(TEMPLATE)
    atlas = pages.picture_atlas(smooth_images(6))
    return template.render(title=TITLE, names=NAMES, contents=contents, explorers=explorers, atlas=atlas)


@pytest.fixture(scope='module')
def page():
    return render([('first', make_explorer()), ('second', make_explorer(channels=1))])


@pytest.mark.parametrize('shape', [(7, 32, 32, 3), (5, 8, 8, 1), (6, 20, 27, 3), (1, 32, 32, 3)])
def test_every_picture_is_read_back_from_its_own_tile(shape):
    images = smooth_images(*shape)
    atlas = pages.picture_atlas(images)
    tiles = tiles_of(atlas)[: len(images)].astype(int)
    errors = np.abs(tiles[:, None] - images[None].astype(int)).mean(axis=(2, 3, 4))
    assert np.all(np.diagonal(errors) < 4)
    np.testing.assert_array_equal(np.argmin(errors, axis=1), np.arange(len(images)))


@pytest.mark.parametrize('side', [8, 21, 32])
def test_tiles_do_not_bleed_into_each_other(side):
    colours = np.array([[255, 0, 0], [0, 0, 255], [0, 255, 0], [0, 0, 0], [255, 255, 255]], np.uint8)
    images = np.broadcast_to(colours[np.arange(24) % 5][:, None, None], (24, side, side, 3))
    assert np.abs(tiles_of(pages.picture_atlas(images))[:24].astype(int) - images).max() < 24


def test_no_picture_makes_an_empty_tile():
    assert pages.picture_atlas(np.zeros((0, 32, 32, 3), np.uint8))['columns'] == 1


def test_clusters_stay_apart():
    # Six at right angles to each other: more than the two principal components, where t-SNE starts, can tell apart.
    labels = np.arange(90) % 6
    noise = np.random.default_rng(0).normal(0, 0.1, (90, 8)).astype(np.float32)
    embeddings = np.eye(8, dtype=np.float32)[labels] + noise
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    points = pages.project(embeddings)
    assert points.shape == (90, 2) and points.dtype == np.float64
    centres = np.stack([points[labels == label].mean(axis=0) for label in range(6)])
    radius = np.linalg.norm(points - centres[labels], axis=1).max()
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[~np.eye(6, dtype=bool)]
    assert distances.min() > 2 * radius
    np.testing.assert_array_equal(points, pages.project(embeddings))


@pytest.mark.parametrize('count', [0, 1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize('kind', ['random', 'equal', 'zero', 'two', 'flat'])
def test_few_or_equal_embeddings_have_a_projection(count, kind):
    embeddings = np.random.default_rng(0).normal(size=(count, 1 if kind == 'flat' else 8)).astype(np.float32)
    if kind == 'equal':
        embeddings[:] = embeddings[:1]
    elif kind == 'zero':
        embeddings[:] = 0
    elif kind == 'two':
        embeddings[::2] = embeddings[:1]
        embeddings[1::2] = embeddings[1:2]
    points = pages.project(embeddings)
    assert points.shape == (count, 2)
    assert np.all(np.isfinite(points))


def test_an_explorer_is_fit_for_json():
    data = make_explorer()
    assert json.loads(json.dumps(data))['client']['labels'] == [position % C for position in range(24)]
    assert data['client']['cells'][1] == [(0, 1, 0.99), (4, 5, 0.98), (8, 1, 0.5)]
    assert data['mistakes'][0] == (0, 1, round(1234 / 1242, 4))
    assert all(row != column and share for row, column, share in data['mistakes'])


def test_points_fill_the_drawing_and_keep_their_proportions():
    points = np.array([point[:2] for point in make_explorer()['points']])
    assert points.min() >= 0 and points[:, 0].max() <= pages._WIDTH and points[:, 1].max() <= pages._HEIGHT
    assert points[1, 0] - points[0, 0] == pytest.approx(points[4, 1] - points[0, 1], abs=0.2)


def test_shares_of_an_empty_row_are_nothing():
    assert pages.row_shares([[0, 0], [1, 3]]) == [[0, 0], [0.25, 0.75]]
    assert pages.percent(0.1234) == '12.3 %'
    assert pages.percent(float('nan')) == '\N{EN DASH}'


def test_a_page_is_written_with_what_it_includes(tmp_path):
    pages.render('base.html', tmp_path / 'page.html', title=NAMES[0], contents=[('there', NAMES[2])])
    text = (tmp_path / 'page.html').read_text()
    sources = pages._environment().loader
    for name in ('style.css', 'explorer.js'):
        assert sources.get_source(None, name)[0].strip() in text
    assert '<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>' in text
    assert '<a href="#there">cat &amp; dog</a>' in text


def test_names_are_text(page):
    assert '<script>alert' not in page
    assert page.count('<script') == 3  # The data of two explorers and explorer.js.
    assert page.count('</script>') == 3
    for tag in re.findall(r'<[a-z][^>]*>', page):
        assert 'a"b' not in tag and "b'c" not in tag


def test_the_page_holds_everything_itself(page):
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(('data:', '#')), source
    for source in re.findall(r'url\(([^)]*)', page):
        assert source.startswith('"data:image/webp;base64,'), source[:40]
    assert 'http' not in re.sub(r'base64,[^"]*', '', page)
    assert '@import' not in page and 'fetch(' not in page and 'innerHTML' not in page
    for name in re.findall(r'href="#([^"]*)"', page):
        assert f'id="{name}"' in page
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))


def test_a_picture_is_stored_once(page):
    assert page.count('data:image/webp') == 3  # Of two explorers and the twins.
    assert page.count('data:image') == 4  # And the figure's.


def test_a_matrix_without_script_has_its_figures(page):
    assert re.search(r'title="[^"]*: 99\.4 %, 1,234">', page)
    assert re.search(r'class="right strong" style="--heat: 100%" title="W{60} → W{60}: 100\.0 %, 9">', page)
    assert '&lt;1' in page
