"""A run's encoder as files, and what is in them."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from simclr_cifar import (
    checkpoint,
    commands,
    data,
    evaluate,
    export,
    files,
    models,
    onnx_graph,
    parallel,
    step,
    stored,
    trained,
)
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def made_run(path, **fields):
    """A run with weights of its own config's model, as they are before training, and invented figures."""
    config = config_lib.defaults()
    config.update({'channels': (4, 6), 'dataset': 'digits'} | fields)
    run = RunFolder(path)
    state = step.init_state(config, IMAGES, 3)
    described = {'name': 'made', 'config': stored.to_json(config), 'class_names': ['a', 'b']}
    files.write_json(run.config, described | {'image_shape': [32, 32, 3], 'description': 'Noise.'})
    files.write_json(run.metrics, {'epoch': 7, 'test/precision_at_1': 0.1234, 'no_match/threshold': 0.875})
    checkpoint.save_weights(run, 7, state)
    return run, config, state


@pytest.mark.parametrize('fields', [{}, {'flip_averaging': True}, {'representation': 'features'}])
def test_an_encoder_embeds_as_its_evaluation_does(tmp_path, fields):
    run, config, state = made_run(tmp_path / 'run', **fields)
    splits, mesh = {'test': data.Dataset('noise', IMAGES, np.zeros(5, np.int32), ('a', 'b'), '')}, parallel.one_device()
    embed = evaluate._embedder(config, mesh, splits, step.compile_encode(config, mesh), state.variables)
    np.testing.assert_allclose(jax.jit(trained.load(run).embed)(IMAGES), embed('test'), atol=1e-6)


def test_the_files_hold_the_encoder_and_tell_of_it(tmp_path, capsys):
    run, _, _ = made_run(tmp_path / 'run', compute_dtype='bfloat16', flip_averaging=True)
    to = tmp_path / 'exported'
    assert export.main([f'--checkpoint={run.path}', f'--to={to}']) == 0
    assert str(to) in capsys.readouterr().out
    encoder = trained.load(run)
    expected = np.asarray(jax.jit(encoder.embed)(IMAGES))

    session = onnxruntime.InferenceSession(to / 'encoder.onnx', providers=['CPUExecutionProvider'])
    program = jax.export.deserialize((to / 'encoder.stablehlo').read_bytes())
    for count in (1, 5):
        np.testing.assert_allclose(session.run(None, {'images': IMAGES[:count]})[0], expected[:count], atol=1e-4)
        np.testing.assert_allclose(program.call(IMAGES[:count]), expected[:count], atol=1e-4)

    about = json.loads((to / 'encoder.json').read_text())
    (prop,) = onnx.load(to / 'encoder.onnx').metadata_props
    assert json.loads(prop.value).items() <= about.items()
    assert about['fingerprint'] == encoder.fingerprint
    assert (about['class_names'], about['threshold'], about['embedding_dim']) == (['a', 'b'], 0.875, 8)
    assert about['scores'] == {'precision_at_1': 0.1234}
    card = (to / 'README.md').read_text()
    for said in ('12.34', '0.8750', 'Noise.', encoder.fingerprint, '[batch, 32, 32, 3]'):
        assert said in card


def test_figures_of_another_epoch_are_not_told(tmp_path):
    run, _, state = made_run(tmp_path / 'run')
    with checkpoint.Saver(run.checkpoints, 2, []) as saver:
        for epoch in (3, 7):
            saver.save(epoch, state)
    assert export.export(run, tmp_path / 'to')['scores']
    about = export.export(run, tmp_path / 'to', 3)
    assert (about['epoch'], about['scores'], about['threshold']) == (3, {}, None)


def test_a_fingerprint_is_of_all_that_an_embedding_depends_on(tmp_path):
    same = [{}, {'num_epochs': 3, 'compute_dtype': 'bfloat16'}]  # Which change no embedding of these weights.
    others = [{'flip_averaging': True}, {'representation': 'features'}, {'embedding_dim': 9}]
    prints = [
        trained.load(made_run(tmp_path / str(number), **fields)[0]).fingerprint
        for number, fields in enumerate(same + others)
    ]
    assert prints[0] == prints[1]
    assert len(set(prints[1:])) == 4
    run, _, state = made_run(tmp_path / 'other')
    checkpoint.save_weights(run, 7, state.replace(variables=jax.tree.map(lambda leaf: leaf + 1e-3, state.variables)))
    assert trained.load(run).fingerprint not in prints


def test_doubles_in_the_environment_change_nothing(tmp_path):
    line = [sys.executable, '-m', 'simclr_cifar.export', '--checkpoint=weights/fast', f'--to={tmp_path / "exported"}']
    environment = os.environ | {'JAX_ENABLE_X64': '1'}
    root = pathlib.Path(__file__).parent.parent
    result = subprocess.run(line, cwd=root, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert (tmp_path / 'exported' / 'encoder.onnx').exists()


def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    run, _, _ = made_run(tmp_path / 'run')
    (tmp_path / 'file').write_text('')
    old = run.read_json(run.config)
    for arguments, said in (
        ([f'--checkpoint={tmp_path}', '--to=x'], 'config.json is missing'),
        ([f'--checkpoint={run.path}', '--to=x', '--epoch=3'], '--epoch=3: no checkpoint'),
        ([f'--checkpoint={run.path}', f'--to={tmp_path / "file"}'], 'cannot be written'),
        ([f'--checkpoint={run.path}'], '--to'),
        ([f'--check={run.path}', '--to=x'], '--checkpoint'),
    ):
        try:
            status = commands.answered(export.main, arguments)
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith('error: ')
        assert said in line
    for field, values in (
        ('image_shape', (None, 'x', [32, 32], [0, 0, 3], [32.0, 32, 3])),
        ('class_names', (None, 'x', [1])),
    ):
        for value in values:
            files.write_json(run.config, old | {field: value})
            with pytest.raises(InputError, match=f'"{field}"'):
                trained.load(run)
    files.write_json(run.config, old)
    files.write_arrays(run.weights, {'a': np.zeros(3)})
    with pytest.raises(InputError, match='holds no epoch'):
        trained.load(run)


def test_an_encoder_without_a_form_is_refused_and_a_wrong_one_not_written(tmp_path, monkeypatch):
    run, _, _ = made_run(tmp_path / 'run')
    whole = models.encode
    monkeypatch.setattr(models, 'encode', lambda *given: jax.tree.map(lambda rows: jax.numpy.sort(rows), whole(*given)))
    with pytest.raises(InputError, match='no ONNX form'):
        export.export(run, tmp_path / 'to')
    monkeypatch.undo()
    monkeypatch.setitem(onnx_graph._ELEMENTWISE, 'max', 'Min')
    with pytest.raises(RuntimeError, match='away from'):
        export.export(run, tmp_path / 'to')
    assert not (tmp_path / 'to').exists()
