"""A run's encoder as files that outlive this project: from uint8 pictures to unit-norm embeddings.

python -m simclr_cifar.export --checkpoint=runs/c10-1a2b3c4d --to=exported

--to then holds encoder.onnx, for any ONNX runtime; encoder.stablehlo, for JAX alone (`jax.export.deserialize`);
encoder.json, what a program wants to know of it; and README.md, the model card.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from simclr_cifar import commands, compiled, files, onnx_graph, trained
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder
from simclr_cifar.trained import Trained

_TOLERANCE = 1e-4  # between JAX's embeddings and the exported file's
_TRIED = (1, 5)  # images in a batch
_SCORES = ('pair_accuracy', 'precision_at_1', 'precision_at_10', 'knn_accuracy_k200', 'map_at_r', 'view_accuracy')


def export(run: RunFolder, to: pathlib.Path, epoch: int | None = None) -> dict:
    """Writes an encoder's files and returns what encoder.json holds.

    Args:
      run: the run's folder.
      to: the folder, made where it is missing.
      epoch: as `trained.load`.

    Raises:
      InputError: there is no such run, the folder cannot be written, or the encoder does what has no ONNX form.
    """
    encoder = trained.load(run, epoch)
    about = _about(run, encoder)
    try:
        model = onnx_graph.trace(encoder.embed, encoder.image_shape, np.uint8, {'about': json.dumps(about)})
    except onnx_graph.NoForm as error:
        raise InputError(f'{run.flag}={run.path}: its encoder has no ONNX form ({error}); see onnx_graph.py') from error
    about['largest_difference'] = _largest_difference(encoder, model.SerializeToString())
    try:
        files.write(to / 'encoder.onnx', model.SerializeToString())
        files.write(to / 'encoder.stablehlo', _stablehlo(encoder))
        files.write_json(to / 'encoder.json', about)
        files.write(to / 'README.md', _card(about))
    except OSError as error:
        raise InputError(f'--to={to}: cannot be written ({error.strerror}); choose another folder') from error
    return about


def _about(run: RunFolder, encoder: Trained) -> dict:
    described = run.read_json(run.config)
    figures = run.read_json(run.metrics) if run.metrics.exists() else {}
    figures = figures if figures.get('epoch') == encoder.epoch else {}
    return {
        'fingerprint': encoder.fingerprint,
        'image_shape': list(encoder.image_shape),
        'embedding_dim': int(jax.eval_shape(encoder.embed, np.zeros((1, *encoder.image_shape), np.uint8)).shape[1]),
        'class_names': encoder.class_names,
        'threshold': figures.get('no_match/threshold'),
        'name': described.get('name', ''),
        'data': described.get('description', ''),
        'images': described.get('images', {}),
        'epoch': encoder.epoch,
        'scores': {name: figures[f'test/{name}'] for name in _SCORES if f'test/{name}' in figures},
        'config': run.read_config(),
        'versions': described.get('versions', {}),
        'git_commit': described.get('git_commit', ''),
    }


def _largest_difference(encoder: Trained, model: bytes) -> float:
    """Returns how far the embeddings of some noise are from JAX's.

    Raises:
      RuntimeError: further than _TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    images = np.random.default_rng(0).integers(0, 256, (max(_TRIED), *encoder.image_shape), np.uint8)
    expected = np.asarray(jax.jit(encoder.embed)(images))
    found = [session.run(None, {'images': images[:count]})[0] for count in _TRIED]
    apart = max(float(np.abs(some - expected[: len(some)]).max()) for some in found)
    if not apart <= _TOLERANCE:
        raise RuntimeError(f"the exported encoder's embeddings are {apart:.1e} away from JAX's")
    return apart


def _stablehlo(encoder: Trained) -> bytes:
    (batch,) = jax.export.symbolic_shape(onnx_graph.BATCH)
    images = jax.ShapeDtypeStruct((batch, *encoder.image_shape), np.uint8)
    return bytes(jax.export.export(jax.jit(encoder.embed), platforms=('cpu', 'cuda', 'tpu'))(images).serialize())


def _card(about: dict) -> str:
    height, width, _ = about['image_shape']
    config, classes = about['config'], ', '.join(about['class_names'])
    counts = ', '.join(f'{count:,} {split}' for split, count in about['images'].items())
    scores = '\n'.join(f'| {name} | {100 * value:.2f} |' for name, value in about['scores'].items())
    threshold = about['threshold']
    no_match = (
        f'A picture whose tenth nearest training image is less similar than {threshold:.4f} is taken for one of no '
        'known class: 5 % of the validation images fall below.'
        if threshold is not None
        else 'None was calibrated in training; an index of `simclr_cifar.search` calibrates one on its own pictures.'
    )
    return f"""# {about['name']}: an encoder of pictures

Takes `images`, uint8 [batch, {height}, {width}, 3], RGB; returns `embeddings`, float32
[batch, {about['embedding_dim']}], of norm 1, whose inner product tells how alike two pictures are. Pictures of other
sizes are to be scaled, by their centre and with antialiasing, to {height}x{width} pixels first.

- `encoder.onnx`: ONNX, opset {onnx_graph.OPSET}; on noise {about['largest_difference']:.0e} away from JAX's embeddings.
- `encoder.stablehlo`: `jax.export.deserialize(bytes).call(images)`, on a CPU, a GPU or a TPU.
- `encoder.json`: all of this for programs.

## Data

{about['data']} {counts} images of {classes}.

## Recipe

`{about['name']}`, epoch {about['epoch']} of {config['num_epochs']}: encoder `{config['encoder']}`, objective
`{config['objective']}`, pairs `{config['pairs']}`, optimiser `{config['optimizer']}`, seed {config['seed']}; the whole
config is in `encoder.json`. Trained by simclr_cifar at commit {about['git_commit']}.

## Scores

| of the test images | % |
|---|---|
{scores or '| none are known of this epoch | |'}

## No match

{no_match}

## Limits

It was trained on small pictures of the classes above. What else it finds alike was not measured; it is not made to tell
people from each other, nor for decisions about them. Fingerprint {about['fingerprint']}.
"""


def main(arguments: list[str]) -> int:
    """Exports as the flags say and returns the exit status."""
    compiled.compute_in_32_bits()
    parser = commands.Parser(prog='python -m simclr_cifar.export', description=__doc__)
    path = {'required': True, 'type': commands.local_path}
    parser.add_argument('--checkpoint', metavar='RUN', help="the run's folder, as weights/fast", **path)
    parser.add_argument('--to', metavar='DIR', help='the folder to write', **path)
    parser.add_argument('--epoch', type=int, help='default: the one of its figures, or the last')
    given = parser.parse_args(arguments)
    about = export(RunFolder(given.checkpoint, '--checkpoint'), pathlib.Path(given.to), given.epoch)
    difference = about['largest_difference']
    print(f"{given.to}: encoder.onnx, {difference:.0e} away from JAX's embeddings, encoder.stablehlo, a card")
    return 0


if __name__ == '__main__':
    sys.exit(commands.answered(main, sys.argv[1:]))
