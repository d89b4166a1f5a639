"""Embedding a folder against the encoder alone; one query; many vectors; many clients of the page."""

import functools
import http.client
import io
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from PIL import Image

from benchmarks import harness, results
from benchmarks.harness import Contender

TITLE = 'Searching pictures'
_PICTURES = {'fast': 2560, 'c10': 10240}  # of a repetition
_SERVED, _CLIENTS, _SECONDS = 50_000, 64, 60
_NOTES = f"""\
`alone`: an encoder on arrays; `folder`: an index made of JPEG files of 32x32 pixels (CIFAR-10's training images,
quality 90), decoding, hashing and writing included; ratio, the folder's time over the encoder's, turn by turn: median
(lowest-highest). `fast` is weights/fast, an image with its mirror image; `c10` the reference encoder, its weights as
drawn. One query: a JPEG of 256x256 pixels, from its bytes to 10 matches, warm. {_CLIENTS} clients ask for {_SECONDS} s,
one request after the other, each with such a JPEG, on the same two cores; goal: 99 % within 300 ms.
"""


@functools.cache
def _images(count: int) -> np.ndarray:
    from simclr_cifar import data

    return np.asarray(data.load('cifar10', 'train').images[:count])


def _encoder(name: str, form: str = 'run'):
    """weights/fast, or the reference encoder as it is drawn."""
    from simclr_cifar.search import load_encoder

    source = 'weights/fast' if name == 'fast' else _untrained()
    if form == 'run':
        return load_encoder(source)
    from simclr_cifar import export
    from simclr_cifar.files import RunFolder

    to = pathlib.Path(tempfile.mkdtemp(prefix='exported-'))
    export.export(RunFolder(source), to)
    return load_encoder(to / 'encoder.onnx')


def _untrained() -> pathlib.Path:
    from configs import c10
    from simclr_cifar import checkpoint, config, step
    from simclr_cifar.files import RunFolder, write_json

    run = RunFolder(tempfile.mkdtemp(prefix='untrained-'))
    fields = c10.get_config()
    state = step.init_state(fields, np.zeros((1, 32, 32, 3), np.uint8), 0)
    checkpoint.save_weights(run, 0, state)
    about = {'config': config.to_json(fields), 'image_shape': [32, 32, 3], 'class_names': []}
    write_json(run.config, about)
    return run.path


def _written(count: int) -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix='pictures-'))
    for number, image in enumerate(_images(count)):
        path = folder / str(number % 10) / f'{number:06}.jpg'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path, quality=90)
    return folder


def alone(name: str):
    """A repetition embeds arrays."""
    encoder, images = _encoder(name), _images(_PICTURES[name])
    return lambda: encoder.embed(images) is None or None


def folder(name: str):
    """A repetition indexes files."""
    from simclr_cifar.search import Index

    encoder, pictures = _encoder(name), _written(_PICTURES[name])

    def run():
        with tempfile.TemporaryDirectory() as index:
            Index.build(index, encoder, pictures)

    return run


def _synthetic(count: int, dimensions: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact(count: int, dimensions: int):
    """A repetition is one query's 10 nearest, 10 times."""
    from simclr_cifar.search import nearest

    gallery, query = _synthetic(count, dimensions), _synthetic(1, dimensions)

    def run():
        for _ in range(10):
            nearest.top_k(query, gallery, 10)

    return run


def _query() -> bytes:
    file = io.BytesIO()
    Image.fromarray(_images(1)[0]).resize((256, 256), Image.Resampling.BICUBIC).save(file, 'JPEG', quality=90)
    return file.getvalue()


def query(form: str):
    """A repetition is 20 queries of an index of _SERVED pictures."""
    from simclr_cifar.search import Index

    encoder, pictures, asked = _encoder('c10', form), _written(_SERVED), _query()
    index = Index.build(tempfile.mkdtemp(prefix='index-'), encoder, pictures)
    shutil.rmtree(pictures)

    def run():
        for _ in range(20):
            index.query(io.BytesIO(asked))

    return run


def _served() -> list[str]:
    """Returns a table's rows: of clients that ask for _SECONDS, how many requests, and how long they took."""
    pictures, index = _written(_SERVED), tempfile.mkdtemp(prefix='index-')
    program, run = [sys.executable, '-m', 'simclr_cifar.search'], 'weights/fast'
    subprocess.run([*program, 'build', f'--checkpoint={run}', f'--images={pictures}', f'--index={index}'], check=True)
    serve = [*program, 'serve', f'--index={index}', '--port=0', '--no_browser']
    asked, taken, wrong = _query(), [], []
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        port = int(re.search(r':(\d+)/', process.stdout.readline()).group(1))
        until = time.monotonic() + _SECONDS

        def client():
            connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
            while time.monotonic() < until:
                since = time.monotonic()
                connection.request('POST', '/like?k=10', asked)
                answer = connection.getresponse()
                answer.read()
                taken.append(time.monotonic() - since)
                if answer.status != 200:
                    wrong.append(answer.status)

        clients = [threading.Thread(target=client) for _ in range(_CLIENTS)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        process.terminate()
    shutil.rmtree(pictures)
    shutil.rmtree(index)
    median, most = 1000 * statistics.median(taken), 1000 * np.quantile(taken, 0.99)
    return [f'{len(taken):,}', f'{len(wrong)}', f'{len(taken) / _SECONDS:,.0f}', f'{median:.0f}', f'{most:.0f}']


def measure() -> str:
    """Returns the section."""
    rows = []
    for name, count in _PICTURES.items():
        pair = [Contender(kind, f'benchmarks.search:{kind}', {'name': name}) for kind in ('alone', 'folder')]
        without, within = harness.alternate(pair)
        ratios = harness.paired_ratios(within, without)
        for measured in (without, within):
            rows.append([name, measured.title, f'{count / measured.median:,.0f}', ''])
        rows[-1][-1] = f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'
    single = []
    for title, contender, each in (
        (f'{_SERVED:,} pictures, JAX', Contender('run', 'benchmarks.search:query', {'form': 'run'}), 20),
        (f'{_SERVED:,} pictures, ONNX', Contender('onnx', 'benchmarks.search:query', {'form': 'onnx'}), 20),
        (
            '10^6 x 128, the search alone',
            Contender('exact', 'benchmarks.search:exact', {'count': 10**6, 'dimensions': 128}),
            10,
        ),
    ):
        (measured,) = harness.alternate([contender])
        low, high = min(measured.seconds), max(measured.seconds)
        single.append([title, *(f'{1000 * seconds / each:.1f}' for seconds in (measured.median, low, high))])
    served = _served()
    return '\n\n'.join(
        [
            results.environment(),
            _NOTES.strip(),
            results.table(['encoder', 'pictures', 'images/s', 'ratio'], rows),
            results.table(['one query of', 'ms', 'least', 'most'], single),
            results.table(['requests', 'refused', 'requests/s', 'median ms', '99 % within ms'], [served]),
        ]
    )
