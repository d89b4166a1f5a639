"""From a run's files to figures/*.png and report.html, one page that opens offline. Reads files only."""

import base64
import csv
import io

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from simclr_cifar.files import RunFolder, write

matplotlib.use('Agg')

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

_KINDS = {
    'neighbours': 'Classes of the 10 nearest {split} images',
    'knn': 'Vote of the 200 nearest training images',
}
_HEADLINES = {
    'pair_accuracy': ('pair accuracy', 'an anchor finds its own positive among one of each class'),
    'precision_at_1': ('precision at 1', 'the nearest other image is of the same class'),
    'precision_at_10': ('precision at 10', 'share of the same class among the 10 nearest'),
    'knn_accuracy_k200': ('kNN accuracy', 'vote of the 200 nearest training images'),
    'map_at_r': ('MAP@R', 'ranking quality over all images of the class'),
}
_BLUE, _ORANGE, _GREEN, _GREY = '#2563a8', '#c2570c', '#2e7d4f', '#6b7280'


def write_report(run: RunFolder) -> None:
    """Writes report.html and figures/ of a run with at least one finished evaluation.

    Raises:
      InputError: config.json or metrics.json is missing or unreadable.
    """
    described, final = run.read_json(run.config), run.read_json(run.metrics)
    history = run.read_history()
    evaluations = {epoch: run.read_json(run.evaluation(epoch) / 'metrics.json') for epoch in run.evaluated_epochs()}
    epoch, class_names = final['epoch'], described['class_names']
    split = 'test' if any(name.startswith('test/') for name in final) else 'validation'
    dataset = described['config']['dataset']
    title = f'{len(class_names)} classes of {dataset}'
    reference = _reference(dataset, class_names)

    figures = {'curve': _curve(f'{title}: training', history, evaluations, described['chance_loss'], reference)}
    confusions = _read_confusions(run, epoch, class_names)
    for kind, heading in _KINDS.items():
        caption = heading.format(split=split)
        figures[f'confusion_{kind}'] = _confusion(
            f'{title}, epoch {epoch}\n{caption}', confusions[split, kind], class_names
        )
    with np.load(run.evaluation(epoch) / 'gallery.npz', allow_pickle=False) as packed:
        gallery = dict(packed)
    figures['gallery'] = _gallery_sheet(
        f'{title}, epoch {epoch}: queries and their nearest {split} images', gallery, class_names
    )
    encoded = {}
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format='png', dpi=130)
        write(run.figures / f'{name}.png', buffer.getvalue())
        encoded[name] = _data_uri(buffer.getvalue())

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('simclr_cifar'), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template('report.html').render(
        title=title,
        run=described,
        figures=encoded,
        headlines=[
            (label, final[f'{split}/{name}'], note)
            for name, (label, note) in _HEADLINES.items()
            if f'{split}/{name}' in final
        ],
        final=final,
        split=split,
        milestones=_milestone_rows(history, evaluations, reference),
        reference=reference,
        kinds={kind: heading.format(split=split) for kind, heading in _KINDS.items()},
        gallery=_gallery_rows(gallery, class_names),
        seconds=sum(row['seconds'] for row in history),
        epochs_trained=int(history[-1]['epoch']) if history else 0,
    )
    write(run.report, page)


def _reference(dataset: str, class_names: list[str]) -> dict[int, tuple[float, float]]:
    """Returns the reference study's (loss, accuracy) by epoch where the run is of one of its subsets."""
    count = len(class_names)
    same = dataset == 'cifar10' and set(class_names) == set(REFERENCE_CLASSES.get(count, ()))
    return REFERENCE[count] if same else {}


def _milestone_rows(history: list[dict], evaluations: dict[int, dict], reference: dict) -> list[dict]:
    by_epoch = {int(row['epoch']): row for row in history}
    rows = []
    for epoch, figures in evaluations.items():
        split = 'test' if any(name.startswith('test/') for name in figures) else 'validation'
        rows.append(
            {
                'epoch': epoch,
                'loss': by_epoch.get(epoch, {}).get('loss'),
                'accuracy': by_epoch.get(epoch, {}).get('accuracy'),
                'reference': reference.get(epoch),
                'split': split,
                **{name: figures[f'{split}/{name}'] for name in _HEADLINES},
            }
        )
    return rows


def _read_confusions(run: RunFolder, epoch: int, class_names: list[str]) -> dict[tuple[str, str], np.ndarray]:
    position = {name: number for number, name in enumerate(class_names)}
    matrices = {}
    with (run.evaluation(epoch) / 'confusion.csv').open(newline='') as file:
        for row in csv.DictReader(file):
            matrix = matrices.setdefault((row['split'], row['kind']), np.zeros((len(position),) * 2, int))
            matrix[position[row['class']], position[row['other_class']]] = int(row['count'])
    return matrices


