"""The search from the command line."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import assert_holds_everything_itself
from PIL import Image
from search_folders import make_encoder, make_folder, pixels, write_picture

from simclr_cifar import commands, data
from simclr_cifar.config import DatasetNotFound
from simclr_cifar.search import Index, approximate
from simclr_cifar.search import __main__ as search
from simclr_cifar.search import index as indices

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    """Stands for every encoder that is named."""
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
    made = make_encoder()
    for module in (search, indices):
        monkeypatch.setattr(module, 'load_encoder', lambda _: made)
    return made


@pytest.fixture
def built(tmp_path, capsys):
    """The arguments that name an index of twelve pictures in pictures/."""
    make_folder(tmp_path / 'pictures')
    (tmp_path / 'pictures' / 'broken.png').write_text('text')
    index = f'--index={tmp_path / "index"}'
    assert run('build', '--checkpoint=run', f'--images={tmp_path / "pictures"}', index) == 0
    output, errors = capsys.readouterr()
    assert '12 pictures of 2 classes, 12 new, 0 gone, 1 files left out' in output
    assert 'Left out: ' in errors
    assert 'broken.png' in errors
    return index


def run(*arguments):
    try:
        return commands.answered(search.main, list(arguments))
    except SystemExit as stop:
        return stop.code


def test_matches_are_a_line_each(built, tmp_path, capsys):
    picture = tmp_path / 'pictures' / 'cat' / '0003.png'
    assert run('query', built, f'--image={picture}', '-k', '2', '--threshold=none') == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ['1.0000', 'cat', str(picture)]
    assert float(second.split()[0]) < 1
    assert run('query', built, f'--image={picture}', '-k', '2', '--threshold=none', '--class=dog') == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ['dog', 'dog']


def test_a_graph_that_finds_too_few_is_told(built, tmp_path, capsys, monkeypatch):
    build = 'build', '--checkpoint=run', f'--images={tmp_path / "pictures"}', built, '--ann'
    assert run(*build) == 0
    assert capsys.readouterr().out.splitlines()[-1] == 'Approximate search: finds 100.0 % of the 10 nearest'
    monkeypatch.setattr(approximate, 'RECALL', 1.1)
    assert run(*build) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith('nearest; an index without --ann finds all of them')


def test_json_and_standard_input(built, capsys, monkeypatch, tmp_path):
    path = write_picture(tmp_path / 'query.png', 7)
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert run('query', built, '--image=-', '-k', '1', '--json', '--threshold=-1') == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer['image'] == '-'
    (match,) = answer['matches']
    assert match['path'].endswith('0007.png')
    assert match['similarity'] == pytest.approx(1)
    assert match['class_name'] == 'dog'


def test_a_folder_asks_for_each_of_its_pictures(built, tmp_path, capsys):
    for number in (1, 2):
        write_picture(tmp_path / 'queries' / f'{number}.png', number)
    (tmp_path / 'queries' / 'text').write_text('text')
    assert run('query', built, f'--image={tmp_path / "queries"}', '-k', '1', '--threshold=none') == 0
    output, errors = capsys.readouterr()
    lines = output.splitlines()
    assert [line.split('/')[-1] for line in lines] == ['1.png', '0001.png', '2.png', '0002.png']
    assert 'Left out: ' in errors


def test_a_gallery_is_one_file_that_shows_them(built, tmp_path, capsys):
    write_picture(tmp_path / 'queries' / '<b>1.png', 1)
    write_picture(tmp_path / 'queries' / '2.png', 99)
    page = tmp_path / 'page.html'
    query = ['query', built, f'--image={tmp_path / "queries"}', '-k', '3', f'--html={page}']
    assert run(*query, '--threshold=0.9999') == 0
    text = page.read_text()
    assert text.count('No match') == 2
    assert 'where 10 pictures are at least 0.9999 like it' in text
    nearest = np.sort(Index.open(tmp_path / 'index').embeddings @ make_encoder().embed([pixels(99)])[0])
    assert f'No match: the last of the 10 nearest is only {nearest[-10]:.4f} like it' in text
    assert run(*query, '--threshold=none') == 0
    text = page.read_text()
    assert_holds_everything_itself(text)
    assert (text.count('<section>'), text.count('class="match"'), text.count('No match')) == (2, 6, 0)
    assert '<b>1.png' not in text
    assert '&lt;b&gt;1.png' in text
    assert run('query', built, f'--image={tmp_path / "queries"}', '--html=/proc/x') == 2


def test_no_match_is_said(built, tmp_path, capsys):
    path = write_picture(tmp_path / 'query.png', 99)
    assert run('query', built, f'--image={path}', '-k', '1', '--threshold=0.9999') == 0
    assert capsys.readouterr().out.startswith('no match: ')
    assert run('query', built, f'--image={path}', '-k', '1', '--threshold=0.9999', '--json') == 0
    (answer,) = json.loads(capsys.readouterr().out)
    nearest = np.sort(Index.open(tmp_path / 'index').embeddings @ make_encoder().embed([path])[0])
    assert answer == {'image': str(path), 'nearness': pytest.approx(nearest[-10], abs=1e-6), 'matches': []}


def test_add_and_remove(built, tmp_path, capsys):
    write_picture(tmp_path / 'more' / 'cow' / 'a.png', 40)
    assert run('add', built, f'--images={tmp_path / "more"}') == 0
    assert '13 pictures of 3 classes, 1 new, 0 gone' in capsys.readouterr().out
    assert run('remove', built, '--images', str(tmp_path / 'more'), str(tmp_path / 'pictures' / 'cat')) == 0
    assert '8 pictures of 1 classes, 0 new, 5 gone' in capsys.readouterr().out


def test_images_to_try_it_with_are_unpacked_once(tmp_path, capsys, monkeypatch):
    def missing(name, split, *_):
        if name == 'cifar10':
            raise DatasetNotFound('no data')
        return data.Dataset(name, np.stack([pixels(1), pixels(2)]), np.array([1, 0]), ('a', 'b'), 'Noise.')

    monkeypatch.setattr(data, 'load', missing)
    to = tmp_path / 'unpacked'
    assert run('unpack', f'--to={to}') == 0
    assert 'The embedded digits instead of CIFAR-10: no data' in capsys.readouterr().out
    assert sorted(str(path.relative_to(to)) for path in to.rglob('*.png')) == ['a/00001.png', 'b/00000.png']
    np.testing.assert_array_equal(np.asarray(Image.open(to / 'b' / '00000.png')), pixels(1))
    assert run('unpack', f'--to={to}') == 0
    assert 'is there already' in capsys.readouterr().out
    assert run('unpack', '--to=/proc/x') == 2
    assert [path.name for path in tmp_path.iterdir()] == ['unpacked']


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['query', '--image=missing'], 'No such file'),
        (['query', '--image=broken.png'], 'is no picture'),
        (['query', '--image=empty'], 'holds no files'),
        (['query', '--image=text'], 'holds no picture'),
        (['query', '--image=.', '-k', '13'], 'ask for 1 to 12'),
        (['query', '--image=.', '-k', '0'], 'ask for 1 to 12'),
        (['query', '--image=.', '-k', 'x'], '-k'),
        (['query', '--image=.', '--json', '--html=x'], 'not allowed'),
        (['query', '--image=.', '--class=cow'], 'no such class'),
        (['query', '--image=.', '--threshold=nan'], '--threshold'),
        (['query', '--image=.', '--threshold=x'], '--threshold'),
        (['query', '--image=.', '--index=other'], 'holds no index'),
        (['query'], '--image'),
        (['build', '--images=.'], '--checkpoint'),
        (['build', '--checkpoint=run', '--images=missing'], 'No such file'),
        (['build', '--checkpoint=run', '--images=empty'], 'holds no files'),
        (['add', '--images=missing'], 'No such file'),
        (['remove', '--images=missing'], 'none of it is in the index'),
        (['remove', '--images=.'], 'delete the directory'),
        (['query', '--image=.', '--encoder=x', '--checkpoint=y'], 'not allowed'),
        (['find'], 'invalid choice'),
        ([], 'MODE'),
    ],
)
def test_bad_input_is_answered_in_one_line(built, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path / 'pictures')
    (tmp_path / 'pictures' / 'empty').mkdir()
    (tmp_path / 'pictures' / 'text').mkdir()
    for name in ('a', 'b'):
        (tmp_path / 'pictures' / 'text' / name).write_text('text')
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / 'index').iterdir())
    given = [*arguments[:1], built, *arguments[1:]] if arguments and arguments != ['find'] else arguments
    assert run(*given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('Left out: ')]
    assert line.startswith('error: ')
    assert said in line
    after = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / 'index').iterdir())
    assert [entry for entry in after if entry[0] != '.lock'] == [entry for entry in before if entry[0] != '.lock']


def test_fewer_than_ten_are_shown_where_there_are_no_more(built, tmp_path, capsys):
    picture = write_picture(tmp_path / 'query.png', 7)
    assert run('query', built, f'--image={picture}', '--threshold=none') == 0
    assert len(capsys.readouterr().out.splitlines()) == 10
    assert run('query', built, f'--image={picture}', '--threshold=none', '--class=cat') == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_names_of_any_bytes_are_printed_in_a_line(built, tmp_path, capsys):
    for name in (b'a\nb', b'\xff'):
        write_picture(tmp_path / 'odd' / os.fsdecode(b'\xfe-class') / os.fsdecode(name), 60)
    assert run('add', built, f'--images={tmp_path / "odd"}') == 0
    capsys.readouterr()
    picture = write_picture(tmp_path / 'query.png', 60)
    assert (
        run(
            'query', built, f'--image={picture}', '-k', '2', '--threshold=none', '--class=' + os.fsdecode(b'\xfe-class')
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition('/')[2].encode() for line in lines] == [b'a\\nb', b'\\udcff']


@pytest.mark.parametrize(
    ('redirected', 'mode', 'status', 'said'),
    [
        ('| true', ['query', '--threshold=none'], 1, ''),
        ('| true', ['duplicates', '--json'], 1, ''),
        ('>/dev/full', ['query', '--threshold=none'], 1, 'No space left on device'),
        ('>/dev/full', ['query', '--html=page.html'], 0, ''),  # What it is asked for is a file.
        ('2>&1 | true', ['build', '--checkpoint=run'], 0, ''),
        ('>&- 2>&-', ['build', '--checkpoint=run'], 0, ''),
    ],
)
def test_output_that_nobody_gets_costs_no_more_than_itself(built, tmp_path, redirected, mode, status, said):
    program = """
