"""Strict JAX on eight simulated devices, and a small CIFAR-10 in TFDS's own format."""

import functools
import http.server
import os
import tarfile
import threading

import jax
import numpy as np
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

CLASS_NAMES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
IMAGES_PER_BATCH_FILE = 100


def class_images(labels, seed):
    """Noise around a colour and a direction of each class: uint8 [N, 32, 32, 3], easy to tell apart."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(0).uniform(40, 215, (10, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(prototypes[labels] + rng.normal(0, 40, (len(labels), 32, 32, 3)), 0, 255).astype(np.uint8)


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
    if 'cifar10_data_dir' not in request.fixturenames:
        monkeypatch.delenv('TFDS_DATA_DIR', raising=False)


@pytest.fixture
def cifar10_data_dir():
    """TFDS_DATA_DIR where it holds the real CIFAR-10."""
    data_dir = os.environ.get('TFDS_DATA_DIR')
    if not data_dir or not os.path.isdir(os.path.join(data_dir, 'cifar10')):
        pytest.skip('TFDS_DATA_DIR holds no CIFAR-10')
    return data_dir
