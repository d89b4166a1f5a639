"""From a run's files to figures/*.png and report.html, one page that opens offline. Reads files only."""

from simclr_cifar import config as config_lib
from simclr_cifar import figures, overfitting, pages
from simclr_cifar.files import UNKNOWN_WEIGHTS, RunFolder, write

# The reference study's training loss and accuracy in percent, on CIFAR-10: classes -> epochs -> (loss, accuracy).
REFERENCE_CLASSES = {
    4: ('airplane', 'automobile', 'bird', 'cat'),
    7: ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog'),
    10: ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'),
}
REFERENCE = {
    4: {15: (0.92, 59.25), 30: (0.67, 71.72), 45: (0.5978, 75.67), 60: (0.5146, 79.00), 75: (0.3344, 87.37)},
    7: {15: (1.4724, 41.59), 30: (1.1810, 52.46), 45: (0.8839, 64.51), 60: (0.6124, 75.04), 75: (0.4252, 83.30)},
    10: {15: (1.7384, 33.75), 30: (1.3882, 50.51), 45: (1.2712, 52.24), 60: (1.2303, 53.89), 75: (0.8380, 69.40)},
}
# How it trained: figures of other ways do not compare.
_REFERENCE_METHOD = {'pairs': 'class', 'objective': 'anchor_positive', 'negatives': 'group'}

_KINDS = {
    'neighbours': 'Classes of the 10 nearest test images',
    'knn': 'Vote of the 200 nearest training images',
}
# Metric: what it is called, what it is.
HEADLINES = {
    'precision_at_10': ('precision at 10', 'share of the same class among the 10 nearest'),
    'pair_accuracy': ('pair accuracy', 'an anchor finds its own positive among one of each class'),
    'precision_at_1': ('precision at 1', 'the nearest other image is of the same class'),
    'knn_accuracy_k200': ('kNN accuracy', 'vote of the 200 nearest training images'),
    'linear_probe_accuracy': ('linear probe', 'ridge regression on the training embeddings'),
    'map_at_r': ('MAP@R', 'ranking quality over all images of the class'),
}
UNSEEN = {
    'test/precision_at_10': 'seen classes, precision at 10',
    'unseen/precision_at_10': 'unseen classes, precision at 10',
    'all/precision_at_10': 'all classes, precision at 10',
    'no_match/auroc': 'AUROC, unseen against seen',
    'no_match/precision': 'no match, precision',
    'no_match/recall': 'no match, recall',
    'no_match/threshold': 'no match, threshold',
}


