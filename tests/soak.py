"""What takes too long for every change: the program under hours of trouble in half an hour. Prints a table.

    python tests/soak.py            # all
    python tests/soak.py kills      # one: equal, kills, disk, leaks

Everything is drawn from fixed seeds; only when a process is killed depends on the machine. Exit status 1 where
anything was lost.

equal  losses and parameters of 200 steps on 1, 2, 4 and 8 devices and in 2 and 4 processes, for every objective
kills  100 times SIGKILL at a random moment, from start-up to report; what is there stays whole, and ends as if unharmed
disk   a disk that is full at first, and given a little more room again and again; then one that cannot be written
leaks  memory, open files, threads and processes over 30 minutes of training, evaluation and resuming; medians of thirds
"""

import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import scipy.stats
from PIL import Image
from programs import ROOT, finish, losses, started, weights

SMALL = ['--config=configs/smoke.py', '--config.channels=8,8', '--config.embedding_dim=4']
FEW_LOGITS = 'from simclr_cifar import objectives; objectives._LARGEST_LOGITS = 64'


class Table:
    """Lines of (what, tried, came through, note), printed as they come."""

    def __init__(self):
        self.well = True
        print(f'{"what":58} {"tried":>6} {"well":>6}  note', flush=True)

    def add(self, what: str, tried: int, well: int, note: str = '') -> None:
        self.well &= tried == well
        print(f'{what:58} {tried:6} {well:6}  {note}', flush=True)


def equal(table: Table, folder: pathlib.Path) -> None:
    """200 steps on one device against the same on more, and in more processes; every replica sees other images."""
    views = ['--config.pairs=views', '--config.augmentation=simclr']
    kinds = {
        "anchor_positive, 'group'": [],
        "anchor_positive, 'batch'": ['--config.negatives=batch'],
        'sup_con': ['--config.objective=sup_con'],
        'nt_xent': ['--config.objective=nt_xent', *views],
        'siglip': ['--config.objective=siglip'],
        'simplex': ['--config.objective=simplex'],
        # Which makes little differences of features large, and gradients with them.
        'sup_con, batch normalisation': [
            *('--config.objective=sup_con', '--config.head_batch_norm=True', '--config.learning_rate=0.00001'),
        ],
    }
    common = ['--config=configs/smoke.py', '--config.groups_per_batch=8', '--config.batches_per_epoch=100']
    common += [
        '--config.num_epochs=2',
        '--config.milestones=2,',
        '--config.optimizer=sgd',
        '--config.learning_rate=0.0001',
    ]
    # Rounding changes the sign of what a ReLU is given, once in so many activations, and a gradient with it: with 32
    # pixels a side it does within some ten steps, and training goes other ways.
    common += ['--config.image_size=8', '--config.channels=16,16', '--config.embedding_dim=16']
    for number, (kind, flags) in enumerate(kinds.items()):
        for chunked in (False, True):
            if chunked and ('group' in kind or 'simplex' in kind):
                continue  # They have no logits of the whole batch.
            runs = {}
            for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1)):
                run = folder / f'{number}{"-chunked" * chunked}-{processes}x{devices}'
                first = FEW_LOGITS if chunked else ''
                with started(processes, *common, *flags, f'--workdir={run}', devices=devices, first=first) as group:
                    ended = finish(group)
                if any(status for status, _, _ in ended):
                    print(*(errors for _, _, errors in ended), sep='\n', file=sys.stderr)
                else:
                    runs[processes, devices] = run
            reference = runs[1, 1]
            well, loss_apart, weight_apart = 0, 0.0, 0.0
            for run in runs.values():
                apart = np.max(np.abs(np.array(losses(run)) / losses(reference) - 1))
                leaves = zip(weights(run).values(), weights(reference).values(), strict=True)
                furthest = max(np.max(np.abs(one - other)) for one, other in leaves)
                well += apart <= 1e-5 and furthest <= 1e-4
                loss_apart, weight_apart = max(loss_apart, apart), max(weight_apart, furthest)
            note = f'losses to {loss_apart:.1e}, parameters to {weight_apart:.1e}'
            table.add(f'equal: {kind}{", in chunks" * chunked}', 6, well, note)


