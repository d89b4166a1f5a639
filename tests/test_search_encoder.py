"""Encoders from runs and from files, with JAX and without."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from search_folders import SIDE, make_encoder, pixels, write_picture
from test_export import IMAGES, made_run

from simclr_cifar import export
from simclr_cifar.config import InputError
from simclr_cifar.search import encoder as encoders
from simclr_cifar.search import load_encoder


@pytest.fixture(scope='module')
def run_and_exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp('encoders')
    run, _, _ = made_run(folder / 'run', flip_averaging=True)
    export.export(run, folder / 'exported')
    return run.path, folder / 'exported' / 'encoder.onnx'


def test_a_run_and_its_export_are_one_encoder(run_and_exported, monkeypatch):
    monkeypatch.setattr(encoders, 'BATCH', 4)
    run, exported = map(load_encoder, run_and_exported)
    for name in ('fingerprint', 'image_shape', 'embedding_dim', 'class_names'):
        assert getattr(run, name) == getattr(exported, name)
    assert (run.image_shape, run.embedding_dim) == ((32, 32, 3), 8)
    for count in (1, 5):
        embeddings = run.embed(IMAGES[:count])
        np.testing.assert_allclose(exported.embed(IMAGES[:count]), embeddings, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    # Whether alone or among others.
    np.testing.assert_allclose(run.embed(IMAGES[:1]), run.embed(IMAGES)[:1], atol=1e-5)
    assert (run.source, exported.source) == tuple(map(str, run_and_exported))


def test_files_are_read_upright_and_scaled(tmp_path):
    encoder = make_encoder()
    path = write_picture(tmp_path / 'a.png', 3)
    np.testing.assert_array_equal(encoder.read(path), pixels(3))
    turned = Image.fromarray(np.rot90(pixels(3), 1))  # To the left; 6 says: to be turned to the right.
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / 'turned.png', exif=exif)
    np.testing.assert_array_equal(encoder.read(tmp_path / 'turned.png'), pixels(3))
    Image.fromarray(pixels(3)).resize((40, 24)).save(tmp_path / 'large.jpg')
    assert encoder.read(tmp_path / 'large.jpg').shape == (SIDE, SIDE, 3)
    with (tmp_path / 'a.png').open('rb') as file:
        np.testing.assert_allclose(encoder.embed([file, path])[0], encoder.embed([pixels(3)])[0], atol=1e-6)


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path, run_and_exported):
    whole = run_and_exported[1].read_bytes()
    (tmp_path / 'cut.onnx').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'text.onnx').write_text('text')
    for source, said in (
        (tmp_path / 'missing.onnx', 'there is no such file'),
        (tmp_path / 'cut.onnx', 'is damaged'),
        (tmp_path / 'text.onnx', 'is damaged'),
        (tmp_path, 'config.json is missing'),
    ):
        with pytest.raises(InputError, match=said) as error:
            load_encoder(source)
        assert '\n' not in str(error.value)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / 'a.txt').write_text('text')
    with pytest.raises(InputError, match='is no picture'):
        make_encoder().read(tmp_path / 'a.txt')
    with pytest.raises(InputError, match='No such file'):
        make_encoder().read(tmp_path / 'missing')


WITHOUT_JAX = """
import sys
for name in ('jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets'):
    sys.modules[name] = None
from simclr_cifar.search import Index, load_encoder
from simclr_cifar.search.__main__ import main
onnx, run, folder, index, picture = sys.argv[1:]
assert main(['build', f'--encoder={onnx}', f'--images={folder}', f'--index={index}']) == 0
assert main(['query', f'--index={index}', f'--image={picture}', '-k', '1']) == 0
try:
    load_encoder(run)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_an_exported_encoder_needs_no_jax(run_and_exported, tmp_path):
    for number in range(3):
        picture = write_picture(tmp_path / 'pictures' / f'{number}.png', number)
    arguments = [run_and_exported[1], run_and_exported[0], tmp_path / 'pictures', tmp_path / 'index', picture]
    root = pathlib.Path(__file__).parent.parent
    told = subprocess.run(
        [sys.executable, '-c', WITHOUT_JAX, *map(str, arguments)],
        cwd=root,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    built, found, refused = told.stdout.splitlines()
    assert '3 pictures' in built
    assert found.startswith('1.0000')
    assert found.endswith('2.png')
    assert refused.startswith('InputError')
    assert 'needs JAX' in refused
