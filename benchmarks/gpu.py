"""What one GPU does, beside its own ceilings and PyTorch on it, in parts that can be measured one at a time.

GPU_PARTS=ceilings,epoch benchmarks/run.sh gpu     the parts named, of `parts`; the others stay as RESULTS.md has them
GPU_PROFILE_DIR=folder                             where the part `profile` leaves its traces; default: runs/profile
"""

import dataclasses
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Sequence

from benchmarks import harness, results, step
from benchmarks.gpu_contenders import DIMENSIONS, NEIGHBOURS, QUEUED, NotMeasured
from benchmarks.harness import Contender, ContenderFailed

TITLE = 'On a GPU'
_ROOT = pathlib.Path(__file__).parents[1]
_RESNET_18 = 555_417_600  # multiply-adds of an image's features, as `models.operations` counts them
_HEADER = ('', 'measured', 'times the limit', 'ours / it', 'first call, s more', 'peak memory, MB', 'goal')
_NOTES = """\
One card. A part names the commit and the card that it was measured at. Each row has a process of its own, and the rows
of a part take turns. A figure is the median (lowest-highest) of repetitions, each of as many calls as fill half a
second; a call ends when the device is done, and moves between host and device what it would for its user. "First call"
is what that took beyond the median, with no compilation cache. Memory is the device's peak by the allocator's count.
"Times the limit" is the time over what the row's operations or bytes take at the rate named, measured in the same
turns: products of square matrices in float32 at *default* precision (TF32, which the encoder's run at) and at
*highest*; and *copy*, from device memory to itself, which counts bytes read and bytes written.
"""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much the rows do; RESULTS.md has the defaults."""

    batches: int = 1000  # an epoch
    epochs: int = 75  # a reference run
    classes: tuple[int, ...] = (10, 7, 4)
    groups: tuple[int, ...] = (8, 64, 512)
    seeds: tuple[int, ...] = (1, 3, 8, 32)
    matrix: int = 8192  # rows and columns
    copied: int = 2**29  # bytes
    searches: tuple[tuple[int, int], ...] = ((1, 10**7), (1, 10**6), (10_000, 10**6))  # queries, gallery
    traced_batches: int = 100  # of the largest G
    batches_of_views: int = 20  # of the deeper encoder's epoch
    study_flags: tuple[str, ...] = ()
    torch_device: str = 'cuda'
    torch_modes: tuple[str | None, ...] = (None, 'reduce-overhead', 'max-autotune')


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
      title: what is measured.
      contender: who does it.
      goal: in words.
      unit: of the figure.
      scale: times the seconds of a call, it is the figure; of a rate ('.../s'), over the seconds.
      limits: names of ceilings to what a call has of theirs, TFLOP or GB.
    """

    title: str
    contender: Contender
    goal: str = '-'
    unit: str = 's'
    scale: float = 1.0
    limits: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows that are measured together.

    Attributes:
      title: the heading.
      rows: as said.
      note: for the reader.
      repeats: repetitions after the first; 0: the first is the figure, and rows come one after the other.
      compared: whether the first row is ours and the others are peers.
    """

    title: str
    rows: Sequence[Row]
    note: str = ''
    repeats: int = harness.REPEATS
    compared: bool = False


def _contender(function: str, **arguments) -> Contender:
    return Contender(function, f'benchmarks.gpu_contenders:{function}', arguments, may_fail=True)


def _ceilings(sizes: Sizes) -> dict[str, Row]:
    def product(dtype, precision):
        contender = _contender('matmul', size=sizes.matrix, dtype=dtype, precision=precision)
        operations = QUEUED * 2e-12 * sizes.matrix**3
        return Row(f'{dtype} product, {precision} precision', contender, unit='TFLOP/s', scale=operations)

    return {
        'bfloat16': product('bfloat16', 'default'),
        'default': product('float32', 'default'),
        'highest': product('float32', 'highest'),
        'copy': Row(
            'copy',
            _contender('copy', size=sizes.copied),
            unit='GB/s',
            scale=QUEUED * 2e-9 * sizes.copied,
        ),
    }


def parts(folder: str, sizes: Sizes) -> dict[str, Part]:
    """Returns the parts by name, the most important first; folder is empty, for compilation caches."""
    ceilings, largest = _ceilings(sizes), sizes.groups[-1]
    traces = os.environ.get('GPU_PROFILE_DIR', f'{_ROOT}/runs/profile')

    def epochs(title, num_classes=10, groups=1, num_seeds=1, count=1, goal='-'):
        arguments = {'num_classes': num_classes, 'groups': groups, 'num_seeds': num_seeds, 'count': count}
        work = 2e-12 * step.multiply_adds(num_classes) * groups * num_seeds * sizes.batches * count
        unit, scale = ('µs a step', 1e6 / sizes.batches) if count == 1 else ('s', 1.0)
        contender = _contender('epochs', batches=sizes.batches, **arguments)
        return Row(title, contender, goal, unit, scale, {'default': work, 'highest': work})

    def peer(mode):
        arguments = {'num_classes': 10, 'batches': sizes.batches, 'device': sizes.torch_device, 'compile_mode': mode}
        title = f'torch.compile, {mode}' if mode else 'PyTorch, eager'
        return dataclasses.replace(epochs(title), contender=_contender('pytorch', **arguments))

    def search(queries, gallery):
        passes, products = (
            4e-9 * DIMENSIONS * gallery,
            2e-12 * DIMENSIONS * queries * gallery,
        )
        limits = {'copy': passes} if queries == 1 else {'highest': products}
        goal = 'at most 1.5 times the limit' if (queries, gallery) == (1, 10**7) else '-'
        contender = _contender('search', queries=queries, gallery=gallery)
        return Row(f'{queries:,} of {gallery:,}', contender, goal, 'ms', 1e3, limits)

    def compiling(groups, num_seeds):
        arguments = {'groups': groups, 'num_seeds': num_seeds, 'cache': f'{folder}/epoch-{groups}-{num_seeds}'}
        contender = _contender('compilation', num_classes=10, batches=sizes.batches, **arguments)
        return [Row(f'G = {groups}, seeds: {num_seeds}, {cache} cache', contender) for cache in ('cold', 'warm')]

    def trace(groups, batches):
        arguments = {'num_classes': 10, 'groups': groups, 'batches': batches, 'folder': f'{traces}/groups-{groups}'}
        return Row(f'G = {groups}, {batches} batches', _contender('trace', **arguments))

    run = epochs(f'10 classes, {sizes.epochs} epochs', count=sizes.epochs, goal='75 epochs: at most 4 s')
    study = _contender('study', flags=sizes.study_flags, cache=f'{folder}/study')
    studies = [Row(f'{cache} compilation cache', study, 'at most 40 s') for cache in ('cold', 'warm')]
    evaluation = _contender('evaluation', num_classes=10, batches=sizes.batches)
    modes, classes = sizes.torch_modes, sizes.classes
    of_groups = [epochs(f'{number} classes, G = {size}', number, size) for size in sizes.groups for number in classes]
    of_seeds = [epochs(f'10 classes, seeds: {number}', num_seeds=number) for number in sizes.seeds]

    def resnet(title, goal='-', **fields):
        arguments = {'num_classes': 10, 'batches': sizes.batches_of_views, 'count': 1, 'recipe': 'simclr_r18', **fields}
        # Forward, and twice as much for the gradients: the models' own operations, without the head's.
        work = {'bfloat16': 3 * 2e-12 * _RESNET_18 * 2 * 512 * sizes.batches_of_views}
        scale = 1e3 / sizes.batches_of_views
        return Row(title, _contender('epochs', **arguments), goal, 'ms a step', scale, work)

    def resnet_peer(mode):
        title = f'torch.compile, {mode}' if mode else 'PyTorch, eager'
        contender = _contender('pytorch_resnet', batch=512, steps=sizes.batches_of_views, compile_mode=mode)
        return dataclasses.replace(resnet(title), contender=contender)

    def recipe(title, num_seeds, goal, name, **fields):
        contender = _contender('recipe', name=name, num_seeds=num_seeds, **fields)
        return Row(f'{title}, seeds: {num_seeds}', contender, goal)

    views = '512 x 2 views, bfloat16'
    return {
        'ceilings': Part('Ceilings', list(ceilings.values())),
        'epoch': Part('The reference epoch', [*(epochs(f'{number} classes', number) for number in classes), run]),
        'study': Part(
            'The whole study',
            studies,
            '`python -m simclr_cifar.main --mode=study --config=configs/study.py`, from start to page, images decoded '
            'before; JAX_COMPILATION_CACHE_DIR takes every program.',
            repeats=0,
        ),
        'search': Part(
            'Exact search',
            [search(*pair) for pair in sizes.searches],
            f'`neighbours.top_k`, {NEIGHBOURS} nearest in {DIMENSIONS} dimensions, float32: NumPy queries, a gallery '
            'on the device. The limit of one query is one pass over the gallery.',
        ),
        'seeds': Part('Seeds in one program', of_seeds, 'A step is one of each seed.'),
        'encoder': Part(
            'A deeper encoder',
            [resnet(f'ResNet-18, {views}', 'at least 45 % of the bfloat16 product')],
            'A step of `configs/simclr_r18.py`: sampling, augmentation and all.',
        ),
        'resnet': Part(
            'ResNet-18 beside PyTorch on the same card',
            [resnet('simclr_cifar', augmentation='none'), *map(resnet_peer, (None, 'default', 'max-autotune'))],
            f'A step of NT-Xent, {views} (PyTorch by autocast, channels_last), of images as they are: no augmentation.',
            compared=True,
        ),
        'recipes': Part(
            'Recipes',
            [
                recipe('fast', 20, '0.90 in 2 s a seed', 'fast'),
                recipe('fast in bfloat16', 20, '0.90 in 2 s a seed', 'fast', compute_dtype='bfloat16'),
                recipe('simclr_r18', 1, '4 minutes', 'simclr_r18'),
                recipe('supcon_r18', 1, '-', 'supcon_r18'),
            ],
            'Training alone, compiled before; kNN accuracy of test images, k = 200.',
            repeats=0,
        ),
        'groups': Part('Larger batches', of_groups, 'A batch is of G groups of one pair a class.', repeats=2),
        'pytorch': Part(
            'PyTorch on the same card, 10 classes',
            [epochs('simclr_cifar'), *(peer(mode) for mode in modes)],
            '`benchmarks/step_torch.py`, products in TF32 as ours; the compiled ones are CUDA graphs.',
            compared=True,
        ),
        'evaluation': Part(
            'Evaluation',
            [Row('10 classes', evaluation)],
            '`evaluate.make_evaluate` after an epoch: every figure of 10,000 test images, beside 50,000 for training.',
        ),
        'compile': Part('Compiling an epoch', [*compiling(1, 1), *compiling(1, 3), *compiling(largest, 1)], repeats=0),
        'profile': Part(
            'Profiles',
            [trace(1, sizes.batches), trace(largest, sizes.traced_batches)],
            '`jax.profiler.trace` of one epoch of 10 classes, compiled before.',
            repeats=0,
        ),
    }


def measure() -> str:
    """Returns the section, of the parts that GPU_PARTS names or of all; writes it after each.

    Raises:
      ContenderFailed: there is no GPU, or no such part.
    """
    with tempfile.TemporaryDirectory() as folder:
        known = parts(folder, Sizes())
        chosen = os.environ['GPU_PARTS'].split(',') if os.environ.get('GPU_PARTS') else list(known)
        if unknown := set(chosen) - set(known):
            raise ContenderFailed(f'GPU_PARTS: no part {", ".join(unknown)}; there are {",".join(known)}')
        os.environ.setdefault('CUDA_VISIBLE_DEVICES', '0')
        found = harness.once(_contender('device'))
        if found['platform'] != 'gpu':
            raise ContenderFailed(f'no GPU: JAX sees {found["kind"]} only; it needs a card and requirements-cuda.txt')
        texts = {part.title: _text(part) for part in known.values()}
        before = re.search('<!-- begin gpu -->(.*)<!-- end gpu -->', results.PATH.read_text(), re.DOTALL)
        for text in re.split(r'^### ', before[1] if before else '', flags=re.MULTILINE)[1:]:
            title = text.partition('\n')[0]
            texts |= {title: f'### {text.strip()}'} if title in texts else {}
        for name in chosen:
            print(f'Measuring gpu, {name}', file=sys.stderr, flush=True)
            texts[known[name].title] = measure_part(known[name], Sizes())
            section = '\n\n'.join([_NOTES.strip(), *texts.values()])
            results.write_section('gpu', TITLE, section)
    return section


def not_measured() -> str:
    """Returns the section with every row, none of them measured."""
    return '\n\n'.join([_NOTES.strip(), *(_text(part) for part in parts('', Sizes()).values())])


def measure_part(part: Part, sizes: Sizes) -> str:
    """Returns a part as Markdown; a failure is told in its row."""
    # Or each process would take three quarters of the card.
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
    rows = part.rows
    ceilings = {name: row for name, row in _ceilings(sizes).items() if any(name in other.limits for other in rows)}
    contenders = [row.contender for row in (*rows, *ceilings.values())]
    measured = [_of_a_call(found) for found in harness.alternate(contenders, part.repeats)]
    of_ceilings = zip(ceilings.items(), measured[len(rows) :], strict=True)
    rates = {name: row.scale / found.median for (name, row), found in of_ceilings if not found.failure}
    ours = measured[0] if part.compared else None
    cells = {row.title: _cells(row, found, rates, ours) for row, found in zip(rows, measured, strict=False)}
    return _text(part, cells, results.environment())


def _of_a_call(found: harness.Measurement) -> harness.Measurement:
    """Returns the measurement with the seconds of a call where it has those of a repetition."""
    if found.failure:
        return found
    first = found.figures.get('first_seconds', found.first_seconds)
    seconds = [seconds / found.figures['calls'] for seconds in found.seconds] or [first]
    return dataclasses.replace(found, seconds=seconds, first_seconds=first)


def _cells(row: Row, found: harness.Measurement, rates: dict[str, float], ours: harness.Measurement | None) -> list:
    """Returns what a line says between its title and its goal; rates are in TFLOP/s and GB/s."""
    if found.failure:
        kind, _, reason = found.failure.replace('|', '/').partition(': ')
        return [
            f'not measured: {reason}' if kind == NotMeasured.__name__ else f'failed: {kind}: {reason}',
            *'----',
        ]
    figures = [row.scale / seconds if row.unit.endswith('/s') else row.scale * seconds for seconds in found.seconds]
    times = [f'{found.median * rates[name] / work:.3g} {name}' for name, work in row.limits.items() if name in rates]
    ratios = results.spread(harness.paired_ratios(ours, found)) if ours and not ours.failure else '-'
    first = f'{max(0.0, found.first_seconds - found.median):.1f}' if len(figures) > 1 else '-'
    peak = found.figures.get('peak_bytes')
    return [
        found.figures.get('text') or f'{results.spread(figures)} {row.unit}',
        ', '.join(times) or '-',
        ratios,
        first,
        f'{peak / 1e6:.0f}' if peak else '-',
    ]


def _text(part: Part, cells: dict[str, list] | None = None, environment: str = '') -> str:
    def of(row):
        return [row.title, *(cells or {}).get(row.title, ['not measured', *'----']), row.goal]

    table = results.table(_HEADER, [of(row) for row in part.rows])
    return '\n\n'.join(filter(None, (f'### {part.title}', environment, part.note, table)))
