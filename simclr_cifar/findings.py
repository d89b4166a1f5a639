"""What a study's files say: tables, the reference study's conclusions measured. Reads files only."""

import dataclasses
import functools
import itertools

import numpy as np

from simclr_cifar import report
from simclr_cifar.files import RunFolder, StudyFolder

_NOTHING = '–'  # noqa: RUF001
_TRAINING = "Means over the epoch's training batches; in brackets the course report's."
_HELD_OUT = (
    "The same on validation images, which training never saw; in brackets the course report's, of training batches."
)
# Title, note, metric, format, scale, and which of the reference study's two figures is beside it.
_TABLES = (
    ('Training loss (nats)', _TRAINING, 'train/loss', '.4f', 1, 0),
    ('Training accuracy (%)', _TRAINING, 'train/accuracy', '.2f', 100, 1),
    ('Held-out loss (nats)', _HELD_OUT, 'validation/pair_loss', '.4f', 1, 0),
    ('Held-out accuracy (%)', _HELD_OUT, 'validation/pair_accuracy', '.2f', 100, 1),
)
_TEST = {name: label for name, (label, _) in report.HEADLINES.items()} | {'nmi': 'NMI'}


@dataclasses.dataclass
class Subset:
    """All that a study's files say of one subset of the classes; lists hold an entry for each seed."""

    name: str
    folder: StudyFolder
    seeds: list[int]

    @functools.cached_property
    def runs(self) -> list[RunFolder]:
        return [self.folder.run(self.name, seed) for seed in self.seeds]

    @functools.cached_property
    def described(self) -> dict:
        return self.runs[0].read_json(self.runs[0].config)

    @functools.cached_property
    def finals(self) -> list[dict[str, float]]:
        return [run.read_json(run.metrics) for run in self.runs]

    @functools.cached_property
    def evaluations(self) -> list[dict[int, dict[str, float]]]:
        """Epoch to figures, the training batches' with them, of the epochs with a validation of every seed."""
        found = [run.evaluations() for run in self.runs]
        scored = [{epoch for epoch in each if 'validation/pair_loss' in each[epoch]} for each in found]
        for history, evaluations in zip(self.histories, found, strict=True):
            for row in history:
                if row['epoch'] in evaluations:
                    batches = {f'train/{name}': row[name] for name in ('loss', 'accuracy')}
                    evaluations[int(row['epoch'])] |= batches
        return [{epoch: each[epoch] for epoch in sorted(set.intersection(*scored))} for each in found]

    @functools.cached_property
    def histories(self) -> list[list[dict]]:
        return [run.read_history() for run in self.runs]

    @property
    def class_names(self) -> list[str]:
        return self.described['class_names']

    @property
    def epochs(self) -> list[int]:
        return list(self.evaluations[0])

    @functools.cached_property
    def reference(self) -> dict[int, tuple[float, float]]:
        return report.reference(self.described)

    @functools.cached_property
    def duplicates(self) -> dict[str, np.ndarray]:
        """The arrays that `study` wrote of the subset's near-duplicates."""
        path = self.folder.duplicates(self.name)
        return self.folder.read_packed(path, 'delete it and start the study again, which finds them anew')

    @functools.cached_property
    def confusions(self) -> dict[int, np.ndarray]:
        """Epoch to the counts of the seeds' nearest validation images, int [seeds, C, C]."""
        return {
            epoch: np.stack([run.read_confusions(epoch)['validation', 'neighbours'] for run in self.runs])
            for epoch in self.epochs
        }

    def values(self, epoch: int, name: str) -> list[float]:
        """Returns a figure at an epoch."""
        return [evaluations[epoch][name] for evaluations in self.evaluations]

    def final(self, name: str) -> list[float] | None:
        """Returns a figure at each seed's chosen epoch, None where a seed has none."""
        return [final[name] for final in self.finals] if all(name in final for final in self.finals) else None


@dataclasses.dataclass
class Table:
    """A table of text for both study.html and study.md.

    Attributes:
      title: its heading.
      heads: of the columns.
      rows: lists of as many cells.
      note: what the figures are.
    """

    title: str
    heads: list[str]
    rows: list[list[str]]
    note: str = ''