def _curve(title: str, history: list[dict], evaluations: dict[int, dict], chance: float, reference: dict) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    figure.suptitle(title)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    epochs = [row['epoch'] for row in history]
    marker = 'o' if len(epochs) == 1 else None
    loss_axes.plot(epochs, [row['loss'] for row in history], color=_BLUE, marker=marker, label='training batches')
    loss_axes.axhline(chance, color=_GREY, linestyle='--', label=f'chance, {chance:.3f}')
    accuracy_axes.plot(
        epochs, [100 * row['accuracy'] for row in history], color=_BLUE, marker=marker, label='training batches'
    )
    accuracy_axes.axhline(
        100 * np.exp(-chance), color=_GREY, linestyle='--', label=f'chance, {100 * np.exp(-chance):.1f} %'
    )
    for split, colour in (('test', _GREEN), ('validation', _GREY)):
        scored = [(epoch, figures) for epoch, figures in evaluations.items() if f'{split}/pair_accuracy' in figures]
        for name, style in (('pair_accuracy', 'o-'), ('precision_at_10', 's:')):
            if scored:
                values = [100 * figures[f'{split}/{name}'] for _, figures in scored]
                label = f'{split}, {_HEADLINES[name][0]}'
                accuracy_axes.plot(
                    [epoch for epoch, _ in scored], values, style, color=colour, markersize=5, label=label
                )
    if reference:
        points = {'linestyle': 'none', 'marker': 'D', 'markersize': 6, 'color': _ORANGE, 'label': 'the seed report'}
        loss_axes.plot(list(reference), [loss for loss, _ in reference.values()], **points)
        accuracy_axes.plot(list(reference), [accuracy for _, accuracy in reference.values()], **points)
    loss_axes.set(xlabel='epoch', ylabel='loss (nats)', ylim=(0, None))
    accuracy_axes.set(xlabel='epoch', ylabel='accuracy, precision (%)', ylim=(0, 100))
    for axes in (loss_axes, accuracy_axes):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize=9)
    return figure


def _confusion(title: str, counts: np.ndarray, class_names: list[str]) -> Figure:
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.6 + 0.4 * len(class_names)
    figure = Figure(figsize=(size, size), layout='constrained')
    axes = figure.subplots()
    axes.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        text = f'{value:.1f}\n{counts[row, column]:,}' if counts[row, column] else '·'
        axes.text(column, row, text, ha='center', va='center', fontsize=7, color='white' if value > 45 else '#1f2937')
    ticks = range(len(class_names))
    # A name is text: a dollar sign would start a formula.
    labels = [name.replace('$', r'\$') for name in class_names]
    axes.set_xticks(ticks, labels, rotation=45, ha='right', fontsize=9)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set(xlabel='class found', ylabel='class of the query')
    axes.set_title(f'{title}: % of the row, and count', fontsize=9)
    return figure


def _gallery_sheet(title: str, gallery: dict[str, np.ndarray], class_names: list[str]) -> Figure:
    pictures = np.concatenate([gallery['query_image'][:, None], gallery['neighbour_images']], axis=1)
    rows, columns, height, width = pictures.shape[:4]
    border, gap = 3, 12
    cell_height, cell_width = height + 2 * border, width + 2 * border
    sheet = np.full((rows * cell_height, columns * cell_width + gap, 3), 255, np.uint8)
    right = gallery['neighbour_labels'] == gallery['query_label'][:, None]
    for row in range(rows):
        for column in range(columns):
            top, left = row * cell_height, column * cell_width + (gap if column else 0)
            colour = _GREY if column == 0 else _GREEN if right[row, column - 1] else _ORANGE
            sheet[top : top + cell_height, left : left + cell_width] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            cell = slice(top + border, top + border + height), slice(left + border, left + border + width)
            sheet[cell] = pictures[row, column]
    figure = Figure(figsize=(8.5, 0.6 + 0.66 * rows), layout='constrained')
    axes = figure.subplots()
    axes.imshow(sheet, interpolation='nearest')
    names = [class_names[label].replace('$', r'\$') for label in gallery['query_label']]
    axes.set_yticks([(row + 0.5) * cell_height for row in range(rows)], names, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f'{title}\n(query first; right in green, wrong in orange; worst first)', fontsize=9)
    return figure


def _gallery_rows(gallery: dict[str, np.ndarray], class_names: list[str]) -> list[dict]:
    return [
        {
            'index': int(gallery['query'][row]),
            'name': class_names[label],
            'image': _picture(gallery['query_image'][row]),
            'right': int(np.sum(gallery['neighbour_labels'][row] == label)),
            'neighbours': [
                {
                    'index': int(gallery['neighbours'][row, rank]),
                    'name': class_names[other],
                    'image': _picture(gallery['neighbour_images'][row, rank]),
                    'right': bool(other == label),
                    'similarity': float(gallery['similarities'][row, rank]),
                }
                for rank, other in enumerate(gallery['neighbour_labels'][row])
            ],
        }
        for row, label in enumerate(gallery['query_label'])
    ]


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, 'png')
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode()
