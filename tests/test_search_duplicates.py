"""Copies in an index, and what only looks a little alike."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from search_folders import make_encoder
from test_search_commands import run

from simclr_cifar.search import Index, duplicates


def photograph(number):
    """Coarse shapes with some grain, 64 pixels square."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse, float) + rng.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8))


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number in range(8):
        photograph(number).save(folder / f'{number}.png')
    one, two = photograph(0), photograph(1)
    one.save(folder / '0-coded.jpg', quality=40)
    one.resize((200, 200)).save(folder / '0-large.png')
    ImageEnhance.Brightness(one).enhance(1.2).save(folder / '0-brighter.png')
    two.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / '1-mirrored.png')
    (folder / '2-same.png').write_bytes((folder / '2.png').read_bytes())
    for name in ('white', 'black'):  # Which have nothing to compare.
        Image.new('RGB', (64, 64), name).save(folder / f'{name}.png')
    return Index.build(tmp_path / 'index', make_encoder(), folder)


def names(groups):
    return [sorted(match.path.rpartition('/')[2] for match in group) for group in groups]


COPIES = [
    ['0-brighter.png', '0-coded.jpg', '0-large.png', '0.png'],
    ['1-mirrored.png', '1.png'],
    ['2-same.png', '2.png'],
]


def test_copies_are_found_and_nothing_else(index):
    groups = duplicates.find(index)
    assert names(groups) == COPIES
    for group in groups:
        assert [match.row for match in group] == sorted(match.row for match in group)
        assert all(duplicates.SIMILARITY <= match.similarity <= 1 for match in group)
    assert [match.similarity for match in groups[2]] == [1, 1]


def test_the_same_file_is_a_copy_at_any_similarity_even_when_it_is_gone(index, tmp_path):
    assert names(duplicates.find(index, 1.1)) == [['2-same.png', '2.png']]
    for name in ('2.png', '2-same.png', '1.png'):
        (tmp_path / 'pictures' / name).unlink()
    assert names(duplicates.find(index)) == [COPIES[0], COPIES[2]]


def test_textures_equal_their_definition():
    grey = np.random.default_rng(0).uniform(0, 255, (2, 5, 5)).astype(np.float32)
    for picture, texture in zip(grey.astype(np.float64), duplicates._textures(grey), strict=True):
        fine = np.zeros((5, 5))
        for row in range(5):
            for column in range(5):
                around = [
                    picture[min(max(row + i, 0), 4), min(max(column + j, 0), 4)] for i in (-1, 0, 1) for j in (-1, 0, 1)
                ]
                fine[row, column] = picture[row, column] - np.mean(around)
        fine -= fine.mean()
        np.testing.assert_allclose(texture, (fine / np.sqrt(np.sum(fine**2) + 25 * 2.0**2)).ravel(), atol=1e-5)


def test_groups_are_printed(index, capsys, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
    assert run('duplicates', f'--index={index.path}') == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert total == '3 groups of copies, 8 pictures, 5 more than needed'
    assert [line.rpartition('/')[2] for line in lines[:5]] == [*sorted(COPIES[0]), '']
    assert run('duplicates', f'--index={index.path}', '--json') == 0
    groups = json.load(io.StringIO(capsys.readouterr().out))
    assert [len(group) for group in groups] == [4, 2, 2]
    assert run('duplicates', f'--index={index.path}', '--similarity=x') == 2
