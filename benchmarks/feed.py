"""Images that are read ahead of the device against images that it holds."""

import statistics

from benchmarks import harness, results
from benchmarks.harness import Contender

TITLE = 'Images read ahead'
_BATCHES = {'c10': 1000, 'fast': 5}  # of a repetition
_NOTES = """\
An epoch of CIFAR-10's training images as `train` runs it: `resident`, all of them on the device; `read`, those of a few
steps at a time gathered from the memory-mapped cache by a thread. Taking turns; the ratio, read over resident, turn by
turn: median (lowest-highest). An image is an anchor or a positive. Predicted: 1.05 for c10, whose epoch of about 2.5 s
gathers 61 MB, and 1.00 for fast.
"""


def epoch(file: str, resident: bool):
    """A repetition is an epoch; returns 'images', how many it trains on."""
    import importlib

    import jax
    import numpy as np

    from simclr_cifar import data, parallel, step
    from simclr_cifar.feed import Feed

    config = importlib.import_module(f'configs.{file}').get_config().unlock()
    config.update(batches_per_epoch=_BATCHES[file], num_classes=10, num_epochs=1000)
    training, mesh = data.load_splits(config)['train'], parallel.make_mesh(config.groups_per_batch)
    states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], step.init_state(config, training.images, 0))
    states, seeds = parallel.replicate((states, np.zeros(1, np.int32)), mesh)
    epochs = Feed(config, mesh, training, 1, resident).epochs(states, seeds)
    run_epoch = epochs.__enter__()

    def run():
        nonlocal states
        states, _ = jax.block_until_ready(run_epoch(states))
        return {'images': 2 * config.groups_per_batch * 10 * config.batches_per_epoch}

    run.epochs = epochs  # Open as long as this is.
    return run


def measure() -> str:
    """Returns the section."""
    rows = []
    for file in _BATCHES:
        pair = [
            Contender(name, 'benchmarks.feed:epoch', {'file': file, 'resident': name == 'resident'})
            for name in ('resident', 'read')
        ]
        resident, read = harness.alternate(pair)
        ratios = harness.paired_ratios(read, resident)
        for measured in (resident, read):
            rate = measured.figures['images'] / measured.median
            rows.append([file, measured.title, f'{measured.median:.2f}', f'{rate:,.0f}', ''])
        rows[-1][-1] = f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'
    header = ['config', 'images', 's an epoch', 'images/s', 'ratio']
    return '\n\n'.join([results.environment(), _NOTES.strip(), results.table(header, rows)])
