"""Strict JAX on eight simulated devices, and a small CIFAR-10 in TFDS's own format."""

import functools
import http.server
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import types

import jax
import numpy as np
import pytest
import search_folders
import serving

from simclr_cifar.search import Index

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Most of a test's time is LLVM's, and small arrays need no fast code. Not for the processes that tests start.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XLA_FLAGS', f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=1')
    jax.devices()

CLASS_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
IMAGES_PER_BATCH_FILE = 100


def class_images(labels, seed):
    """Noise around a colour and a direction of each class: uint8 [N, 32, 32, 3], easy to tell apart."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(0).uniform(40, 215, (10, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(prototypes[labels] + rng.normal(0, 40, (len(labels), 32, 32, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def cache_dir(tmp_path):
    """Where decoded images may be kept; not made yet."""
    return tmp_path / 'cache'


@pytest.fixture(scope='session')
def cifar10_server(tmp_path_factory):
    """The address of a CIFAR-10 binary archive of 600 images in the original's layout, on this machine's loopback."""
    folder = tmp_path_factory.mktemp('server')
    inside = folder / 'cifar-10-batches-bin'
    inside.mkdir()
    names = [f'data_batch_{number}.bin' for number in range(1, 6)] + ['test_batch.bin']
    for seed, name in enumerate(names):
        labels = np.random.default_rng(seed).permutation(np.arange(IMAGES_PER_BATCH_FILE) % 10)
        images = class_images(labels, seed).transpose(0, 3, 1, 2).reshape(len(labels), -1)
        np.concatenate([labels[:, None].astype(np.uint8), images], axis=1).tofile(inside / name)
    with tarfile.open(folder / 'cifar-10-binary.tar.gz', 'w:gz') as archive:
        archive.add(inside, inside.name)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz'
        server.shutdown()


@pytest.fixture(scope='session')
def small_cifar10(cifar10_server, tmp_path_factory):
    """A data_dir with the server's CIFAR-10 downloaded and prepared: 500 + 100 images."""
    from simclr_cifar import sources

    root = tmp_path_factory.mktemp('tfds')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, 'CIFAR10_URL', cifar10_server)
        sources.prepare_cifar10(root)
    return root


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch, tmp_path_factory, request):
    """No test reads or fills the person's own data and cache folders."""
    monkeypatch.setenv('HOME', str(tmp_path_factory.getbasetemp() / 'home'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.getbasetemp() / 'cache'))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
    if 'cifar10_data_dir' not in request.fixturenames:
        monkeypatch.delenv('TFDS_DATA_DIR', raising=False)


@pytest.fixture
def convolutions_by_definition(monkeypatch):
    """Which compile in a fraction of the time; that those in use equal them is tested with them."""
    from simclr_cifar import convolutions

    monkeypatch.setattr(convolutions, 'convolve', convolutions._by_definition)


@pytest.fixture(scope='session')
def torchvision():
    """torchvision's models and transforms; its compiled part, which they do not need, may be made for another torch."""
    pytest.importorskip('torch')
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'torchvision._meta_registrations', types.ModuleType('_meta_registrations'))
        return pytest.importorskip('torchvision')


@pytest.fixture
def cifar10_data_dir():
    """TFDS_DATA_DIR where it holds the real CIFAR-10."""
    data_dir = os.environ.get('TFDS_DATA_DIR')
    if not data_dir or not os.path.isdir(os.path.join(data_dir, 'cifar10')):
        pytest.skip('TFDS_DATA_DIR holds no CIFAR-10')
    return data_dir


def assert_holds_everything_itself(page):
    """A page asks for nothing outside itself, its links lead somewhere, and it is small enough to send."""
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(('data:image/', '#')), source[:80]
    assert 'http' not in re.sub(r'data:[^")]*', '', page)
    for name in re.findall(r'href="#([^"]*)"', page):
        assert f'id="{name}"' in page
    assert len(page) < 5_000_000


@pytest.fixture(scope='session')
def driver():
    """A headless browser where Chromium and its driver are installed."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    chromedriver = shutil.which('chromedriver')
    if not chromium or not chromedriver:
        pytest.skip('no chromium and chromedriver on PATH')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    for flag in (
        *('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking'),
        *('disable-component-update', 'disable-sync', 'window-size=1200,900'),
        'force-prefers-reduced-motion',  # A page that still scrolls moves from under a click.
    ):
        options.add_argument(f'--{flag}')
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f'--user-data-dir={profile}')
        with webdriver.Chrome(options=options, service=Service(chromedriver)) as driver:
            yield driver


@pytest.fixture
def look(driver):
    """(path of a page, id of an explorer, run, epoch) -> None: opens it, clicks a cell and a filter, narrows it."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    def look(path, explorer, run, epoch):
        def find(selector):
            return driver.find_elements(By.CSS_SELECTOR, f'#{explorer} {selector}')

        driver.set_window_size(1200, 900)
        driver.get(path.as_uri())
        for summary in driver.find_elements(By.CSS_SELECTOR, 'details:not([open]) > summary'):
            driver.execute_script('arguments[0].click()', summary)
        pictures, names = run.read_arrays(epoch, 'pictures'), run.read_json(run.config)['class_names']
        index, labels = pictures['image_index'], pictures['image_label']

        query, neighbour = (labels[pictures[name]] for name in ('cell_query', 'cell_neighbour'))
        wrong = np.flatnonzero(query != neighbour)[0]
        behind = np.flatnonzero((query == query[wrong]) & (neighbour == neighbour[wrong]))
        cell = find('.confusion.pairs button')[query[wrong] * len(names) + neighbour[wrong]]
        driver.execute_script('arguments[0].click()', cell)
        shown = [element.text for element in find('.matrices .panel .facts > :last-child')]
        assert shown == [
            f'test {index[pictures["cell_query"][pair]]} → {index[pictures["cell_neighbour"][pair]]}' for pair in behind
        ]

        Select(find('.filters select')[0]).select_by_visible_text(names[1])
        driver.execute_script('arguments[0].click()', find('.filters input[value="wrong"]')[0])
        right = np.mean(labels[pictures['gallery_neighbours']] == labels[pictures['gallery_query']][:, None], axis=1)
        expected = np.sum((labels[pictures['gallery_query']] == 1) & (right < 0.5))
        assert sum(row.is_displayed() for row in find('.query')) == expected
        assert find('.filters output')[0].text.startswith(f'{expected} of ')

        driver.set_window_size(390, 900)
        assert driver.execute_script('return document.documentElement.scrollWidth <= window.innerWidth')
        assert driver.get_log('browser') == []

    return look


@pytest.fixture
def encoder():
    """An encoder of small pictures, which counts them."""
    return search_folders.make_encoder()


@pytest.fixture
def folder(tmp_path):
    """Twelve small pictures of two classes and of none."""
    search_folders.make_folder(tmp_path / 'pictures')
    return tmp_path / 'pictures'


@pytest.fixture
def index(tmp_path, encoder, folder):
    """An index of the folder."""
    return Index.build(tmp_path / 'index', encoder, folder)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with pictures/, an index of them, and a file that is not in it."""
    root = tmp_path_factory.mktemp('served')
    search_folders.make_folder(root / 'pictures', 40, ('cat', 'dog', 'a b&c'))
    (root / 'secret.txt').write_text(serving.SECRET)
    Index.build(root / 'index', search_folders.make_encoder(), root / 'pictures')
    return root


@pytest.fixture(scope='module')
def port(root):
    """The port of a server of the index in `root`."""
    with serving.serving(Index.open(root / 'index', search_folders.make_encoder())) as port:
        yield port
