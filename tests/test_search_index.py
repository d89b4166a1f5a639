"""An index against brute force, and what is left of it by what may befall it."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from image_files import bomb
from search_folders import DIMENSIONS, make_encoder, make_folder, pixels, write_picture

from simclr_cifar import files
from simclr_cifar.config import InputError
from simclr_cifar.search import Index, approximate, making, store
from simclr_cifar.search.encoder import BATCH


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / 'pictures')
    return tmp_path / 'pictures'


@pytest.fixture
def index(tmp_path, encoder, folder):
    return Index.build(tmp_path / 'index', encoder, folder)


def by_brute_force(encoder, paths, query, k):
    """(similarity, path) of the k most similar files, from their pixels, in float64."""
    embeddings = encoder.embed(paths).astype(np.float64)
    similarities = embeddings @ encoder.embed([query])[0].astype(np.float64)
    order = np.lexsort((np.arange(len(paths)), -similarities))[:k]
    return [(similarities[number], paths[number]) for number in order]


def same(matches, expected):
    assert [match.path for match in matches] == [path for _, path in expected]
    np.testing.assert_allclose([match.similarity for match in matches], [near for near, _ in expected], atol=1e-6)


def content(index):
    """What an index holds, whatever its number."""
    return index.files(), np.array(index.embeddings), index.threshold, index.manifest['data']['sha256']


def assert_same_content(index, other):
    for one, another in zip(content(index), content(other), strict=True):
        np.testing.assert_array_equal(one, another)


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


def test_only_what_is_new_or_changed_is_embedded_again(index, tmp_path, encoder, folder):
    encoder.counted.means.clear()
    again = Index.build(index.path, encoder, folder)
    assert encoder.counted.means == []
    assert_same_content(again, index)

    paths = [pathlib.Path(path) for path in sorted(map(str, folder.rglob('*.png')))]
    paths[0].unlink()
    write_picture(paths[1], 50)
    paths[2].rename(folder / 'dog' / 'moved.png')
    write_picture(folder / 'bird' / 'new.png', 51)
    changed = Index.build(index.path, encoder, folder)
    assert len(encoder.counted.means) == 3
    assert changed.made == ([], 3, 3)
    assert_same_content(changed, Index.build(tmp_path / 'fresh', make_encoder(), folder))
    assert len(changed) == 12
    # Who has the former one open goes on with it.
    assert index.query(pixels(2), k=1)[0].path == str(paths[0])
    assert sorted(path.name for path in index.path.iterdir()) == [
        '.lock', 'embeddings-3.npy', 'manifest.json', 'pictures-3.sqlite',
    ]  # fmt: skip


def test_what_is_no_picture_is_left_out_told_of_and_not_tried_again(tmp_path, encoder, folder):
    (folder / 'notes.txt').write_text('text')
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'bomb.png').write_bytes(bomb())
    (folder / '.hidden.png').write_bytes(b'')
    (folder / 'away.png').symlink_to(write_picture(tmp_path / 'elsewhere.png', 1))
    index = Index.build(tmp_path / 'index', encoder, folder)
    told = '\n'.join(index.made.left_out)
    assert len(index.made.left_out) == 4, told
    for name in ('notes.txt', 'empty.png', 'bomb.png', 'away.png'):
        assert name in told
    assert (len(index), index.manifest['left_out']) == (12, 3)
    decoded = []
    original = making.pictures.decoding.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making.pictures.decoding, 'decode', lambda *given: decoded.append(given) or original(*given))
        again = Index.build(tmp_path / 'index', encoder, folder)
        assert decoded == []
        assert again.made.left_out == index.made.left_out
        write_picture(folder / 'empty.png', 3)
        assert len(Index.build(tmp_path / 'index', encoder, folder)) == 13
        assert len(decoded) == 1


def test_pictures_are_added_and_removed(index, tmp_path, encoder, folder):
    other = make_folder(tmp_path / 'other' / 'train', 4, ('bird', 'cow'))
    single = write_picture(tmp_path / 'single.png', 70)
    added = index.add([tmp_path / 'other', single])
    assert added.classes() == {'': 5, 'bird': 2, 'cat': 4, 'cow': 2, 'dog': 4}
    assert added.query(single, k=1)[0].path == str(single)
    assert added.manifest['data']['sources'] == [str(folder), str(tmp_path / 'other'), str(single)]
    for path in other:
        os.unlink(path)
    removed = added.remove([folder / 'dog', single, tmp_path / 'other' / 'train' / 'bird'])
    assert removed.classes() == {'': 4, 'cat': 4, 'cow': 2}
    paths = sorted([str(path) for path in folder.rglob('*.png') if 'dog' not in str(path)])
    np.testing.assert_allclose(removed.embeddings[2:], encoder.embed(paths), atol=1e-6)
    # A folder's name is no beginning of names.
    with pytest.raises(InputError, match='none of it is in the index'):
        removed.remove([tmp_path / 'oth', folder / 'ca'])
    with pytest.raises(InputError, match='delete the directory'):
        removed.remove([tmp_path])
    assert len(Index.build(index.path, encoder, folder)) == 12


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


def test_a_build_that_is_stopped_goes_on_and_leaves_the_index_as_it_was(tmp_path, index, folder, encoder):
    before = content(index)
    make_folder(folder / 'more', 3 * BATCH)
    encoder.counted.means.clear()
    encoder.counted.most = 2 * BATCH
    with pytest.raises(KeyboardInterrupt):
        Index.build(index.path, encoder, folder)
    for one, another in zip(content(Index.open(index.path, encoder)), before, strict=True):
        np.testing.assert_array_equal(one, another)
    encoder.counted.means.clear()
    encoder.counted.most = float('inf')
    whole = Index.build(index.path, encoder, folder)
    assert len(encoder.counted.means) == BATCH
    assert_same_content(whole, Index.build(tmp_path / 'fresh', make_encoder(), folder))
    assert not (index.path / store.NEXT).exists()


def test_a_stopped_build_of_another_encoder_is_begun_anew(tmp_path, folder):
    make_folder(folder, BATCH + 10)
    stopped = make_encoder('other')
    stopped.counted.most = BATCH
    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / 'index', stopped, folder)
    with pytest.raises(InputError, match='not finished; run it again'):
        Index.open(tmp_path / 'index')
    encoder = make_encoder()
    Index.build(tmp_path / 'index', encoder, folder)
    assert len(encoder.counted.means) == BATCH + 10


KILLED = """
import sys, time
sys.path[:0] = ['tests', '.']
from search_folders import make_encoder
from simclr_cifar.search import Index
function = make_encoder().counted
def slow(pictures):
    time.sleep(0.2)
    return function(pictures)
