"""The files of a run: their names, their lock, and writing that leaves a whole file or none."""

import contextlib
import csv
import fcntl
import json
import os
import pathlib
import subprocess
import tempfile

from simclr_cifar.config import InputError

HISTORY_FIELDS = ('epoch', 'step', 'loss', 'accuracy', 'learning_rate', 'images_per_second', 'seconds')


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file or, where that fails, leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}-', delete=False) as partial:
        try:
            partial.write(content)
            partial.flush()
            os.fsync(partial.fileno())
            os.chmod(partial.name, 0o644)
            os.replace(partial.name, path)
        except BaseException:
            os.unlink(partial.name)
            raise


def write_json(path: pathlib.Path, content) -> None:
    """Writes JSON with two spaces of indentation, as `write`."""
    write(path, json.dumps(content, indent=2) + '\n')


class RunFolder:
    """The folder of one run.

    Attributes:
      path: the folder.
      config, history, metrics, report: its files, of these names.
      checkpoints, figures, tensorboard: its folders.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.config = self.path / 'config.json'
        self.history = self.path / 'history.csv'
        self.metrics = self.path / 'metrics.json'
        self.report = self.path / 'report.html'
        self.checkpoints = self.path / 'checkpoints'
        self.figures = self.path / 'figures'
        self.tensorboard = self.path / 'tensorboard'

    def evaluation(self, epoch: int) -> pathlib.Path:
        """Returns the folder of an epoch's evaluation."""
        return self.path / 'eval' / str(epoch)

    def evaluated_epochs(self) -> list[int]:
        """Returns the epochs with a finished evaluation, ascending."""
        return sorted(int(path.parent.name) for path in self.path.glob('eval/*/metrics.json'))

    def read_json(self, path: pathlib.Path) -> dict:
        """Returns what one of the run's JSON files holds.

        Raises:
          InputError: it is missing or no JSON.
        """
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f'--workdir={self.path}: {path.name} is missing or unreadable; give the folder of a run'
            ) from error

    @contextlib.contextmanager
    def locked(self):
        """Holds the folder, made where it is missing, for this process alone; the lock of a dead process is no lock.

        Raises:
          InputError: the folder cannot be written, or another running process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / '.lock').open('a+')
        except OSError as error:
            raise InputError(f'--workdir={self.path}: cannot be written ({error.strerror}); choose another') from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise InputError(
                    f'--workdir={self.path}: held by another running process ({lock.read().strip()}); '
                    'wait for it, stop it, or choose another folder'
                ) from error
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on {os.uname().nodename}\n')
            lock.flush()
            yield

    def read_history(self) -> list[dict[str, float]]:
        """Returns the rows of history.csv, ascending by epoch; a line that a killed process left unfinished is none."""
        if not self.history.exists():
            return []
        rows = []
        with self.history.open(newline='') as file:
            for row in csv.DictReader(file):
                with contextlib.suppress(TypeError, ValueError):
                    rows.append({name: float(row[name]) for name in HISTORY_FIELDS})
        return rows

    def start_history(self, last_epoch: int) -> None:
        """Makes history.csv hold the rows up to an epoch and no more; later epochs are to be trained again."""
        lines = self.history.read_text().splitlines() if self.history.exists() else []
        kept = [line for line in lines[1:] if line.split(',')[0].isdigit() and int(line.split(',')[0]) <= last_epoch]
        write(self.history, '\n'.join([','.join(HISTORY_FIELDS), *kept]) + '\n')

    def append_history(self, row: dict[str, float]) -> None:
        """Adds a row with HISTORY_FIELDS to history.csv."""
        with self.history.open('a') as file:
            file.write(','.join(repr(row[name]) for name in HISTORY_FIELDS) + '\n')


def git_commit() -> str:
    """Returns the commit of the code, with '+' where it was changed since; 'unknown' outside a git checkout."""
    here = pathlib.Path(__file__).parent

    def git(*arguments):
        return subprocess.run(['git', *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--', '.') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
