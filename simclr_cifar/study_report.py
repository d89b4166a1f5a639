"""From a study's files to study.csv, study.md and study.html. Reads files only."""

import csv
import html
import io
import itertools

import numpy as np

from simclr_cifar import config as config_lib
from simclr_cifar import figures, findings, pages, report
from simclr_cifar.files import StudyFolder, write
from simclr_cifar.findings import Subset, Table, spread

_CONTENTS = (
    ('conclusions', 'Conclusions'),
    ('tables', 'Tables'),
    ('curves', 'Curves'),
    ('test', 'Test'),
    ('overfitting', 'Overfitting'),
    ('confusion', 'Confusion'),
    ('classes', 'Classes'),
    ('unseen', 'Unseen classes'),
    ('duplicates', 'Near-duplicates'),
    ('explorers', 'Images'),
    ('runs', 'Runs'),
)
_WITHOUT_DUPLICATES = ('precision_at_10', 'pair_accuracy', 'knn_accuracy_k200')


def write_study(folder: StudyFolder) -> None:
    """Writes study.csv, study.md and study.html of a study whose runs are finished.

    Raises:
      InputError: a file of a run is missing or unreadable.
    """
    described = folder.read_json(folder.config)
    subsets = [Subset(name, folder, described['seeds']) for name in described['subsets']]
    claims = findings.claims(subsets)
    sections = {
        'milestones': findings.milestone_tables(subsets),
        'test': [findings.test_table(subsets)],
        'overfitting': [findings.verdicts(subsets)],
        'classes': [findings.class_changes(subset) for subset in subsets],
        'unseen': [findings.unseen_table(subsets)],
        'duplicates': [_duplicates_table(subsets)],
    }
    write(folder.table, _csv(subsets))
    write(folder.text, _markdown(subsets, claims, sections))
    curves = {}
    for subset in subsets:
        title = f'{len(subset.class_names)} classes'
        chance_loss, chance_accuracy = (subset.described[f'chance_{name}'] for name in ('loss', 'accuracy'))
        loss = figures.loss_curve(f'{title}: training loss', subset.histories, chance_loss, subset.reference)
        accuracy = figures.accuracy_curve(
            f'{title}: accuracy', subset.histories, subset.evaluations, chance_accuracy, subset.reference
        )
        curves |= {f'{title}: training loss by epoch': loss, f'{title}: accuracy by epoch': accuracy}
    has_unseen = bool(sections['unseen'][0].rows)
    pages.render(
        'study.html',
        folder.page,
        title=_title(subsets),
        contents=[(name, label) for name, label in _CONTENTS if name != 'unseen' or has_unseen],
        described=described,
        subsets=subsets,
        headlines=_headlines(subsets),
        claims=claims,
        sections=sections,
        curves={title: figures.svg(curve) for title, curve in curves.items()},
        duplicates=_duplicate_pairs(subsets),
        explorers={subset.name: report.explorer(subset.runs[0]) for subset in subsets},
        runs=_runs(subsets),
    )


def _title(subsets: list[Subset]) -> str:
    return f'The class-subset study on {config_lib.title(subsets[0].described["config"]["dataset"])}'


def _runs(subsets: list[Subset]) -> list[list[str]]:
    """Returns a row for each run; the minutes are those of the program that trains a subset's seeds together."""
    return [
        [
            f'{len(subset.class_names)} classes, seed {seed}',
            f'{subset.name}/{run.path.name}',
            f'{history[-1]["epoch"]:.0f}',
            f'{sum(row["seconds"] for row in history) / 60:.1f}',
            subset.described['devices'],
            subset.described['versions']['jax'],
            subset.described['git_commit'][:12],
        ]
        for subset in subsets
        for seed, run, history in zip(subset.seeds, subset.runs, subset.histories, strict=True)
    ]


def _headlines(subsets: list[Subset]) -> list[tuple[str, str, str]]:
    """Returns (label, value, note) of a card for each subset and one for the verdict."""
    cards = [
        (
            f'{len(subset.class_names)} classes, test precision at 10',
            f'{spread(subset.final("test/precision_at_10"), ".1f")} %',
            f'pair accuracy {spread(subset.final("test/pair_accuracy"), ".1f")} %, at the chosen epochs',
        )
        for subset in subsets
    ]
    seen = [final['overfitting/seen'] for subset in subsets for final in subset.finals]
    return [*cards, ('overfitting', f'{sum(seen)} of {len(seen)}', 'runs in which it is seen')]