Index.build(sys.argv[1], make_encoder(function=slow), sys.argv[2])
"""


def test_a_build_that_is_killed_goes_on(tmp_path, index, folder):
    before = content(index)
    make_folder(folder / 'more', 4 * BATCH)
    root = pathlib.Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, '-c', KILLED, index.path, folder], cwd=root) as process:
        deadline = time.monotonic() + 60
        while count_waiting(index.path) < BATCH:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    for one, another in zip(content(Index.open(index.path)), before, strict=True):
        np.testing.assert_array_equal(one, another)
    encoder = make_encoder()
    whole = Index.build(index.path, encoder, folder)
    assert len(encoder.counted.means) <= 3 * BATCH
    assert_same_content(whole, Index.build(tmp_path / 'fresh', make_encoder(), folder))


def count_waiting(path):
    if not (path / store.NEXT).exists():
        return 0
    try:
        with contextlib.closing(store.connect(path / store.NEXT)) as database:
            return database.execute('SELECT count(*) FROM embedded').fetchone()[0]
    except Exception:  # It is being made.
        return 0


def test_another_encoder_is_refused_and_nothing_is_changed(index, folder):
    other, before = make_encoder('other'), index.manifest
    for attempt in (
        lambda: Index.build(index.path, other, folder),
        lambda: Index.open(index.path, other),
    ):
        with pytest.raises(InputError, match=r'is of another encoder .*0123, not other'):
            attempt()
    assert Index.open(index.path).manifest == before


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


def test_two_builds_at_once_are_refused(index, encoder, folder):
    with store.written(index.path), pytest.raises(InputError, match='held by another running process'):
        Index.build(index.path, encoder, folder)


def test_a_full_disk_leaves_the_index_as_it_was(index, encoder, folder, monkeypatch):
    before = content(index)
    write_picture(folder / 'new.png', 80)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, 'write_manifest', full)
    with pytest.raises(InputError, match='the disk is full; free some space, and run the same command again'):
        Index.build(index.path, encoder, folder)
    monkeypatch.undo()
    for one, another in zip(content(Index.open(index.path, encoder)), before, strict=True):
        np.testing.assert_array_equal(one, another)
    encoder.counted.means.clear()
    assert len(Index.build(index.path, encoder, folder)) == 13
    assert encoder.counted.means == []


def test_folders_without_pictures_are_refused(tmp_path, encoder):
    for name, said in (
        ('missing', 'No such file'),
        ('empty', 'holds no files'),
        ('text', 'none of 1 files is a picture'),
    ):
        if name != 'missing':
            (tmp_path / name).mkdir()
        if name == 'text':
            (tmp_path / name / 'a.txt').write_text('text')
        with pytest.raises(InputError, match=said):
            Index.build(tmp_path / 'index', encoder, tmp_path / name)
        with pytest.raises(InputError, match='holds no index; build one first'):
            Index.open(tmp_path / 'index')


def test_a_directory_of_other_things_is_not_written(tmp_path, encoder, folder):
    ours = {path: path.read_bytes() for path in folder.rglob('*.png')}
    with pytest.raises(InputError, match='holds other things than an index'):
        Index.build(folder, encoder, folder)
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'manifest.json').write_text('{}')
    with pytest.raises(InputError, match='give another directory'):
        Index.build(tmp_path / 'other', encoder, folder)
    assert {path: path.read_bytes() for path in folder.rglob('*.png')} == ours


def test_what_is_not_the_index_s_own_is_left_alone(index, encoder, folder):
    others = ['embeddings-thesis.txt', 'pictures-2023.zip', 'graph-1.faiss.old']
    for name in others:
        (index.path / name).write_text('mine')
    (index.path / 'pictures-9.sqlite').mkdir()
    Index.build(index.path, encoder, folder)
    assert all((index.path / name).read_text() == 'mine' for name in others)
    assert len(Index.build(index.path, encoder, folder)) == 12


def test_a_file_that_cannot_be_read_for_now_is_tried_again(tmp_path, encoder, folder, monkeypatch):
    opened = making.pictures.decoding.open_file

    def denied(path):
        if path.endswith('0003.png'):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path)

    monkeypatch.setattr(making.pictures.decoding, 'open_file', denied)
    index = Index.build(tmp_path / 'index', encoder, folder)
    (line,) = index.made.left_out
    assert '0003.png' in line
    assert 'Permission denied' in line
    assert len(index) == 11
    monkeypatch.undo()
    assert len(Index.build(tmp_path / 'index', encoder, folder)) == 12


@pytest.mark.parametrize('where', ['beginning', 'middle'])
def test_a_damaged_store_of_what_waits_is_begun_anew(tmp_path, folder, where):
    make_folder(folder, 2 * BATCH)
    stopped = make_encoder()
    stopped.counted.most = BATCH
    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / 'index', stopped, folder)
    waiting = tmp_path / 'index' / store.NEXT
    content = bytearray(waiting.read_bytes())
    middle = len(content) // 2
    content[slice(0, 4000) if where == 'beginning' else slice(middle, middle + 4000)] = os.urandom(4000)
    waiting.write_bytes(content)
    assert len(Index.build(tmp_path / 'index', make_encoder(), folder)) >= 2 * BATCH


def test_what_waits_is_kept_where_another_program_holds_it(tmp_path, folder):
    make_folder(folder, 2 * BATCH)
    stopped = make_encoder()
    stopped.counted.most = BATCH
    with pytest.raises(KeyboardInterrupt):
        Index.build(tmp_path / 'index', stopped, folder)
    with contextlib.closing(store.connect(tmp_path / 'index' / store.NEXT)) as holding:
        holding.execute('BEGIN EXCLUSIVE')
        with pytest.raises(InputError, match='database is locked'):
            Index.build(tmp_path / 'index', make_encoder(), folder)
    encoder = make_encoder()
    Index.build(tmp_path / 'index', encoder, folder)
    assert len(encoder.counted.means) <= BATCH + 12


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


def test_added_pictures_keep_their_class_and_what_is_left_out_is_remembered(tmp_path, encoder, folder):
    (folder / 'broken.png').write_text('text')
    index = Index.build(tmp_path / 'index', encoder, folder)
    added = index.add([folder / 'cat'])
    assert added.classes() == index.classes()
    assert added.made.new == 0
    assert added.manifest['left_out'] == 1
    assert added.remove([folder / 'cat']).manifest['left_out'] == 1


def test_pictures_that_are_all_the_same_match_each_other(tmp_path, encoder):
    for number in range(15):
        write_picture(tmp_path / 'same' / f'{number}.png', 1)
    index = Index.build(tmp_path / 'index', encoder, tmp_path / 'same')
    assert len(index.query(pixels(1), k=15, threshold=index.threshold)) == 15


def test_a_home_is_a_home(tmp_path, encoder, folder, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    Index.build('~/index', encoder, folder)
    assert len(Index.open('~/index')) == 12
    assert not (tmp_path / '~').exists()


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


def test_a_graph_s_recall_is_measured(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    narrow = approximate.make(rows, tmp_path / 'graph')
    assert narrow['recall'] >= 0.97
    monkeypatch.setattr(approximate, 'RECALL', 2)
    assert approximate.make(rows, tmp_path / 'graph') == {'width': 1024, 'recall': pytest.approx(1, abs=0.002)}
    monkeypatch.setattr(approximate, '_WIDTHS', (1,))
    monkeypatch.setattr(approximate.Approximate, 'top_k', lambda self, queries, k: (None, np.zeros((len(queries), k))))
    assert approximate.make(rows, tmp_path / 'graph')['recall'] < 0.01


def test_arrays_of_another_shape_are_refused(index):
    for wrong in (np.zeros((4, 4, 3), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(InputError, match=r'must be uint8 \[8, 8, 3\]'):
            index.query(wrong)
        with pytest.raises(InputError, match=r'must be uint8 \[8, 8, 3\]'):
            index.encoder.embed([pixels(1), wrong])
    assert index.encoder.embed([]).shape == (0, DIMENSIONS)
