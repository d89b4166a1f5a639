"""The files of a run: their names, their lock, and writing that leaves a whole file or none."""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from simclr_cifar import file_systems
from simclr_cifar.config import InputError

# Where an evaluation does not tell the weights that it measured, and they are gone.
UNKNOWN_WEIGHTS = 'unknown'
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
            with contextlib.suppress(OSError):  # Some file systems have no modes.
                os.chmod(partial.name, 0o644)
            os.replace(partial.name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # Interrupted just after it had its name.
                os.unlink(partial.name)
            raise


def numbered(folder: pathlib.Path) -> list[int]:
    """Returns the numbers, as we write them, that entries of a folder are named by, ascending."""
    names = [path.name for path in folder.glob('*')]
    return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))


def write_json(path: pathlib.Path, content) -> None:
    """Writes JSON with two spaces of indentation, as `write`."""
    write(path, json.dumps(content, indent=2) + '\n')


class NotWritable(InputError):
    """A folder cannot be written.

    Attributes:
      reason: the system's, in words.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class Folder:
    """The folder of a run or a study.

    Attributes:
      path: the folder.
      flag: which it was given by, as messages name it.
      config: its config.json.
    """

    def __init__(self, path: str | os.PathLike, flag: str = '--workdir'):
        self.path, self.flag = pathlib.Path(path), flag
        self.config = self.path / 'config.json'

    def read_json(self, path: pathlib.Path) -> dict:
        """Returns what one of the run's JSON files holds.

        Raises:
          InputError: it is missing or no JSON object.
        """
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            name = path.relative_to(self.path)
            raise InputError(
                f'{self.flag}={self.path}: {name} is missing or unreadable; give the folder of a run'
            ) from error

    def read_config(self) -> dict:
        """Returns the fields of the config that the folder was begun with.

        Raises:
          InputError: config.json is missing or holds no such thing.
        """
        fields = self.read_json(self.config).get('config')
        if not isinstance(fields, dict):
            raise InputError(f'{self.flag}={self.path}: {self.config.name} holds no config; give the folder of a run')
        return fields

    def read_packed(self, path: pathlib.Path, remedy: str) -> dict[str, np.ndarray]:
        """Returns the arrays of one of the folder's .npz files.

        Raises:
          InputError: it is missing or unreadable; the line ends with the remedy.
        """
        try:
            # NumPy leaves a file open that it cannot read.
            with path.open('rb') as file, np.load(file, allow_pickle=False) as packed:
                return dict(packed)
        except Exception as error:  # NumPy, zipfile and zlib have errors of many kinds for what is damaged.
            raise InputError(
                f'{self.flag}={self.path}: {path.relative_to(self.path)} is missing or unreadable; {remedy}'
            ) from error

    @contextlib.contextmanager
    def locked(self):
        """Holds the folder, made where it is missing, for this process alone; the lock of a dead process is no lock.

        If the file system has no locks, a warning says so and nothing is held.

        Raises:
          NotWritable: the folder cannot be written.
          InputError: another running process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / '.lock').open('a+')
        except OSError as error:
            message = f'{self.flag}={self.path}: cannot be written ({error.strerror}); choose another'
            raise NotWritable(message, error.strerror) from error
        with lock:
            try:
                lacking = file_systems.lock(lock)
            except BlockingIOError as error:
                lock.seek(0)
                raise InputError(
                    f'{self.flag}={self.path}: held by another running process ({lock.read().strip()}); '
                    'wait for it, stop it, or choose another folder'
                ) from error
            if lacking:
                print(
                    f'warning: {self.flag}={self.path}: the file system has no locks ({lacking}), so nothing stops '
                    'another process from writing to this folder; start only one at a time',
                    file=sys.stderr,
                )
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on {os.uname().nodename}\n')
            lock.flush()
            yield


