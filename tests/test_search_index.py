"""An index against brute force, and an index that is damaged."""

import json
import os
import pathlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from search_folders import DIMENSIONS, make_encoder, make_folder, pixels, write_picture

from simclr_cifar import files
from simclr_cifar.config import InputError
from simclr_cifar.search import Index, approximate, nearest
from simclr_cifar.search.encoder import BATCH


def by_brute_force(encoder, paths, query, k):
    """(similarity, path) of the k most similar files, from their pixels, in float64."""
    embeddings = encoder.embed(paths).astype(np.float64)
    similarities = embeddings @ encoder.embed([query])[0].astype(np.float64)
    order = np.lexsort((np.arange(len(paths)), -similarities))[:k]
    return [(similarities[number], paths[number]) for number in order]


def same(matches, expected):
    assert [match.path for match in matches] == [path for _, path in expected]
    np.testing.assert_allclose([match.similarity for match in matches], [near for near, _ in expected], atol=1e-6)


def test_matches_are_the_most_similar_of_all_or_of_a_class(index, encoder, folder):
    paths = sorted(map(str, folder.rglob('*.png')))
    query = pixels(99)
    same(index.query(query, k=12), by_brute_force(encoder, paths, query, 12))
    dogs = [path for path in paths if '/dog/' in path]
    matches = index.query(query, k=3, class_name='dog')
    same(matches, by_brute_force(encoder, dogs, query, 3))
    assert {match.class_name for match in matches} == {'dog'}
    assert index.classes() == {'': 4, 'cat': 4, 'dog': 4}
    nearest = index.query(paths[5], k=1)[0]
    assert (nearest.path, nearest.row) == (paths[5], 5)
    assert nearest.similarity == pytest.approx(1)
    assert len(index) == 12
    several = index.search(encoder.embed(paths), 2)
    assert [matches[0].path for matches in several] == paths


def test_more_pictures_than_a_batch_are_embedded_in_their_order(tmp_path, encoder):
    paths = make_folder(tmp_path / 'many', 2 * BATCH + 30)
    index = Index.build(tmp_path / 'index', encoder, tmp_path / 'many')
    np.testing.assert_allclose(index.embeddings, encoder.embed(paths), atol=1e-6)


def test_what_is_like_nothing_has_no_match(index, encoder):
    query = encoder.embed([pixels(99)])
    near = index.look(query, 1)[1][0]
    assert index.look(query, 1, 'dog')[1][0] == near
    # By hand: the tenth nearest.
    assert near == pytest.approx(np.sort(index.embeddings @ query[0])[-10], abs=1e-6)
    assert len(index.query(pixels(99), k=2, threshold=near - 1e-4)) == 2
    assert index.query(pixels(99), k=2, threshold=near + 1e-4) == []
    # Of other classes, too: a stranger is a stranger.
    assert index.query(pixels(99), k=2, threshold=near + 1e-4, class_name='dog') == []


def test_the_threshold_is_that_of_most_of_its_own_pictures(index):
    similarities = np.array(index.embeddings) @ np.array(index.embeddings).T
    np.fill_diagonal(similarities, -2)
    tenth = np.sort(similarities, axis=1)[:, -10]
    assert index.threshold == pytest.approx(np.quantile(tenth, 0.05) - 1e-5, abs=1e-6)


def test_names_of_any_bytes_are_names(tmp_path, encoder):
    names = [b'quote\'".png', b'new\nline.png', b'\xff\xfe.png', '\N{SNOWMAN}.png'.encode()]
    for number, name in enumerate(names):
        write_picture(pathlib.Path(os.fsdecode(os.fsencode(tmp_path / 'odd') + b'/\xff-class/' + name)), number)
    index = Index.build(tmp_path / 'index', encoder, tmp_path / 'odd')
    for number, name in enumerate(names):
        match = index.query(pixels(number), k=1)[0]
        assert os.fsencode(match.path).endswith(name)
        assert match.class_name == '?-class'
    with pytest.raises(InputError, match='no such class') as error:
        index.query(pixels(0), k=1, class_name="x' OR '1'='1")
    assert '?-class' in str(error.value)