def kills(table: Table, folder: pathlib.Path, count: int = 100) -> None:
    """Kills a run again and again until it is through, then another, until there were so many kills."""
    flags = [*SMALL, '--config.num_epochs=6', '--config.batches_per_epoch=200', '--config.milestones=2,4']
    flags += ['--config.checkpoint_every_epochs=1', '--config.validation_fraction=0.1']
    unharmed, since = folder / 'unharmed', time.monotonic()
    assert run_for(None, *flags, f'--workdir={unharmed}') == 0
    seconds = unharmed_seconds = time.monotonic() - since
    rng = np.random.default_rng(0)
    killed = whole = kept = ended = alike = 0
    while killed < count:
        run, before, killed_before = folder / f'run-{ended}', set(), killed
        while True:
            since = time.monotonic()
            status = run_for(rng.uniform(0, seconds) if killed < count else None, *flags, f'--workdir={run}')
            if status is not None:
                break
            killed += 1
            there = {int(path.name) for path in run.glob('checkpoints/*') if path.name.isdigit()}
            # Milestones are there for good, of the others the newest.
            kept += before & {2, 4} <= there and max(there, default=0) >= max(before, default=0)
            before = there
            whole += tell(broken(run)) is None
        ended += 1
        if killed == killed_before:
            seconds = time.monotonic() - since  # The machine is not always as busy.
        alike += tell(f'{run}: status {status}' if status else differing(run, unharmed)) is None
    table.add('kills: every file there is whole', killed, whole, f'a run unharmed took {unharmed_seconds:.0f} s')
    table.add('kills: no checkpoint that was there is gone', killed, kept)
    table.add('kills: runs end bit by bit as the one unharmed', ended, alike)


FULL_DISK = """
mkdir disk
mount -t tmpfs -o size=256k tmpfs disk
for size in $(seq 256 256 4096); do
  mount -o remount,size=${size}k disk
  "$@" --workdir=disk/run 2>errors
  status=$?
  echo "$status $(grep -c . errors) $(head -c 300 errors)"
  [ $status = 2 ] || break
done
cp -r disk/run whole
mount -o remount,ro disk
"$@" --workdir=disk/other 2>&1
"""


def disk(table: Table, folder: pathlib.Path) -> None:
    """A run on a tmpfs of 256 KiB, started again with 256 KiB more until it is through."""
    program = [sys.executable, '-m', 'simclr_cifar.main', *SMALL, '--config.milestones=2,']
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    (folder / 'configs').symlink_to(ROOT / 'configs')
    assert run_for(None, *program[3:], f'--workdir={folder / "unharmed"}') == 0
    shell = ['unshare', '--map-root-user', '--mount', 'bash', '-c', FULL_DISK, 'bash', *program]
    told = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True)
    lines = [line for line in told.stdout.splitlines() if line[:2] in ('0 ', '1 ', '2 ')]
    full = [line for line in lines if line.startswith('2 ')]
    table.add(
        'disk: full, one line', len(lines) - 1, sum('1 error: --workdir: the disk is full' in line for line in full)
    )
    alike = tell(differing(folder / 'whole', folder / 'unharmed')) is None
    table.add('disk: ends bit by bit as the one unharmed', 1, int(bool(full) and alike))
    refused = told.stdout.rstrip().endswith('cannot be written (Read-only file system); choose another')
    table.add('disk: not to be written, one line', 1, int(refused), told.stderr[-200:])


def run_for(seconds: float | None, *flags: str) -> int | None:
    """Returns the status of the program, or None where it took longer and was killed."""
    with started(1, *flags, quiet=True) as group:
        try:
            return group[0].wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None


def tell(problem: str | None) -> str | None:
    """Prints a problem, if it is one, and returns it."""
    if problem:
        print(problem, file=sys.stderr, flush=True)
    return problem