def write_report(run: RunFolder) -> None:
    """Writes report.html and figures/ of a run with at least one finished evaluation.

    Raises:
      InputError: a file that it needs is missing or unreadable.
    """
    described, final = run.read_json(run.config), run.read_json(run.metrics)
    # A later epoch's are of a run that trained further before its checkpoints were lost.
    evaluations = {number: of for number, of in run.evaluations().items() if number <= final['last_epoch']}
    history = run.read_history()
    epoch, class_names = final['epoch'], described['class_names']
    has_classes = len(class_names) > 1
    what = f'{len(class_names)} classes' if has_classes else f'images of {class_names[0]}'
    title = f'{what} of {config_lib.title(described["config"]["dataset"])}'
    if not has_classes and not described['unseen_class_names']:  # A folder's only class is called as the folder is.
        title = class_names[0]
    headlines = HEADLINES if has_classes else _view_headlines(described['images']['test'])
    known = reference(described)
    chance_loss, chance_accuracy = described['chance_loss'], described['chance_accuracy']

    curves = {
        'loss': figures.loss_curve(f'{title}: training loss', [history], chance_loss, known),
        'accuracy': figures.accuracy_curve(f'{title}: accuracy', [history], [evaluations], chance_accuracy, known),
    }
    drawn = dict(curves)
    confusions = run.read_confusions(epoch)
    for kind, heading in _KINDS.items() if has_classes else ():
        caption = f'{title}, epoch {epoch}\n{heading}'
        drawn[f'confusion_{kind}'] = figures.confusion(caption, confusions['test', kind], class_names)
    drawn['gallery'] = figures.gallery(
        f'{title}, epoch {epoch}: queries and their nearest test images',
        run.read_arrays(epoch, 'pictures'),
        class_names,
    )
    augmented = run.read_augmentation()
    if augmented is not None:
        caption = f'{title}: training images, and what training sees of them'
        drawn['augmentation'] = figures.contact_sheet(caption, augmented)
    encoded = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, image in encoded.items():
        write(run.figures / f'{name}.png', image)

    unseen, verdict = _unseen(final), _overfitting(final, headlines)
    contents = [('curves', 'Curves'), ('milestones', 'Milestones')]
    contents += [('overfitting', 'Overfitting')] if verdict else []
    contents += [('unseen', 'Unseen classes')] if unseen else []
    contents += [('explorer-confusion', 'Confusion')] if has_classes else []
    contents += [('explorer-gallery', 'Gallery'), ('explorer-projection', 'Map')]
    contents += [('augmentation', 'Augmentation')] if 'augmentation' in drawn else []
    contents += [('run', 'The run'), ('figures', 'All figures')]
    heads, rows = _milestones(history, evaluations, known, headlines)
    chosen = f'Figures of epoch {epoch}'
    if verdict:
        chosen += f', the best on validation images; the last is {final["last_epoch"]}'
    unknown = [number for number in evaluations if UNKNOWN_WEIGHTS in run.measured_weights(number).values()]
    if unknown:
        chosen += f'; the weights that epoch {", ".join(map(str, unknown))} was measured with are gone'
    pages.render(
        'report.html',
        run.report,
        title=title,
        contents=contents,
        run=described,
        chosen=f'{chosen}.',
        seconds=sum(row['seconds'] for row in history),
        epochs_trained=int(history[-1]['epoch']) if history else 0,
        headlines=_cards(final, headlines, _as_reference(described['config'])),
        curves={name: figures.svg(curve) for name, curve in curves.items()},
        reference=known,
        held_out=figures.held_out(evaluations),
        milestone_heads=heads,
        milestones=rows,
        overfitting=verdict,
        unseen=unseen,
        augmentation=pages.data_uri('png', encoded['augmentation']) if 'augmentation' in encoded else '',
        explorer=explorer(run),
        details=_details(described),
        final=final,
    )


def reference(described: dict) -> dict[int, tuple[float, float]]:
    """Returns the reference study's (loss, accuracy in percent) by epoch where a run compares with it.

    Args:
      described: what config.json says of the run.
    """
    config, class_names = described['config'], described['class_names']
    same = config['dataset'] == 'cifar10' and set(class_names) == set(REFERENCE_CLASSES.get(len(class_names), ()))
    return REFERENCE[len(class_names)] if same and _as_reference(config) else {}


def _as_reference(config: dict) -> bool:
    return all(config[name] == value for name, value in _REFERENCE_METHOD.items())


def explorer(run: RunFolder) -> dict:
    """Returns what a page's explorer shows of a run's final figures: confusions, pictures and projection."""
    epoch, class_names = run.read_json(run.metrics)['epoch'], run.read_json(run.config)['class_names']
    pictures, confusions = run.read_arrays(epoch, 'pictures'), run.read_confusions(epoch)
    return pages.explorer(
        pictures,
        {heading: confusions['test', kind] for kind, heading in _KINDS.items() if ('test', kind) in confusions},
        class_names,
        'test',
        pages.project(pictures['projection_embedding']),
    )


def _view_headlines(count: int) -> dict[str, tuple[str, str]]:
    """Returns HEADLINES of a run on images without classes, of which so many are scored."""
    return {
        'view_accuracy': (
            'view accuracy',
            f"an image's view finds its other view among those of all {count:,} (chance {100 / count:.1f} %)",
        )
    }