def test_a_closed_index_holds_no_file(index, encoder):
    def is_open():
        process = psutil.Process()
        held = {file.path for file in process.open_files()} | {file.path for file in process.memory_maps()}
        return {str(index.path / name) in held for name in ('pictures-1.sqlite', 'embeddings-1.npy')}

    index.close()
    with Index.open(index.path, encoder) as opened:
        assert len(opened.query(pixels(99), k=2)) == 2
        assert is_open() == {True}
    assert is_open() == {False}


@pytest.mark.parametrize('name', ['embeddings-1.npy', 'pictures-1.sqlite', 'manifest.json'])
@pytest.mark.parametrize('how', ['a bit', 'the highest bit', 'cut off', 'missing', 'empty'])
def test_damage_is_told(index, encoder, folder, name, how):
    path = index.path / name
    whole = bytearray(path.read_bytes())
    if 'bit' in how:
        whole[len(whole) // 2] ^= 0x80 if 'highest' in how else 0x40
        path.write_bytes(whole)
    elif how == 'cut off':
        path.write_bytes(whole[: len(whole) // 2])
    elif how == 'missing':
        path.unlink()
    else:
        path.write_bytes(b'')
    with pytest.raises(InputError) as error:
        Index.open(index.path, encoder)
    assert '\n' not in str(error.value)
    assert 'build' in str(error.value)


def test_a_number_of_the_manifest_that_was_changed_is_told(index, encoder):
    whole = json.loads((index.path / 'manifest.json').read_text())
    for field, value in (('format', 2), ('number', 5), ('threshold', -1.0), ('files', {}), ('kind', 'other')):
        files.write_json(index.path / 'manifest.json', whole | {field: value})
        with pytest.raises(InputError, match='build it again'):
            Index.open(index.path, encoder)
        with pytest.raises(InputError, match='build it again'):
            Index.build(index.path, encoder, index.manifest['data']['sources'][0])


def test_an_index_is_opened_while_it_is_built_anew(index, encoder, folder):
    failed, done = [], threading.Event()

    def build():
        for number in range(15):
            write_picture(folder / 'changing.png', 100 + number)
            os.utime(folder / 'changing.png', ns=(number, number))
            Index.build(index.path, make_encoder(), folder)
        done.set()

    builder = threading.Thread(target=build)
    builder.start()
    while not done.is_set():
        try:
            assert len(Index.open(index.path, encoder)) in (12, 13)
        except Exception as error:
            failed.append(error)
    builder.join()
    assert failed == []


def test_threads_that_share_an_index_get_each_their_own_pictures(index, folder):
    # What it is against happens from Python 3.12 on.
    paths = sorted(map(str, folder.rglob('*.png')))

    def wrong(first):
        rows = [(first + step) % len(paths) for step in range(5000)]
        return [row for row in rows if index.match(row).path != paths[row]]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(wrong, range(8))) == [[]] * 8


def test_pictures_that_are_all_the_same_match_each_other(tmp_path, encoder):
    for number in range(15):
        write_picture(tmp_path / 'same' / f'{number}.png', 1)
    index = Index.build(tmp_path / 'index', encoder, tmp_path / 'same')
    assert len(index.query(pixels(1), k=15, threshold=index.threshold)) == 15


def test_one_picture_is_an_index(tmp_path, encoder):
    write_picture(tmp_path / 'one' / 'only.png', 1)
    index = Index.build(tmp_path / 'index', encoder, tmp_path / 'one')
    assert index.threshold is None
    assert index.query(pixels(2), k=1)[0].path.endswith('only.png')
    with pytest.raises(InputError, match='-k 2: the index has 1 pictures; ask for 1 to 1'):
        index.query(pixels(2), k=2)
    with pytest.raises(InputError, match='the index has no such class'):
        index.query(pixels(2), k=1, class_name='cat')


def test_a_graph_finds_nearly_all_and_tells_how_many(tmp_path, encoder, folder):
    make_folder(folder, 600)
    exact = Index.build(tmp_path / 'exact', encoder, folder)
    index = Index.build(tmp_path / 'index', encoder, folder, ann=True)
    queries = encoder.embed([pixels(number) for number in range(1000, 1100)])
    found, wanted = ([[match.row for match in of_one] for of_one in one.search(queries, 10)] for one in (index, exact))
    recall = np.mean([len(set(rows) & set(others)) / 10 for rows, others in zip(found, wanted, strict=True)])
    assert index.manifest['graph']['recall'] >= 0.97
    assert recall > 0.93
    # It is searched at all, and goes with the index.
    index._gallery = None
    assert index.query(pixels(5), k=3)[0].similarity == pytest.approx(1)
    added = index.add([write_picture(tmp_path / 'new.png', 2000)])
    assert added.query(pixels(2000), k=1)[0].path.endswith('new.png')
    assert added.manifest['graph']['width'] >= 16
    # Of a class, and of more than it reaches, all the same.
    assert {match.class_name for match in added.query(pixels(1), k=200, class_name='dog')} == {'dog'}
    assert len(added.query(pixels(1), k=len(added))) == len(added)
    assert sorted(path.name for path in index.path.glob('*.*')) == [
        '.lock', 'embeddings-2.npy', 'graph-2.faiss', 'manifest.json', 'pictures-2.sqlite',
    ]  # fmt: skip
    damaged = bytearray((index.path / 'graph-2.faiss').read_bytes())
    damaged[-100] ^= 1
    (index.path / 'graph-2.faiss').write_bytes(damaged)
    with pytest.raises(InputError, match='is damaged'):
        Index.open(index.path, encoder)


def on_a_surface(count, seed):
    """Rows of unit norm in 32 dimensions that 6 numbers each decide: float32 [count, 32]."""
    rng, weights = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(38, 32))
    rows = np.tanh(rng.normal(size=(count, 6)) @ weights[:6]) @ weights[6:]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_graph_s_recall_is_that_of_what_is_not_in_it(tmp_path, monkeypatch):
    rows, others = on_a_surface(5000, 1), on_a_surface(500, 2)
    _, wanted = nearest.top_k(others, rows, 10)

    def recall(made):
        _, found = approximate.Approximate(tmp_path / 'graph', made['width']).top_k(others, 10)
        return np.mean([len(set(some) & set(true)) / 10 for some, true in zip(found, wanted, strict=True)])

    # So narrow that it misses some: rows that are in it would find nearly all.
    monkeypatch.setattr(approximate, '_WIDTHS', (1,))
    made = approximate.make(rows, tmp_path / 'graph')
    assert made['recall'] == pytest.approx(recall(made), abs=0.03)
    assert made['recall'] < 0.9
    monkeypatch.setattr(approximate, '_WIDTHS', (1, 512))
    made = approximate.make(rows, tmp_path / 'graph')
    assert (made['width'], recall(made)) == (512, pytest.approx(made['recall'], abs=0.01))
    # Every row is in it, under its own number.
    _, found = approximate.Approximate(tmp_path / 'graph', 512).top_k(rows, 1)
    assert np.mean(found[:, 0] == np.arange(len(rows))) > 0.999


@pytest.mark.parametrize('count', [1, 2, 19, 20, 21])
def test_a_graph_of_few_is_one(tmp_path, count):
    rows = on_a_surface(count, 1)
    made = approximate.make(rows, tmp_path / 'graph')
    assert made == {'width': 16, 'recall': 1}
    _, found = approximate.Approximate(tmp_path / 'graph', 16).top_k(rows, 1)
    assert found[:, 0].tolist() == list(range(count))


def test_arrays_of_another_shape_are_refused(index):
    for wrong in (np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(InputError, match=r'must be uint8 \[8, 8, 3\]'):
            index.query(wrong)
        with pytest.raises(InputError, match=r'must be uint8 \[8, 8, 3\]'):
            index.encoder.embed([pixels(1), wrong])
    assert index.encoder.embed([]).shape == (0, DIMENSIONS)
