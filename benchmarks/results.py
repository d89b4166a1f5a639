"""RESULTS.md: its sections, their tables, and what they say of the machine, the versions and the data."""

import datetime
import hashlib
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
from collections.abc import Sequence

import numpy as np

from benchmarks import harness
from simclr_cifar import files
from simclr_cifar.data import Dataset

PATH = pathlib.Path(__file__).parent / 'RESULTS.md'
SECTIONS = (
    'step',
    'convolutions',
    'neighbours',
    'retrieval',
    'growth',
    'scaling',
    'feed',
    'search',
    'index',
    'gpu',
)  # in the file's order
_PACKAGES = (
    *('jax', 'flax', 'optax', 'tensorflow-cpu', 'keras', 'torch', 'pytorch-metric-learning', 'faiss-cpu'),
    *('scikit-learn', 'numpy', 'tensorflow-similarity', 'nmslib'),
)


def environment() -> str:
    """Returns lines that name date, commit ('+': simclr_cifar was changed since), hardware and versions."""
    commit, changed, _ = files.git_commit().partition('+')
    return (
        f'- {datetime.date.today()}, commit {commit[:8]}{changed}, {_hardware()}\n'
        f'- Python {platform.python_version()}, {", ".join(_versions())}'
    )


def _hardware() -> str:
    model = re.search(r'model name\s*: (.*)', pathlib.Path('/proc/cpuinfo').read_text())
    kibibytes = int(re.search(r'MemTotal:\s*(\d+)', pathlib.Path('/proc/meminfo').read_text())[1])
    parts = [
        model[1] if model else platform.machine(),
        f'{len(os.sched_getaffinity(0))} cores',
        f'{kibibytes * 1024 / 1e9:.0f} GB',
    ]
    if shutil.which('nvidia-smi'):
        query = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
        parts += subprocess.run(query, capture_output=True, text=True, check=False).stdout.split('\n')
    return ', '.join(part.strip() for part in parts if part.strip())


def _versions():
    for name in _PACKAGES:
        try:
            yield f'{name} {importlib.metadata.version(name)}'
        except importlib.metadata.PackageNotFoundError:
            yield f'no {name}'


def describe_data(dataset: Dataset) -> str:
    """Returns a line that says which images these are, and the beginning of their bytes' SHA-256."""
    digest = hashlib.sha256(np.asarray(dataset.images).tobytes()).hexdigest()
    return f'- Data: {dataset.description} SHA-256 of these {len(dataset.images)}: {digest[:8]}...'


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Returns 'median (lowest-highest)', each in so many significant digits, the whole part never shortened."""

    def text(value):
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        return f'{value:,.{max(0, digits - 1 - magnitude)}f}'

    return f'{text(statistics.median(values))} ({text(min(values))}-{text(max(values))})'


def reading(repeats: int = harness.REPEATS) -> str:
    """Returns how to read `comparison` of so many repetitions."""
    return f"""\
Seconds are the median (lowest-highest) of {repeats} repetitions, taken turn by turn, each contender in a
process of its own. "Ours / it" is the same of the ratio within each turn: below 1 we are faster. "First call" is what
the first repetition took beyond the median, compilation above all; imports and reading the data are in neither. Memory
is the process's peak."""


def comparison(measurements: Sequence[harness.Measurement], unit: str, limit_seconds: float | None = None) -> str:
    """Returns a Markdown table of contenders, ours first.

    Args:
      measurements: ours, then the peers'.
      unit: what a repetition is.
      limit_seconds: the time that none can beat; None: not known.
    """
    ours = measurements[0]
    header = ['contender', f's/{unit}', 'ours / it']
    header += ['times the limit'] if limit_seconds else []
    rows = []
    for measured in measurements:
        if measured.failure:
            cells = [f'failed: {measured.failure}', *['-'] * len(header)]
        else:
            ratios = '1' if measured is ours else spread(harness.paired_ratios(ours, measured))
            cells = [spread(measured.seconds), ratios]
            cells += [f'{measured.median / limit_seconds:.1f}'] if limit_seconds else []
            cells += [f'{max(0.0, measured.first_seconds - measured.median):.1f}', f'{measured.peak_bytes / 1e6:.0f}']
        rows.append([measured.title, *cells])
    return table([*header, 'first call, s more', 'peak memory, MB'], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in [header, ['---'] * len(header), *rows])


def write_section(name: str, title: str, body: str) -> str:
    """Writes one section of RESULTS.md in the place of its last, and leaves the rest of the file as it is.

    A new section goes where SECTIONS has it; a line of text that is in no section stays where it is.

    Args:
      name: one of SECTIONS.
      title: its heading.
      body: Markdown.

    Returns:
      The section.
    """
    section = f'{_mark("begin", name)}\n## {title}\n\n{body}\n{_mark("end", name)}'
    text = PATH.read_text() if PATH.exists() else '# Results\n'
    if _mark('begin', name) in text:
        start, end = _extent(text, name)
        text = text[:start] + section + text[end:]
    else:
        earlier = [other for other in SECTIONS[: SECTIONS.index(name)] if _mark('begin', other) in text]
        later = [other for other in SECTIONS[SECTIONS.index(name) :] if _mark('begin', other) in text]
        if earlier:
            place = _extent(text, earlier[-1])[1]
            text = f'{text[:place]}\n\n{section}{text[place:]}'
        elif later:
            place = _extent(text, later[0])[0]
            text = f'{text[:place]}{section}\n\n{text[place:]}'
        else:
            text = f'{text.rstrip()}\n\n{section}\n'
    files.write(PATH, text)
    return section


def _mark(which: str, name: str) -> str:
    return f'<!-- {which} {name} -->'


def _extent(text: str, name: str) -> tuple[int, int]:
    end = _mark('end', name)
    if end not in text:
        raise ValueError(f'{PATH}: {end} is missing')
    return text.index(_mark('begin', name)), text.index(end) + len(end)
