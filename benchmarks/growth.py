"""Time and memory of the step as the batch grows, and of the neighbours as the gallery does."""

import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks import harness, results
from benchmarks.harness import Contender

TITLE = 'Growth'
_NUM_CLASSES = 10
_GROUPS = (1, 4, 16, 64, 256, 1024)
_PAIRS_OF_CLASS = 512  # in a repetition, in at least two batches
_GALLERIES = (10_000, 100_000, 1_000_000)
_QUERIES, _DIMENSIONS, _NEIGHBOURS = 1000, 128, 10
_REPEATS = 3
_PLOT = pathlib.Path(__file__).parent / 'growth.png'
_NOTES = f"""\
A process each, one after the other: the median (lowest-highest) of {_REPEATS} repetitions after a first, and the
process's peak memory. The step: {_NUM_CLASSES} classes of random images in CIFAR-10's shape, the reference encoder;
an image is an anchor or a positive. One group fills two cores; of a larger batch a few groups at a time are trained
on, which with 'batch' negatives encodes every image twice. The neighbours: `neighbours.top_k` of {_QUERIES:,} queries,
{_DIMENSIONS} dimensions, k = {_NEIGHBOURS}; the gallery itself is in the memory.

![Time and memory against batch and gallery](growth.png)
"""


def batch(groups: int, negatives: str):
    """A repetition is an epoch of at least two batches; returns 'images', how many it trains on."""
    import jax

    from simclr_cifar import config as config_lib
    from simclr_cifar import parallel, sampling, step

    config = config_lib.defaults().unlock()
    config.update(
        {
            'num_classes': _NUM_CLASSES,
            'groups_per_batch': groups,
            'negatives': negatives,
            'batches_per_epoch': max(2, _PAIRS_OF_CLASS // groups),
        }
    )
    mesh = parallel.make_mesh(groups)
    labels = np.repeat(np.arange(_NUM_CLASSES), 1000)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    states = jax.tree.map(lambda leaf: np.asarray(leaf)[None], step.init_state(config, images, 0))
    index = sampling.class_index(labels, _NUM_CLASSES)
    states, *rest = parallel.replicate((states, np.zeros(1, np.int32), images, index), mesh)
    run_epoch = step.compile_epoch(config, mesh)

    def run():
        nonlocal states
        states, _ = jax.block_until_ready(run_epoch(states, *rest))
        return {'images': 2 * groups * _NUM_CLASSES * config.batches_per_epoch}

    return run


def gallery(size: int):
    """A repetition is a search of all queries; returns 'images', the gallery's."""
    from benchmarks.neighbours import embeddings
    from simclr_cifar import neighbours

    queries, items = embeddings(_QUERIES, _DIMENSIONS, 1), embeddings(size, _DIMENSIONS, 2)
    # Making them takes more memory than the search: the peak begins again here (man 5 proc, clear_refs).
    pathlib.Path('/proc/self/clear_refs').write_text('5')

    def run():
        neighbours.top_k(queries, items, _NEIGHBOURS)
        return {'images': size}

    return run


def measure() -> str:
    """Returns the section and draws growth.png."""
    steps = {
        negatives: {groups: _measure('batch', groups=groups, negatives=negatives) for groups in _GROUPS}
        for negatives in ('group', 'batch')
    }
    searches = {size: _measure('gallery', size=size) for size in _GALLERIES}
    _draw(steps, searches)
    rows = [
        [negatives, f'{groups:,}', *_cells(found, 1e6 / found.figures['images'])]
        for negatives, of_groups in steps.items()
        for groups, found in of_groups.items()
    ]
    of_step = results.table(['negatives', 'groups a batch', 'µs/image', 'peak memory, MB'], rows)
    rows = [[f'{size:,}', *_cells(found, 1e9 / size / _QUERIES)] for size, found in searches.items()]
    of_gallery = results.table(['gallery', 'ns/(query x item)', 'peak memory, MB'], rows)
    return '\n\n'.join([results.environment(), _NOTES.strip(), of_step, of_gallery])


def _measure(function: str, **arguments) -> harness.Measurement:
    contender = Contender(function, f'benchmarks.growth:{function}', arguments)
    return harness.alternate([contender], _REPEATS)[0]


def _cells(found: harness.Measurement, scale: float) -> list[str]:
    return [results.spread([scale * seconds for seconds in found.seconds]), f'{found.peak_bytes / 1e6:.0f}']


def _draw(steps: dict, searches: dict) -> None:
    matplotlib.use('Agg')
    figure = Figure(figsize=(9, 6), layout='constrained')
    (step_time, search_time), (step_memory, search_memory) = figure.subplots(2, 2, sharex='col')
    for negatives, style in (('group', 'o-'), ('batch', 's--')):
        found = steps[negatives].values()
        per_image = [1e6 * one.median / one.figures['images'] for one in found]
        step_time.plot(list(steps[negatives]), per_image, style, label=f"'{negatives}' negatives")
        step_memory.plot(list(steps[negatives]), [one.peak_bytes / 1e6 for one in found], style)
    per_product = [1e9 * one.median / size / _QUERIES for size, one in searches.items()]
    search_time.plot(list(searches), per_product, 'o-')
    search_memory.plot(list(searches), [one.peak_bytes / 1e6 for one in searches.values()], 'o-', label='the process')
    itself = [4e-6 * _DIMENSIONS * size for size in searches]
    search_memory.plot(list(searches), itself, ':', color='grey', label='the gallery itself')
    step_time.set(title='The step', ylabel='µs an image')
    search_time.set(title='Exact neighbours', ylabel='ns a query and item')
    step_memory.set(xlabel='groups a batch', ylabel='peak memory, MB')
    search_memory.set(xlabel='images in the gallery', ylabel='peak memory, MB')
    for axes in (step_time, step_memory, search_time, search_memory):
        axes.set_xscale('log', base=2 if axes in (step_time, step_memory) else 10)
        axes.grid(alpha=0.25)
    for axes in (step_time, search_time):
        axes.set_ylim(0)
    for axes in (step_memory, search_memory):
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
        axes.yaxis.set_minor_formatter(NullFormatter())
    step_time.legend()
    search_memory.legend()
    step_memory.set_ylim(100, 2000)
    figure.savefig(_PLOT, dpi=110)