def spread(values: list[float] | None, form: str = '.2f', scale: float = 100) -> str:
    """Returns values as mean and, of several, standard deviation; '–' where there are none."""
    if values is None or not np.all(np.isfinite(values)):
        return _NOTHING
    values = scale * np.asarray(values)
    return f'{values.mean():{form}}' + (f' ± {values.std(ddof=1):{form.lstrip("+")}}' if len(values) > 1 else '')


def milestone_tables(subsets: list[Subset]) -> list[Table]:
    epochs = sorted({epoch for subset in subsets for epoch in subset.epochs})
    tables = []
    for title, note, name, form, scale, which in _TABLES:
        rows = []
        for subset in subsets:
            cells = [
                spread(subset.values(epoch, name), form, scale) if epoch in subset.epochs else _NOTHING
                for epoch in epochs
            ]
            for column, epoch in enumerate(epochs):
                if epoch in subset.reference:
                    cells[column] += f' ({subset.reference[epoch][which]:{form}})'
            rows.append([str(len(subset.class_names)), *cells])
        tables.append(Table(title, ['classes', *(f'{epoch} epochs' for epoch in epochs)], rows, note))
    return tables


def claims(subsets: list[Subset]) -> list[tuple[str, str]]:
    """Returns the reference study's conclusions, each with what was measured of it."""
    gains, peaks, gaps, lowest, lost = [], [], [], [], []
    for subset in subsets:
        count, first, last = len(subset.class_names), subset.epochs[0], subset.epochs[-1]
        rise = {
            name: 100 * (np.mean(subset.values(last, name)) - np.mean(subset.values(first, name)))
            for name in ('train/accuracy', 'validation/pair_accuracy')
        }
        gains.append(
            f'{count} classes, epoch {first} to {last}: {rise["train/accuracy"]:+.2f} points of training accuracy, '
            f'{rise["validation/pair_accuracy"]:+.2f} of held-out accuracy'
        )
        epochs = ', '.join(str(int(epoch)) for epoch in subset.final('overfitting/peak_epoch'))
        peaks.append(f'{count} classes: {epochs}')
        gaps.append(f'{count} classes: {spread(subset.final("overfitting/gap_at_last"), ".1f")}')
        lowest.append(f'{count} classes: {", ".join(map(str, _lowest_loss(subset)))}')
        for step, change in list(_changes(subset).items())[-1:]:
            lost.append(f'{count} classes, epoch {step}: {_losers(subset, change)}')
    seen = [final['overfitting/seen'] for subset in subsets for final in subset.finals]
    fall = 'validation precision at 10 falls from its peak to the last epoch by more than chance'
    return [
        ('More epochs help.', f'{"; ".join(gains)}.'),
        (
            'More classes need more epochs.',
            f'The milestone at which validation precision at 10 is highest, seed by seed: {"; ".join(peaks)}.',
        ),
        (
            'Past some epoch predictions get worse although accuracy rises: overfitting.',
            (f'Seen in {sum(seen)} of' if any(seen) else 'No overfitting seen: in none of the')
            + f' {len(seen)} runs {fall}. The milestone at which the held-out loss is lowest, seed by seed: '
            f'{"; ".join(lowest)}. Points of precision at 10 by which training images are ahead of validation images '
            f'at the last epoch: {"; ".join(gaps)}.',
        ),
        (
            'From one milestone to the next some classes get worse, as airplane, deer and dog.',
            f'With fewer right neighbours in every seed: {"; ".join(lost) or "there is one milestone only"}.',
        ),
    ]


