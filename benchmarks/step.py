"""An epoch of the reference configuration beside the same epoch in other frameworks, and the machine's limit."""

import dataclasses

import numpy as np

from benchmarks import harness, results
from benchmarks.harness import Contender, ContenderFailed
from simclr_cifar import config as config_lib
from simclr_cifar import data

TITLE = 'Training: an epoch'
_CHECKED_STEPS = 3
_TOLERANCE = 1e-5  # of a loss, in nats
# Keras has Adam's epsilon ten times the others' and adds it elsewhere, so that losses part after the first update.
_TOLERANCE_OF_KERAS = 1e-3

_OURS = Contender('simclr_cifar', 'benchmarks.step_jax:epoch')
_PYTORCH = Contender('PyTorch, eager', 'benchmarks.step_torch:epoch')
_PEERS = {  # number of classes: contenders
    10: [
        Contender('Keras on TensorFlow, the reference program', 'benchmarks.step_keras:epoch'),
        Contender('Keras on TensorFlow, tuned', 'benchmarks.step_keras:epoch', {'tuned': True}),
        _PYTORCH,
        Contender(
            'PyTorch, torch.compile', 'benchmarks.step_torch:epoch', {'compile_mode': 'max-autotune'}, may_fail=True
        ),
        Contender('pytorch-metric-learning', 'benchmarks.step_torch:epoch', {'loss': 'pytorch_metric_learning'}),
    ],
    7: [_PYTORCH],
    4: [_PYTORCH],
}
_NOTES = """\
A repetition is an epoch of {batches} batches of the reference configuration (`simclr_cifar/config.py`), pairs drawn in
it. The limit is what the step's multiply-adds alone take at the rate of a float32 product of 2048 x 2048 matrices,
measured in the same turns.

- *The reference program*: the design of the Keras example, `fit` over a data set of NumPy batches that two
  threads draw. *Tuned*: `tf.data` over images in memory, anchors and positives in one pass, 20 steps an execution.
- *PyTorch*: images in memory, channels_last, anchors and positives in one pass, fused Adam, an epoch's pairs drawn at
  once. *torch.compile*: max-autotune, from indices to the loss. *pytorch-metric-learning*: the eager program with its
  NTXentLoss, which gives no accuracy.
"""


def multiply_adds(num_classes: int) -> int:
    """Returns the multiply-adds of one training step, of its convolutions, dense layer and logits.

    A convolution of 3x3 and stride 2 has out_height * out_width * 9 * channels_in * channels_out an image. Its backward
    pass has as many for the kernel's gradient and again for its input's, which the first layer needs none of. Both
    passes see 2 * num_classes images; logits and their two gradients have num_classes**2 * embedding_dim each.
    """
    config = config_lib.defaults()
    size, channels_in, layers = 32, 3, []
    for channels in config.channels:
        size //= 2
        layers.append(size * size * 9 * channels_in * channels)
        channels_in = channels
    layers.append(channels_in * config.embedding_dim)
    forward, kernels, inputs = sum(layers), sum(layers), sum(layers[1:])
    return 2 * num_classes * (forward + kernels + inputs) + 3 * num_classes**2 * config.embedding_dim


def measure() -> str:
    """Returns the section: checks that all compute the same, then times them."""
    config = config_lib.defaults()
    parts = [
        f'{results.environment()}\n' + results.describe_data(data.load(config.dataset, 'train')),
        _NOTES.format(batches=config.batches_per_epoch).strip(),
        results.reading(),
        _check(10, _PEERS[10]),
    ]
    for num_classes, peers in _PEERS.items():
        shared = {'num_classes': num_classes, 'batches': config.batches_per_epoch}
        *measured, products = harness.alternate(
            [*(_with(peer, **shared) for peer in (_OURS, *peers)), harness.PRODUCTS]
        )
        rate = harness.operations_per_second(products)
        operations = 2 * multiply_adds(num_classes) * config.batches_per_epoch
        parts.append(
            f'{num_classes} classes: {operations / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, a limit of '
            f'{operations / rate:.2f} s.\n\n' + results.comparison(measured, 'epoch', operations / rate)
        )
    return '\n\n'.join(parts)


def _with(contender: Contender, **arguments) -> Contender:
    return dataclasses.replace(contender, arguments=contender.arguments | arguments)


def _check(num_classes: int, peers: list[Contender]) -> str:
    """Trains all on the same batches from the same weights; returns what they agree to.

    Raises:
      ContenderFailed: a peer's losses are not ours.
    """
    reference = harness.once(
        Contender(_OURS.title, 'benchmarks.step_jax:reference', {'num_classes': num_classes, 'steps': _CHECKED_STEPS})
    )
    lines = []
    for peer in peers:
        checked = dataclasses.replace(peer, function=peer.function.replace(':epoch', ':losses'))
        given = {'num_classes': num_classes, 'weights': reference['weights'], 'pairs': reference['pairs']}
        try:
            found = harness.once(_with(checked, **given))['losses']
        except ContenderFailed:
            if not peer.may_fail:
                raise
            continue
        differences = np.abs(found - reference['losses'])
        updated = _TOLERANCE_OF_KERAS if 'Keras' in peer.title else _TOLERANCE
        if not (differences[0] <= _TOLERANCE and np.all(differences <= updated)):
            raise ContenderFailed(f'{peer.title}: losses {found}, ours {reference["losses"]} of the same batches')
        lines.append(f'{peer.title} {differences[0]:.0e} and {differences.max():.0e}')
    return (
        f'Checked first: from the same weights on the same {_CHECKED_STEPS} batches, losses differ from ours, at the '
        f'first batch and at most, by: {"; ".join(lines)} nats.'
    )