def broken(run: pathlib.Path) -> str | None:
    """Returns what is wrong with a file of a run, hidden ones, which are being written, left out; None: nothing."""
    for path in run.rglob('*'):
        if any(part.startswith('.') for part in path.relative_to(run).parts) or not path.is_file():
            continue
        if 'checkpoints' in path.parts or 'tensorboard' in path.parts:
            continue  # Whole or not is seen when the run goes on.
        try:
            if path.suffix == '.json':
                json.loads(path.read_text())
            elif path.suffix == '.npz':
                with np.load(path, allow_pickle=False) as packed:
                    dict(packed)
            elif path.suffix == '.png':
                Image.open(path).load()
            elif path.suffix == '.html' and not path.read_text().rstrip().endswith('</html>'):
                return f'{path} has no end'
            elif path.suffix == '.csv':
                with path.open(newline='') as file:
                    rows = list(csv.reader(file))
                # A line of the history may be unfinished: it is left out when read.
                whole_rows = rows[:-1] if path.name == 'history.csv' else rows
                if len({len(row) for row in whole_rows}) > 1:
                    return f'{path} has rows of unequal length'
        except Exception as error:
            return f'{path}: {error}'
    return None


def differing(run: pathlib.Path, whole: pathlib.Path) -> str | None:
    """Returns in what two finished runs differ; None: in nothing that is not a time."""
    names = {path.relative_to(whole) for path in whole.rglob('*') if path.name in ('metrics.json', 'confusion.csv')}
    for name in names:
        if not (run / name).exists() or (run / name).read_bytes() != (whole / name).read_bytes():
            return str(name)
    ours, theirs = weights(run), weights(whole)
    for name, values in theirs.items():
        if not np.array_equal(ours[name], values):
            return f'weights.npz, {name}'
    return None if losses(run) == losses(whole) else 'history.csv'


def leaks(table: Table, folder: pathlib.Path) -> None:
    """A process that trains, evaluates and saves until it is told to stop; thrice, the second time for long."""
    run = folder / 'run'
    flags = [*SMALL, '--config.num_epochs=1000000', '--config.batches_per_epoch=50', f'--workdir={run}']
    # More often, and what is measured is TensorStore (0.1.86), whose to_json loses 6 kB a checkpoint of this size.
    flags += ['--config.checkpoint_every_epochs=20', '--config.validation_fraction=0.1']
    flags += ['--config.monitor_every_epochs=10']
    flags += [f'--config.milestones=({",".join(str(epoch) for epoch in range(20, 40000, 20))},)']
    for minutes in (2, 26, 2):
        samples = []
        with started(1, *flags, quiet=True) as group:
            process, since = psutil.Process(group[0].pid), time.monotonic()
            while time.monotonic() - since < 60 * minutes:
                time.sleep(5)
                with process.oneshot():
                    memory = process.memory_info().rss / 2**20
                    samples.append((time.monotonic() - since, memory, process.num_fds(), process.num_threads()))
            children = len(process.children(recursive=True))
            group[0].terminate()
            status = group[0].wait(timeout=60)
        settled = np.array(samples[len(samples) // 4 :])
        # Medians, as what saves and evaluates comes and goes.
        thirds = [np.median(third, axis=0) for third in np.array_split(settled, 3)]
        slope = 60 * scipy.stats.theilslopes(settled[:, 1], settled[:, 0])[0]
        flat = slope < 1 or minutes < 10  # In less it has not settled.
        well = flat and np.all(thirds[2][2:] <= thirds[0][2:] + 1) and not children and status == 0
        megabytes, files, threads = (' '.join(f'{third[column]:.0f}' for third in thirds) for column in (1, 2, 3))
        note = f'memory {megabytes} MB ({slope:+.2f} MB a minute), files {files}, threads {threads}'
        table.add(f'leaks: {minutes} minutes', 1, int(well), f'{note}, {children} processes, status {status}')


def main() -> int:
    parts = {'equal': equal, 'kills': kills, 'disk': disk, 'leaks': leaks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', choices=[*parts, []], help='default: all of them')
    chosen = parser.parse_args().parts or list(parts)
    table = Table()
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix='soak-') as folder:
            parts[name](table, pathlib.Path(folder))
    return 0 if table.well else 1


if __name__ == '__main__':
    sys.exit(main())
