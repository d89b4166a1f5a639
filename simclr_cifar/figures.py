"""Figures: numbers to matplotlib figures, as PNG files and as SVG for a page. The only module that knows matplotlib."""

import io
import re

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use('Agg')

# Legible on white and on black alike.
_BLUE, _ORANGE, _GREEN, _GREY = '#3a7bc8', '#d9722e', '#3f9a63', '#868e9c'
# The page's own text colour takes this one's place.
_INK = '#1f2937'
_STYLE = {
    'text.color': _INK,
    'axes.labelcolor': _INK,
    'axes.edgecolor': _GREY,
    'xtick.color': _INK,
    'ytick.color': _INK,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'simclr_cifar',
}


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=130)
    return buffer.getvalue()


def svg(figure: Figure) -> str:
    """Returns the figure as an element of a page: no background, its text in the page's colour."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        nothing = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
        figure.savefig(buffer, format='svg', transparent=True, metadata=nothing)
    element = buffer.getvalue()
    start, end = re.search(r'<svg [^>]*>', element).span()
    (size,) = re.findall(r'viewBox="[^"]*"', element[start:end])
    # Its rules would be the whole page's.
    return f'<svg {size}>' + re.sub(r'<style.*?</style>', '', element[end:]).replace(_INK, 'currentColor')


def loss_curve(title: str, histories: list[list[dict]], chance: float, reference: dict[int, tuple]) -> Figure:
    """Returns training loss by epoch.

    Args:
      title: in one line.
      histories: rows of history.csv, a list for each seed, of equal length.
      chance: the loss of equal embeddings, in nats.
      reference: epoch to the reference study's (loss, accuracy in percent), or nothing.
    """
    figure, axes = _axes(title, 'loss (nats)', len(histories))
    _line(axes, histories, 'loss', 1)
    axes.axhline(chance, color=_GREY, linestyle='--', linewidth=1.2, label=f'chance, {chance:.3f}')
    _reference(axes, {epoch: loss for epoch, (loss, _) in reference.items()})
    axes.set_ylim(0, None)
    _legend(figure)
    return figure


def accuracy_curve(
    title: str, histories: list[list[dict]], evaluations: list[dict[int, dict]], chance: float, reference: dict
) -> Figure:
    """Returns training accuracy by epoch, with the held-out figures at the evaluated epochs.

    Args:
      title, histories, reference: as `loss_curve`.
      evaluations: epoch to figures, for each seed.
      chance: the accuracy of guessing, in [0, 1].
    """
    figure, axes = _axes(title, 'percent', len(histories))
    _line(axes, histories, 'accuracy', 100)
    split = held_out(evaluations[0])
    for name, label, style, colour in (
        (f'{split}/pair_accuracy', f'{split}, pair accuracy', 'o-', _GREEN),
        (f'{split}/precision_at_10', f'{split}, precision at 10', 's:', _GREEN),
        ('train/precision_at_10', 'training, precision at 10', 's:', _BLUE),
        (f'{split}/view_accuracy', f'{split}, view accuracy', 's:', _GREEN),
        ('train/view_accuracy', 'training, view accuracy', 's:', _BLUE),
    ):
        epochs = [epoch for epoch, figures in evaluations[0].items() if name in figures]
        if epochs:
            values = 100 * np.array([[figures[epoch][name] for epoch in epochs] for figures in evaluations])
            _band(axes, epochs, values, style, colour, label)
    has_classes = not any(name.endswith('/view_accuracy') for figures in evaluations[0].values() for name in figures)
    of = 'chance' if has_classes else 'chance of training batches'  # Of views it depends on how many there are.
    axes.axhline(100 * chance, color=_GREY, linestyle='--', linewidth=1.2, label=f'{of}, {100 * chance:.1f}')
    _reference(axes, {epoch: accuracy for epoch, (_, accuracy) in reference.items()})
    axes.set_ylim(0, 100)
    _legend(figure)
    return figure


def held_out(evaluations: dict[int, dict]) -> str:
    """Returns the split that is scored at milestones: 'validation' where there is one, else 'test'."""
    names = {name.partition('/')[0] for figures in evaluations.values() for name in figures}
    return 'validation' if 'validation' in names else 'test'


def _axes(title: str, label: str, seeds: int) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 4), layout='constrained')
        axes = figure.subplots()
    axes.set_title(_text(title), fontsize=10)
    axes.set(xlabel='epoch', ylabel=label if seeds == 1 else f'{label}, mean and range of {seeds} seeds')
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def _line(axes: Axes, histories: list[list[dict]], name: str, scale: float) -> None:
    epochs = [row['epoch'] for row in histories[0]]
    values = scale * np.array([[row[name] for row in history] for history in histories])
    _band(axes, epochs, values, '-' if len(epochs) != 1 else 'o-', _BLUE, 'training batches')


def _band(axes: Axes, epochs: list, values: np.ndarray, style: str, colour: str, label: str) -> None:
    """Draws the mean of values, [seeds, epochs], and the range of several."""
    if len(values) > 1:
        axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(epochs, values.mean(axis=0), style, color=colour, markersize=4.5, label=label)


def _reference(axes: Axes, points: dict[int, float]) -> None:
    if points:
        axes.plot(*zip(*points.items(), strict=True), 'D', color=_ORANGE, markersize=5.5, label='the course report')


def _legend(figure: Figure) -> None:
    with matplotlib.rc_context(_STYLE):
        figure.legend(loc='outside lower left', ncols=2, frameon=False, fontsize=8)


def confusion(title: str, counts: np.ndarray, class_names: list[str]) -> Figure:
    """Returns a confusion matrix, int [C, C], in percent of the row and as counts."""
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.6 + 0.4 * len(class_names)
    figure = Figure(figsize=(size, size), layout='constrained')
    axes = figure.subplots()
    axes.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        text = f'{value:.1f}\n{counts[row, column]:,}' if counts[row, column] else '·'
        axes.text(column, row, text, ha='center', va='center', fontsize=7, color='white' if value > 45 else _INK)
    ticks, labels = range(len(class_names)), [_text(name) for name in class_names]
    axes.set_xticks(ticks, labels, rotation=45, ha='right', fontsize=9)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set(xlabel='class found', ylabel='class of the query')
    axes.set_title(f'{_text(title)}: % of the row, and count', fontsize=9)
    return figure


def gallery(title: str, pictures: dict[str, np.ndarray], class_names: list[str]) -> Figure:
    """Returns a sheet of queries and their nearest images; pictures as `evaluate.Evaluation` has them.

    Where there are several classes, it tells which of them are right.
    """
    has_classes = len(class_names) > 1
    positions = np.column_stack([pictures['gallery_query'], pictures['gallery_neighbours']])
    images, labels = pictures['images'][positions], pictures['image_label'][positions]
    rows, columns, height, width = images.shape[:4]
    border, gap = 3, 12
    cell_height, cell_width = height + 2 * border, width + 2 * border
    sheet = np.full((rows * cell_height, columns * cell_width + gap, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * cell_height, column * cell_width + (gap if column else 0)
            right = labels[row, column] == labels[row, 0]
            colour = _GREY if column == 0 or not has_classes else _GREEN if right else _ORANGE
            sheet[top : top + cell_height, left : left + cell_width] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            cell = slice(top + border, top + border + height), slice(left + border, left + border + width)
            sheet[cell] = images[row, column]
    figure = Figure(figsize=(8.5, 0.6 + 0.66 * rows), layout='constrained')
    axes = figure.subplots()
    axes.imshow(sheet, interpolation='nearest')
    names = [_text(class_names[label]) for label in labels[:, 0]]
    marks = '; right in green, wrong in orange; worst first'
    if not has_classes:
        names, marks = pictures['image_index'][pictures['gallery_query']], ''
    axes.set_yticks([(row + 0.5) * cell_height for row in range(rows)], names, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f'{_text(title)}\n(query first{marks})', fontsize=9)
    return figure


def contact_sheet(title: str, images: np.ndarray) -> Figure:
    """Returns a sheet of images, uint8 [N, T, H, W, C], a row of each: first as it is, then as training sees it."""
    rows, columns, height, width, channels = images.shape
    sheet = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    sheet = sheet.swapaxes(1, 2).reshape(rows * (height + 2), columns * (width + 2), channels)
    figure = Figure(figsize=(8.5, 0.5 + 0.7 * rows), layout='constrained')
    axes = figure.subplots()
    axes.imshow(sheet if channels == 3 else sheet[..., 0], interpolation='nearest', cmap='gray')
    axes.set_axis_off()
    axes.set_title(_text(title), fontsize=9)
    return figure


def _text(name: str) -> str:
    return name.replace('$', r'\$')  # A name is text: a dollar sign would start a formula.
