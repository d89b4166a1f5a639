"""The search page's server: what it answers, what it refuses, and that nothing brings it down or out of its index."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from image_files import bomb, encoded
from PIL import Image
from search_folders import make_encoder, make_folder, pixels
from serving import SECRET, ask, get, png, serving

from simclr_cifar.config import InputError
from simclr_cifar.search import Index, server


def test_neighbours_of_a_row_and_of_a_file_are_the_index_s(root, port):
    index = Index.open(root / 'index', make_encoder())
    for path, data, query in (
        ('/like/7?k=5', None, index.match(7).path),
        ('/like?k=5', png(123), pixels(123)),
    ):
        status, found = ask(port, path, data)
        assert status == 200
        expected = index.query(query, k=5)
        assert [match['row'] for match in found['matches']] == [match.row for match in expected]
        assert [match['path'] for match in found['matches']] == [match.path for match in expected]
        near = [match['similarity'] for match in found['matches']]
        np.testing.assert_allclose(near, [match.similarity for match in expected], atol=1e-6)
        assert found['threshold'] == index.threshold
        assert found['known'] == bool(index.query(query, threshold=index.threshold))
    _, found = ask(port, '/like/7?k=5&class=a%20b%26c')
    assert {match['class'] for match in found['matches']} == {'a b&c'}
    assert found['asked']['row'] == 7
    # More than there are: all.
    assert len(ask(port, '/like/7?k=5000')[1]['matches']) == 40
    assert len(ask(port, '/like/7?k=5000&class=cat')[1]['matches']) == 14


def test_the_page_and_what_it_shows(root, port):
    status, headers, page = get(port, '/')
    assert status == 200
    assert b'page.js' in page
    assert "default-src 'none'" in headers['Content-Security-Policy']
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert 'unsafe' not in headers['Content-Security-Policy']
    assert not re.search(rb'https?:|<style|style=|onclick|<script>', page)
    for path, kind in (('/page.css', 'text/css'), ('/page.js', 'text/javascript'), ('/icon.svg', 'image/svg+xml')):
        status, headers, body = get(port, path)
        assert (status, headers.get_content_type()) == (200, kind)
        assert not re.search(rb'https?:', body.replace(b'http://www.w3.org/2000/svg', b''))
    _, about = ask(port, '/about')
    assert about['pictures'] == 40
    assert about['classes'] == {'a b&c': 13, 'cat': 14, 'dog': 13}
    _, some = ask(port, '/some')
    assert len({match['row'] for match in some['matches']}) == 30
    _, places = ask(port, '/map')
    assert sorted(point['row'] for point in places) == list(range(40))
    assert all(0 <= point[axis] <= 1 for point in places for axis in 'xy')


def test_a_picture_is_drawn_anew(tmp_path):
    wide = np.linspace(0, 255, 300 * 500 * 3).reshape(300, 500, 3).astype(np.uint8)
    (tmp_path / 'pictures').mkdir()
    for kind in ('png', 'jpg'):
        Image.fromarray(wide).save(tmp_path / 'pictures' / f'a.{kind}', exif=b'Exif\0\0' if kind == 'jpg' else None)
    with serving(Index.build(tmp_path / 'index', make_encoder(), tmp_path / 'pictures')) as port:
        for row in (0, 1):
            status, headers, body = get(port, f'/picture/{row}')
            assert (status, headers.get_content_type()) == (200, 'image/webp')
            with Image.open(io.BytesIO(body), formats=['WEBP']) as image:
                assert image.size == (256, 154)
                shown = np.asarray(image.convert('RGB'), float)
            assert np.abs(shown - np.asarray(Image.fromarray(wide).resize((256, 154)), float)).mean() < 4


def test_pictures_that_are_gone_or_changed_are_not_shown(tmp_path):
    paths = make_folder(tmp_path / 'pictures', 4)
    (tmp_path / 'secret.txt').write_text(SECRET)
    index = Index.build(tmp_path / 'index', make_encoder(), tmp_path / 'pictures')
    os.unlink(paths[0])
    os.unlink(paths[1])
    os.symlink(tmp_path / 'secret.txt', paths[1])
    os.unlink(paths[3])
    os.mkfifo(paths[3])
    with serving(index) as port:
        for row in (0, 1, 3):
            status, _, body = get(port, f'/picture/{row}')
            assert status == 404
            assert SECRET.encode() not in body
        assert get(port, '/picture/2')[0] == 200
        os.unlink(paths[2])
        assert get(port, '/picture/2')[0] == 404
        # What they were like is known all the same.
        assert ask(port, '/like/0?k=1')[0] == 200


HOSTILE = [
    *(('GET', path, {}, b'') for path in (
        '/../secret.txt', '/../../../../etc/passwd', '/%2e%2e/secret.txt', '/..%2fsecret.txt',
        '/picture/../../secret.txt', '/picture/%2e%2e%2fsecret.txt', '/picture/..%5csecret.txt',
        '/picture//etc/passwd', '/picture/-1', '/picture/40', '/picture/99999999999999999999999', '/picture/1.5',
        '/picture/0x1', '/picture/1%00.png', '/picture/', '/like/40',
        '/like/a', '/like/1?k=0', '/like/1?k=-5', '/like/1?k=x', '/like/1?k=1e9', '/like/1?class=cow',
        "/like/1?class=x'%20OR%20'1'='1", '/like/1?class=%00', '/like/1?class=', '/like/1?k=' + '9' * 5000, '/index',
        '/manifest.json', '/pictures-1.sqlite', '/templates/search.html', '/page.js/../search.html', '/?' + 'x' * 9000,
        '/static/../../secret.txt', '//etc/passwd',
    )),
    *(('POST', '/like', headers, body) for headers, body in (
        ({}, b''),
        ({}, b'text'),
        ({}, b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
        ({}, b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
        ({}, bomb()),
        ({}, encoded()[:40]),
        ({}, b'%PDF-1.4'),
        ({}, b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run'),
        ({}, b'GIF89a' + b'\xff' * 500),
        ({}, os.urandom(100_000)),
        ({'Content-Type': 'multipart/form-data; boundary=x'}, b'--x\r\nContent-Disposition: form-data; name="f"\r\n'),
        ({'Content-Type': 'multipart/form-data'}, b'--\r\n\r\n--'),
        ({'Content-Length': '99999999999'}, b'text'),
        ({'Content-Type': 'image/png', 'X-File-Name': '../../x'}, b'text'),
    )),
    ('POST', '/picture/1', {}, b'x'),
    ('DELETE', '/picture/1', {}, b''),
    ('PUT', '/like', {}, b'x'),
    ('GET', '/about', {'Host': 'attacker.example'}, b''),
    ('GET', '/about', {'Host': ''}, b''),
    ('GET', '/like/1', {'Sec-Fetch-Site': 'cross-site'}, b''),
    ('POST', '/like', {'Sec-Fetch-Site': 'same-site'}, encoded()),
]  # fmt: skip


@pytest.mark.parametrize(('method', 'path', 'headers', 'body'), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_requests_are_refused(root, port, method, path, headers, body):
    before = sorted(str(path) for path in root.rglob('*'))
    headers = {'Host': f'127.0.0.1:{port}', 'Content-Length': str(len(body)), 'Connection': 'close'} | headers
    lines = [f'{method} {path} HTTP/1.1', *(f'{name}: {value}' for name, value in headers.items()), '', '']
    answer = raw(port, '\r\n'.join(lines).encode() + body)
    fine = path.startswith('/?')  # A query that nobody reads.
    status = int(answer.split(b' ', 2)[1])
    assert 400 <= status < 500 or fine, answer[:300]
    for leaked in (SECRET.encode(), b'root:', b'Traceback', b'SQLite format', str(root).encode()):
        assert leaked not in answer
    assert get(port, '/about')[0] == 200
    assert sorted(str(path) for path in root.rglob('*')) == before


@pytest.mark.parametrize(
    'sent',
    [
        b'\x00' * 100,
        b'GET / HTTP/9.9\r\n\r\n',
        b'GARBAGE\r\n\r\n',
        b'GET /' + b'a' * 200_000,
        b'POST /like HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n',
        b'GET / HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere\r\n\r\n',
    ],
)
def test_what_is_no_request_is_refused(port, sent):
    answer = raw(port, sent)
    assert not answer or answer.split(b' ', 2)[1].startswith(b'4'), answer[:200]
    assert get(port, '/about')[0] == 200


def raw(port, sent):
    """What comes back for these bytes, until the server closes or says no more."""
    with socket.create_connection(('127.0.0.1', port), 10) as connection:
        answer = b''
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(2)
            while part := connection.recv(65536):
                answer += part
        return answer


def test_what_is_too_large_or_too_slow_is_refused_while_others_are_answered(port, monkeypatch):
    monkeypatch.setattr(server, 'MOST_BYTES', 1000)
    monkeypatch.setattr(server, '_SECONDS', 1.0)
    head = b'POST /like HTTP/1.1\r\nHost: localhost\r\n'
    assert raw(port, head + b'Content-Length: 1001\r\n\r\n' + b'x' * 1001).startswith(b'HTTP/1.1 413')
    chunk = b'3e8\r\n' + b'x' * 1000 + b'\r\n'
    assert raw(port, head + b'Transfer-Encoding: chunked\r\n\r\n' + 2 * chunk).startswith(b'HTTP/1.1 413')
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(('127.0.0.1', port), 10)) for _ in range(100)]
        for connection in slow:
            connection.sendall(head + b'Content-Length: 500\r\n\r\nx')
        assert ask(port, '/like/1?k=1')[0] == 200
        assert slow[0].recv(100).startswith(b'HTTP/1.1 408')


def test_only_so_many_bytes_are_held(port, monkeypatch):
    monkeypatch.setattr(server, '_MOST_HELD', 50_000)
    head = b'POST /like HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n'
    assert raw(port, head + b'x' * 60_000).startswith(b'HTTP/1.1 503')
    assert ask(port, '/like?k=1', png(1))[0] == 200  # What was held is held no more.


def test_pictures_are_kept_by_a_browser_only_of_this_index(port):
    version = ask(port, '/about')[1]['version']
    assert 'max-age' in get(port, f'/picture/3?v={version}')[1]['Cache-Control']
    for other in ('', '?v=', '?v=0'):
        assert get(port, f'/picture/3{other}')[1]['Cache-Control'] == 'no-store'


def test_what_goes_wrong_is_told_as_json(root, monkeypatch, capfd):
    index = Index.open(root / 'index', make_encoder())
    with serving(index) as port:
        monkeypatch.setattr(index, 'match', lambda row: 1 / 0)
        status, found = ask(port, '/picture/3')
    assert status == 500
    assert 'went wrong' in found['error']
    assert 'ZeroDivisionError' in capfd.readouterr().err


def test_many_clients_at_once_are_all_answered(port):
    wrong = []

    def client(number):
        for _ in range(5):
            status, found = ask(port, '/like?k=1', png(number))
            if status != 200 or found['matches'][0]['similarity'] < 0.999:
                wrong.append(found)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(30)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert wrong == []


def test_a_port_in_use_is_refused_in_one_line(root):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(InputError, match=r'--port=\d+: cannot be had .*; choose another'):
            server.serve(Index.open(root / 'index', make_encoder()), taken.getsockname()[1], print)


SERVED = """
import sys
sys.path[:0] = ['tests', '.']
from search_folders import make_encoder
from simclr_cifar.search import __main__ as search, index
search.load_encoder = index.load_encoder = lambda source: make_encoder()
sys.exit(search.main(['serve', f'--index={sys.argv[1]}', '--port=0', '--no_browser', '--cache_dir=/nonexistent']))
"""


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_listens_to_this_machine_alone_and_ends_in_order(root, number):
    program = [sys.executable, '-c', SERVED, root / 'index']
    with subprocess.Popen(program, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        port = int(re.search(r'http://127\.0\.0\.1:(\d+)/', line).group(1))
        assert ask(port, '/about')[1]['pictures'] == 40
        own = socket.gethostbyname(socket.gethostname())
        if own != '127.0.0.1':
            with pytest.raises(OSError, match='refused'):
                socket.create_connection((own, port), 2).close()
        process.send_signal(number)
        assert process.wait(20) in (0, -number)
