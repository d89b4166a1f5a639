"""One query among very many vectors beside the peers' indices, and what making an index of a million pictures takes.

Libraries are imported where they are used: each contender's process has its own.
"""

import functools
import os
import pathlib
import shutil
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import harness, results
from benchmarks.harness import Contender

TITLE = 'An index beside its peers'
_DIMENSIONS, _K, _ASKED = 128, 10, 100
_PICTURES = 10**6
_SIDE = 8  # pixels
_NOTES = f"""\
`curved`: {_DIMENSIONS} float32 of unit norm that a small network, its weights drawn once (the second layer begins
with the first), makes of 16 normal numbers, as an encoder's embeddings lie on a surface of few dimensions;
`scattered`: normal in all {_DIMENSIONS}, which nothing but an exact search is good at. A repetition asks for the {_K}
nearest of {_ASKED} vectors that are not among them, one after the other. Recall: the share of the {_K} nearest that is
found; what is exact has found them all, but for equals.
Making: from vectors in memory to the first answer. Memory is the process's peak, the vectors among it. The width that
simclr_cifar's graph is searched with is chosen when it is made; faiss's and nmslib's are their defaults.
"""


@functools.cache
def vectors(count: int, kind: str, seed: int = 0) -> np.ndarray:
    """Returns float32 [count, _DIMENSIONS] of unit norm; the kind is 'curved' or 'scattered'."""
    rng = np.random.default_rng(seed)
    if kind == 'curved':
        first, second = (
            np.random.default_rng(1).normal(size=(rows, _DIMENSIONS)).astype(np.float32) for rows in (16, _DIMENSIONS)
        )
        drawn = np.tanh(rng.standard_normal((count, 16), np.float32) @ first / 4) @ second
    else:
        drawn = rng.standard_normal((count, _DIMENSIONS), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _ask(make):
    """Returns a contender: of make(gallery), which returns query [1, D] -> rows of the _K nearest."""

    def contender(count: int, kind: str):
        gallery, queries = vectors(count, kind), vectors(_ASKED, kind, seed=2)
        since = time.perf_counter()
        search = make(gallery)
        search(queries[:1])
        seconds = time.perf_counter() - since

        def run():
            rows = [np.asarray(search(query[None])).reshape(-1)[:_K] for query in queries]
            return {'rows': np.stack(rows), 'making': seconds}

        return run

    return contender


@_ask
def exact(gallery):
    from simclr_cifar.search import nearest

    return lambda query: nearest.top_k(query, gallery, _K)[1]


@_ask
def graph(gallery):
    from simclr_cifar.search import approximate

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'graph'
        made = approximate.make(gallery, path)
        opened = approximate.Approximate(path, made['width'])
    return lambda query: opened.top_k(query, _K)[1]


@_ask
def faiss_flat(gallery):
    import faiss

    index = faiss.IndexFlatIP(_DIMENSIONS)
    index.add(gallery)
    return lambda query: index.search(query, _K)[1]


@_ask
def faiss_graph(gallery):
    import faiss

    index = faiss.IndexHNSWFlat(_DIMENSIONS, 32, faiss.METRIC_INNER_PRODUCT)
    index.add(gallery)
    return lambda query: index.search(query, _K)[1]


@_ask
def inference_model(gallery):
    import torch
    from pytorch_metric_learning.utils.inference import InferenceModel

    model = InferenceModel(torch.nn.Identity())
    model.train_knn(torch.from_numpy(gallery))
    return lambda query: model.get_nearest_neighbors(torch.from_numpy(query), _K)[1]


@_ask
def tensorflow_similarity(gallery):
    os.environ |= {'TF_USE_LEGACY_KERAS': '1', 'TF_CPP_MIN_LOG_LEVEL': '3'}
    from tensorflow_similarity.indexer import Indexer

    index = Indexer(_DIMENSIONS, 'cosine', search='nmslib')
    index.batch_add(gallery, labels=np.arange(len(gallery)), verbose=0)
    return lambda query: [found.label for found in index.single_lookup(query, k=_K)]


def building(count: int):
    """A repetition indexes so many files of _SIDE x _SIDE pixels, by an encoder that takes next to no time."""
    from simclr_cifar.search import Encoder, Index

    folder = pathlib.Path(tempfile.mkdtemp(prefix='million-'))
    pixels = np.random.default_rng(0).integers(0, 256, (count, _SIDE, _SIDE, 3), np.uint8)
    for number, picture in enumerate(pixels):
        path = folder / f'{number // 1000:04}' / f'{number:07}.jpg'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    del pixels
    weights = np.random.default_rng(0).normal(size=(_SIDE * _SIDE * 3, _DIMENSIONS)).astype(np.float32)

    def embed(pictures):
        outputs = pictures.reshape(len(pictures), -1).astype(np.float32) @ weights
        return outputs / np.maximum(np.linalg.norm(outputs, axis=1, keepdims=True), 1e-9)

    about = {'fingerprint': '0', 'class_names': [], 'image_shape': (_SIDE, _SIDE, 3), 'embedding_dim': _DIMENSIONS}
    encoder = Encoder(pathlib.Path('made'), about, embed)
    pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak so far is of writing the files.
    resident = harness.peak_bytes()

    def run():
        try:
            with tempfile.TemporaryDirectory() as index:
                Index.build(index, encoder, folder).close()
        finally:
            shutil.rmtree(folder)
        return {'before': resident}

    return run


def _searched(count: int, kind: str, contenders: list[Contender]) -> str:
    contenders = [
        Contender(title, f'benchmarks.index:{function}', {'count': count, 'kind': kind}, may_fail=True)
        for title, function in contenders
    ]
    measured = harness.alternate(contenders)
    true = measured[0].figures['rows']
    rows = []
    for one in measured:
        if one.failure:
            rows.append([one.title, f'failed: {one.failure}', *['-'] * 4])
            continue
        recall = np.mean([len(np.intersect1d(*both)) / _K for both in zip(one.figures['rows'], true, strict=True)])
        milliseconds = results.spread([1000 * seconds / _ASKED for seconds in one.seconds])
        ratio = '1' if one is measured[0] else results.spread(harness.paired_ratios(measured[0], one))
        making, megabytes = one.figures['making'], one.peak_bytes / 1e6
        rows.append([one.title, milliseconds, ratio, f'{100 * recall:.1f}', f'{making:.1f}', f'{megabytes:,.0f}'])
    header = ['contender', 'ms/query', 'exact / it', 'recall, %', 'making, s', 'peak memory, MB']
    return f'{count:,} vectors, {kind}:\n\n{results.table(header, rows)}'


_ALL = (
    ('simclr_cifar, exact', 'exact'),
    ('simclr_cifar, --ann', 'graph'),
    ('faiss, IndexFlatIP', 'faiss_flat'),
    ('faiss, IndexHNSWFlat', 'faiss_graph'),
    ('pytorch-metric-learning, InferenceModel', 'inference_model'),
    ('TensorFlow Similarity, Indexer (nmslib)', 'tensorflow_similarity'),
)


def measure() -> str:
    """Returns the section."""
    tables = [
        _searched(50_000, 'curved', _ALL),
        _searched(10**6, 'curved', _ALL[:5]),
        _searched(10**6, 'scattered', _ALL[:4]),
    ]
    (built,) = harness.alternate([Contender('build', 'benchmarks.index:building', {'count': _PICTURES})], repeats=0)
    seconds = built.first_seconds
    told = (
        f'`Index.build` of {_PICTURES:,} JPEG files of {_SIDE}x{_SIDE} pixels, {_DIMENSIONS} dimensions: {seconds:.0f} '
        f's, {_PICTURES / seconds:,.0f} a second; the process grows from {built.figures["before"] / 1e6:,.0f} to '
        f'{built.peak_bytes / 1e6:,.0f} MB at most, of which the vectors, mapped from the disk, are '
        f'{_PICTURES * _DIMENSIONS * 4 / 1e6:,.0f}.'
    )
    return '\n\n'.join([results.environment(), _NOTES.strip(), *tables, told])