def _markdown(subsets: list[Subset], claims: list[tuple[str, str]], sections: dict[str, list[Table]]) -> str:
    described, seeds = subsets[0].described, subsets[0].seeds
    lines = [
        f'# {_title(subsets)}',
        '',
        f'{described["description"]} Seeds: {", ".join(map(str, seeds))}'
        + ('; mean ± standard deviation over seeds.' if len(seeds) > 1 else '.')
        + " In brackets the course report's figures.",
    ]
    for claim, measured in claims:
        lines += ['', f'- *{claim}* {measured}']
    for table in itertools.chain.from_iterable(sections.values()):
        if not table.rows:
            continue
        lines += ['', f'## {table.title}', '', *([table.note, ''] if table.note else [])]
        lines += [_row(table.heads), _row(['---'] * len(table.heads)), *map(_row, table.rows)]
    return '\n'.join(lines) + '\n'


def _row(cells: list[str]) -> str:
    return '| ' + ' | '.join(html.escape(cell, quote=False).replace('|', '\\|') for cell in cells) + ' |'


def _duplicates_table(subsets: list[Subset]) -> Table:
    rows = []
    for subset in subsets:
        duplicates = subset.duplicates['test']
        cells = []
        for name in _WITHOUT_DUPLICATES:
            both = []
            for run, final in zip(subset.runs, subset.finals, strict=True):
                queries = run.read_arrays(int(final['epoch']), 'test')
                kept = np.setdiff1d(np.arange(len(queries['label'])), duplicates)
                both.append([_mean(name, queries, part) for part in (slice(None), kept)])
            cells += map(spread, np.transpose(both))
        count, total = len(duplicates), subset.described['images']['test']
        rows.append([str(len(subset.class_names)), f'{count:,}', f'{100 * count / total:.2f}', *cells])
    heads = [f'{report.HEADLINES[name][0]}{part}' for name in _WITHOUT_DUPLICATES for part in ('', ', without')]
    return Table(
        'Near-duplicates of training images',
        ['classes', 'test images', 'share', *heads],
        rows,
        'Test images with a near-duplicate among the training images, and the test figures (%) at the chosen epochs '
        'with and without them as queries.',
    )


def _mean(name: str, queries: dict[str, np.ndarray], part) -> float:
    values, labels = queries[name][part].astype(np.float64), queries['label'][part]
    if name == 'pair_accuracy':  # A group holds an anchor of every class.
        return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))
    return float(values.mean())


def _duplicate_pairs(subsets: list[Subset]) -> dict:
    """Returns the near-duplicates of the subset with the most classes, the most similar first, with their pictures."""
    subset = max(subsets, key=lambda each: len(each.class_names))
    found = subset.duplicates
    order = np.argsort(-found['similarity'], kind='stable')
    pairs = [
        {
            'test': int(found['test'][pair]),
            'train': int(found['train'][pair]),
            'similarity': float(found['similarity'][pair]),
            'test_class': subset.class_names[found['test_label'][pair]],
            'train_class': subset.class_names[found['train_label'][pair]],
        }
        for pair in order
    ]
    images = np.concatenate([found['test_images'][order], found['train_images'][order]])
    return {'subset': subset, 'pairs': pairs, 'atlas': pages.picture_atlas(images) if len(images) else None}


def _csv(subsets: list[Subset]) -> str:
    """Returns a row for each subset, seed and milestone, a column for each figure."""
    names = list(dict.fromkeys(name for subset in subsets for each in subset.evaluations for name in _names(each)))
    table = io.StringIO()
    rows = csv.writer(table, lineterminator='\n')
    rows.writerow(('subset', 'classes', 'seed', 'epoch', 'chosen', 'reference_loss', 'reference_accuracy', *names))
    for subset in subsets:
        for seed, final, evaluations in zip(subset.seeds, subset.finals, subset.evaluations, strict=True):
            for epoch, values in evaluations.items():
                loss, accuracy = subset.reference.get(epoch, ('', ''))
                accuracy = accuracy / 100 if accuracy else ''
                key = (subset.name, len(subset.class_names), seed, epoch, int(epoch == final['epoch']))
                rows.writerow((*key, loss, accuracy, *(values.get(name, '') for name in names)))
    return table.getvalue()


def _names(evaluations: dict[int, dict[str, float]]) -> list[str]:
    return [name for values in evaluations.values() for name in values]