import sys
from search_folders import make_encoder
from simclr_cifar import commands
from simclr_cifar.search import __main__ as search, index
search.load_encoder = index.load_encoder = lambda source: make_encoder()
sys.exit(commands.answered(search.main, sys.argv[1:]))
"""
    pictures = tmp_path / 'pictures'
    write_picture(pictures / 'new.png', 70)
    given = {'query': [f'--image={pictures / "cat"}'], 'build': [f'--images={pictures}'], 'duplicates': []}[mode[0]]
    shell = ['bash', '-c', f'set -o pipefail; "$@" {redirected}', 'bash', sys.executable, '-c', program]
    environment = os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}
    ran = subprocess.run(
        [*shell, *mode, built, *given], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == status, ran.stderr
    assert said in ran.stderr
    assert len(ran.stderr.splitlines()) == bool(said)
    if mode[0] == 'build':
        assert any(file.path.endswith('new.png') for file in Index.open(tmp_path / 'index', make_encoder()).files())


def test_stopped_by_hand_it_says_so(built, tmp_path, capsys, encoder):
    for number in range(20, 30):
        write_picture(tmp_path / 'pictures' / f'{number}.png', number)
    encoder.counted.most = 0
    assert run('build', built, '--checkpoint=run', f'--images={tmp_path / "pictures"}') == 130
    assert capsys.readouterr().err.splitlines()[-1] == 'error: stopped; what was finished is kept'
