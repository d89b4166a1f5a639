"""Making an index: what is embedded again, what is left out, and what is left by what may befall a build."""

import contextlib
import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from image_files import bomb
from search_folders import make_encoder, make_folder, pixels, write_picture

from simclr_cifar.config import InputError
from simclr_cifar.search import Index, making, store
from simclr_cifar.search.encoder import BATCH


def content(index):
    """What an index holds, whatever its number."""
    return index.files(), np.array(index.embeddings), index.threshold, index.manifest['data']['sha256']


def assert_same_content(index, other):
    for one, another in zip(content(index), content(other), strict=True):
        np.testing.assert_array_equal(one, another)


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


def test_added_pictures_keep_their_class_and_what_is_left_out_is_remembered(tmp_path, encoder, folder):
    (folder / 'broken.png').write_text('text')
    index = Index.build(tmp_path / 'index', encoder, folder)
    added = index.add([folder / 'cat'])
    assert added.classes() == index.classes()
    assert added.made.new == 0
    assert added.manifest['left_out'] == 1
    assert added.remove([folder / 'cat']).manifest['left_out'] == 1


def test_a_home_is_a_home(tmp_path, encoder, folder, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    Index.build('~/index', encoder, folder)
    assert len(Index.open('~/index')) == 12
    assert not (tmp_path / '~').exists()