class RunFolder(Folder):
    """The folder of one run.

    Attributes:
      history, metrics, report, augmentation, weights: its files, of these names.
      checkpoints, figures, tensorboard: its folders.
    """

    def __init__(self, path: str | os.PathLike, flag: str = '--workdir'):
        super().__init__(path, flag)
        self.history = self.path / 'history.csv'
        self.metrics = self.path / 'metrics.json'
        self.report = self.path / 'report.html'
        self.checkpoints = self.path / 'checkpoints'
        self.figures = self.path / 'figures'
        self.tensorboard = self.path / 'tensorboard'
        self.augmentation = self.path / 'augmentation.npz'
        self.weights = self.path / 'weights.npz'

    def evaluation(self, epoch: int) -> pathlib.Path:
        """Returns the folder of an epoch's evaluation."""
        return self.path / 'eval' / str(epoch)

    def evaluations(self) -> dict[int, dict[str, float]]:
        """Returns the figures of every evaluated epoch, ascending."""
        finished = {epoch: self.evaluation(epoch) / 'metrics.json' for epoch in numbered(self.path / 'eval')}
        return {epoch: self.read_json(path) for epoch, path in finished.items() if path.exists()}

    def measured_weights(self, epoch: int) -> dict[str, str]:
        """Returns the digest of the weights that each split of an epoch's evaluation was measured with.

        It is UNKNOWN_WEIGHTS for one of an older version whose checkpoint is gone, and absent for others of one.
        """
        path = self.evaluation(epoch) / 'weights.json'
        return self.read_json(path) if path.exists() else {}

    def evaluated_epochs(self, split: str) -> list[int]:
        """Returns the epochs with a finished evaluation of a split, ascending."""
        return [
            epoch
            for epoch, figures in self.evaluations().items()
            if any(name.startswith(f'{split}/') for name in figures)
        ]

    def read_arrays(self, epoch: int, name: str) -> dict[str, np.ndarray]:
        """Returns the arrays of an evaluation's .npz file: a split's name, or 'pictures'.

        Raises:
          InputError: it is missing or unreadable.
        """
        path = self.evaluation(epoch) / f'{name}.npz'
        return self.read_packed(path, f'evaluate again with --mode=eval --checkpoint={epoch}')

    def read_augmentation(self) -> np.ndarray | None:
        """Returns the images of augmentation.npz, as `augment.contact_sheet` made them; None where there are none.

        Raises:
          InputError: they are unreadable.
        """
        if not self.augmentation.exists():
            return None
        return self.read_packed(self.augmentation, 'delete it')['images']

    def read_weights(self) -> dict[str, np.ndarray]:
        """Returns the arrays of weights.npz, as `checkpoint.save_weights` wrote them.

        Raises:
          InputError: it is missing or unreadable.
        """
        remedy = 'train again, or get it again'
        arrays = self.read_packed(self.weights, remedy)
        if 'epoch' not in arrays:
            raise InputError(f'{self.flag}={self.path}: {self.weights.name} holds no epoch; {remedy}')
        return arrays

    def read_confusions(self, epoch: int) -> dict[tuple[str, str], np.ndarray]:
        """Returns an epoch's confusion matrices: (split, kind) to int [C, C].

        Raises:
          InputError: they are missing or unreadable.
        """
        path, counts = self.evaluation(epoch) / 'confusion.csv', {}
        try:
            with path.open(newline='') as file:
                for row in csv.DictReader(file):
                    counts.setdefault((row['split'], row['kind']), []).append(int(row['count']))
            return {key: np.reshape(values, (math.isqrt(len(values)),) * 2) for key, values in counts.items()}
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise InputError(
                f'{self.flag}={self.path}: {path.relative_to(self.path)} is missing or unreadable; evaluate again with '
                f'--mode=eval --checkpoint={epoch}'
            ) from error

    def read_history(self) -> list[dict[str, float]]:
        """Returns the rows of history.csv, ascending by epoch; a line that a killed process left unfinished is none."""
        if not self.history.exists():
            return []
        rows = []
        with self.history.open(newline='', errors='replace') as file:
            for row in csv.DictReader(line.replace('\0', '') for line in file):
                with contextlib.suppress(TypeError, ValueError, KeyError):
                    rows.append({name: float(row[name]) for name in HISTORY_FIELDS})
        return rows

    def start_history(self, last_epoch: int) -> None:
        """Makes history.csv hold the rows up to an epoch and no more; later epochs are to be trained again."""
        lines = self.history.read_text(errors='replace').splitlines() if self.history.exists() else []
        kept = [line for line in lines[1:] if line.split(',')[0].isdigit() and int(line.split(',')[0]) <= last_epoch]
        write(self.history, '\n'.join([','.join(HISTORY_FIELDS), *kept]) + '\n')

    def append_history(self, row: dict[str, float]) -> None:
        """Adds a row with HISTORY_FIELDS to history.csv."""
        with self.history.open('a') as file:
            file.write(','.join(repr(row[name]) for name in HISTORY_FIELDS) + '\n')


class StudyFolder(Folder):
    """The folder of a study: a folder of runs for every subset of the classes.

    Attributes:
      page, table, text: study.html, study.csv and study.md.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__(path)
        self.page = self.path / 'study.html'
        self.table = self.path / 'study.csv'
        self.text = self.path / 'study.md'

    def run(self, subset: str, seed: int) -> RunFolder:
        """Returns the folder of one run."""
        return RunFolder(self.path / subset / f'seed_{seed}')

    def duplicates(self, subset: str) -> pathlib.Path:
        """Returns the .npz file of a subset's near-duplicates."""
        return self.path / subset / 'duplicates.npz'


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed .npz file, as `write`."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write(path, packed.getvalue())


def git_commit() -> str:
    """Returns the commit of the code, with '+' where it was changed since; 'unknown' outside a git checkout."""
    here = pathlib.Path(__file__).parent

    def git(*arguments):
        return subprocess.run(['git', *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--', '.') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