def verdicts(subsets: list[Subset]) -> Table:
    def interval(final, name):
        if final['overfitting/peak_epoch'] == final['overfitting/last_epoch'] and name in ('widening', 'fall'):
            return _NOTHING
        mean, low, high = (100 * final[f'overfitting/{name}{bound}'] for bound in ('', '_low', '_high'))
        return f'{mean:.1f} [{low:.1f}, {high:.1f}]'

    rows = []
    for subset in subsets:
        for number, (seed, final) in enumerate(zip(subset.seeds, subset.finals, strict=True)):
            at_last = final.get('last/test/precision_at_10', final['test/precision_at_10'])
            rows.append(
                [
                    str(len(subset.class_names)),
                    str(seed),
                    'overfitting' if final['overfitting/seen'] else 'no overfitting seen',
                    f'{final["overfitting/peak_epoch"]:.0f}',
                    *(interval(final, name) for name in ('gap_at_peak', 'gap_at_last', 'widening', 'fall')),
                    f'{100 * (final["test/precision_at_10"] - at_last):.1f}',
                    str(_lowest_loss(subset)[number]),
                ]
            )
    return Table(
        'Verdicts',
        [
            *('classes', 'seed', 'verdict', 'peak', 'gap at peak', 'gap at last', 'widening', 'fall'),
            *('fall on test', 'loss lowest at'),
        ],
        rows,
        'In points of precision at 10, with 95 % bootstrap intervals over images. Peak: the milestone with the best '
        'validation images. Gap: training images less validation images, as many of each class. Fall: of validation '
        'images from the peak to the last epoch; overfitting is seen where its interval lies above 0. The loss of '
        'validation images, which asks for more than the right neighbours, is lowest at the epoch named.',
    )


def _lowest_loss(subset: Subset) -> list[int]:
    """Returns each seed's milestone with the lowest held-out loss, the earliest of equals."""
    return [
        min(evaluations, key=lambda epoch, of=evaluations: (of[epoch]['validation/pair_loss'], epoch))
        for evaluations in subset.evaluations
    ]


def test_table(subsets: list[Subset]) -> Table:
    rows = []
    for subset in subsets:
        chosen = ', '.join(str(int(final['epoch'])) for final in subset.finals)
        at_last = [[final.get(f'last/test/{name}', final[f'test/{name}']) for final in subset.finals] for name in _TEST]
        count = str(len(subset.class_names))
        rows.append([count, f'chosen: {chosen}', *(spread(subset.final(f'test/{name}')) for name in _TEST)])
        rows.append([count, f'last: {int(subset.finals[0]["last_epoch"])}', *map(spread, at_last)])
    return Table(
        'Test images (%)',
        ['classes', 'checkpoint', *_TEST.values()],
        rows,
        'Chosen: the epoch of the best validation precision at 10, for each seed.',
    )


def class_changes(subset: Subset) -> Table:
    """Returns how each class's share of right neighbours changed between milestones."""
    changes = _changes(subset)
    rows = [
        [name, *(spread(list(change[:, label]), '+.1f', 1) for change in changes.values())]
        for label, name in enumerate(subset.class_names)
    ]
    seeds = 'every seed' if len(subset.seeds) > 1 else 'the one seed'
    return Table(
        f'{len(subset.class_names)} classes: change between milestones (points)',
        ['class', *changes],
        rows,
        "Change in the share of a class's 10 nearest validation images that are of the class. Classes that lost in "
        f'{seeds}: {"; ".join(f"{step}: {_losers(subset, change)}" for step, change in changes.items())}.',
    )


def _changes(subset: Subset) -> dict[str, np.ndarray]:
    """Returns '<milestone> to <next>' to the change of each class's share of right neighbours, points [seeds, C]."""
    shares = [100 * np.diagonal(counts, axis1=1, axis2=2) / counts.sum(axis=2) for counts in subset.confusions.values()]
    steps = [f'{before} to {after}' for before, after in itertools.pairwise(subset.epochs)]
    return {step: after - before for step, (before, after) in zip(steps, itertools.pairwise(shares), strict=True)}


def _losers(subset: Subset, change: np.ndarray) -> str:
    names = [name for name, values in zip(subset.class_names, change.T, strict=True) if np.all(values < 0)]
    return ', '.join(names) or 'none'


def unseen_table(subsets: list[Subset]) -> Table:
    rows = [
        [
            str(len(subset.class_names)),
            *(
                spread(subset.final(name), '.4f', 1) if name == 'no_match/threshold' else spread(subset.final(name))
                for name in report.UNSEEN
            ),
        ]
        for subset in subsets
        if subset.described['unseen_class_names']
    ]
    return Table(
        'Classes never seen (%)',
        ['classes seen', *report.UNSEEN.values()],
        rows,
        'Test images at the chosen epochs. Retrieval is among the images of the classes named. An image matches '
        'nothing where its 10th nearest training image is less similar than the threshold, which 5 % of the validation '
        'images fall below; precision is the share of unseen classes among the images below it, recall the share of '
        "the unseen classes' images that are.",
    )
