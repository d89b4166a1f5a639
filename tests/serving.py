"""A server of an index in this process, and what asks it."""

import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image
from search_folders import pixels

from simclr_cifar.search import server

SECRET = 'nobody is to read this'


@contextlib.contextmanager
def serving(index):
    """The port of a server in a thread of its own, for the length of the block."""
    running, ready = [], threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        make = server.uvicorn.Server
        patch.setattr(server.uvicorn, 'Server', lambda config: running.append(make(config)) or running[0])
        address = []
        thread = threading.Thread(
            target=server.serve, args=(index, 0, lambda told: address.append(told) or ready.set()), daemon=True
        )
        thread.start()
        assert ready.wait(20)
        while not running or not running[0].started:
            time.sleep(0.01)
    yield int(address[0].rstrip('/').rpartition(':')[2])
    running[0].should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def get(port, path, data=None, headers=()):
    """(status, headers, body) of a request."""
    request = urllib.request.Request(f'http://127.0.0.1:{port}{path}', data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def ask(port, path, data=None):
    status, _, body = get(port, path, data)
    return status, json.loads(body)


def png(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, 'PNG')
    return file.getvalue()