def _cards(final: dict[str, float], headlines: dict[str, tuple], as_reference: bool) -> list[tuple[str, str, str]]:
    """Returns (label, value, note) of each card."""
    cards = [
        (f'test, {label}', f'{100 * final[f"test/{name}"]:.1f} %', note) for name, (label, note) in headlines.items()
    ]
    if 'train/accuracy' in final:
        note = 'what the course report calls accuracy' if as_reference else "the objective's, over the epoch"
        cards.append(('training batches, accuracy', f'{100 * final["train/accuracy"]:.1f} %', note))
    if 'overfitting/seen' in final:
        criterion, _ = headlines[overfitting.criterion(final)]
        fall = f'validation {criterion} falls by {100 * final["overfitting/fall"]:.1f} points from its peak'
        at_end = final['overfitting/peak_epoch'] == final['overfitting/last_epoch']
        note = f'validation {criterion} is best at the end' if at_end else fall
        cards.append(('overfitting', 'seen' if final['overfitting/seen'] else 'not seen', note))
    return cards


def _milestones(
    history: list[dict], evaluations: dict[int, dict], known: dict, headlines: dict[str, tuple]
) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and rows of the table of milestones."""
    by_epoch = {int(row['epoch']): row for row in history}
    split = figures.held_out(evaluations)
    rows = []
    for epoch, values in evaluations.items():
        row, (loss, accuracy) = by_epoch.get(epoch), known.get(epoch, (None, None))
        cells = [f'{row["loss"]:.4f}', f'{100 * row["accuracy"]:.2f}'] if row else ['', '']
        if loss:
            cells = [f'{cells[0]} ({loss:.4f})', f'{cells[1]} ({accuracy:.2f})']
        held_out = [values.get(f'{split}/{name}') for name in headlines]
        rows.append([str(epoch), *cells, *('' if value is None else f'{100 * value:.2f}' for value in held_out)])
    return ['epoch', 'training loss', 'training accuracy', *(label for label, _ in headlines.values())], rows


def _overfitting(final: dict[str, float], headlines: dict[str, tuple]) -> dict | None:
    """Returns a criterion, a sentence and rows of (quantity, mean, interval); None without validation images."""
    if 'overfitting/seen' not in final:
        return None
    peak, last = (final[f'overfitting/{name}_epoch'] for name in ('peak', 'last'))
    labels = {'gap_at_last': f'training less validation images, epoch {last}'}
    sentence = f'Validation images are best at the last epoch, {last}: no overfitting seen.'
    if peak != last:
        labels |= {
            'gap_at_peak': f'training less validation images, epoch {peak}',
            'widening': f'the gap widens from epoch {peak} to {last} by',
            'fall': f'validation images fall from epoch {peak} to {last} by',
        }
        sentence = f'Validation images are best at epoch {peak}. ' + (
            'Overfitting is seen: from there to the last epoch they fall by more than chance.'
            if final['overfitting/seen']
            else 'No overfitting seen: from there to the last epoch they do not fall by more than chance.'
        )
    rows = []
    for name, label in labels.items():
        mean, low, high = (100 * final[f'overfitting/{name}{bound}'] for bound in ('', '_low', '_high'))
        rows.append((label, f'{mean:.2f}', f'{low:.2f} to {high:.2f}'))
    return {'criterion': headlines[overfitting.criterion(final)][0], 'sentence': sentence, 'rows': rows}


def _unseen(final: dict[str, float]) -> list[tuple[str, str]]:
    """Returns rows of (what, value), none where every class was seen."""
    return [
        (label, f'{final[name]:.4f}' if name == 'no_match/threshold' else f'{100 * final[name]:.2f} %')
        for name, label in UNSEEN.items()
        if name in final and 'no_match/auroc' in final
    ]


def _details(described: dict) -> list[tuple[str, object]]:
    def told(value):
        return ', '.join(map(str, value)) if isinstance(value, list) else str(value)

    return [
        ('config', f'{described["name"]}, fingerprint {described["fingerprint"]}'),
        *((name, told(value)) for name, value in described['config'].items()),
        ('devices', described['devices']),
        *described['versions'].items(),
        ('git commit', described['git_commit']),
    ]
