"""What is told of each epoch: history.csv, TensorBoard, and a progress bar or, outside a terminal, a line."""

import sys
import time

import jax
import ml_collections
import numpy as np
import tqdm

from simclr_cifar import objectives, optimizers
from simclr_cifar.config import RunFailed
from simclr_cifar.files import RunFolder
from simclr_cifar.representation import effective_rank

# Within so much of chance is at chance; a norm of the mean embedding or an effective rank beyond these is a collapse.
_CHANCE_MARGIN, _ALL_EQUAL, _COLLAPSED_RANK = 0.98, 0.999, 1.1
# Batches before which nothing is said.
_SETTLED = 100


class TrainingDiverged(RunFailed):
    """The loss or the embeddings are no longer finite numbers."""


class Log:
    """The log of one process training runs that differ in their seed alone, a context manager.

    Args:
      config: the runs'.
      runs: their folders; each history must hold first_epoch rows. Without any nothing is told.
      first_epoch: how many epochs are trained already.
      num_classes: for the images of an epoch and the loss of chance.
    """

    def __init__(self, config: ml_collections.ConfigDict, runs: list[RunFolder], first_epoch: int, num_classes: int):
        # Here, as it imports torch where that is installed: two seconds that an evaluation need not wait.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._config, self._runs, self._first_epoch, self._num_classes = config, runs, first_epoch, num_classes
        pairs = config.groups_per_batch * (1 if config.pairs == 'views' else num_classes)
        self._images_per_epoch = 2 * pairs * config.batches_per_epoch
        self._chance = objectives.chance(config, num_classes)
        self._schedule = optimizers.make_schedule(config)
        self._events, self._warned = {}, set()
        first_step = first_epoch * config.batches_per_epoch + 1
        for run in runs:
            run.tensorboard.mkdir(parents=True, exist_ok=True)
            # Not its SummaryWriter, whose thread would fail out of sight where the disk is full.
            self._events[run] = EventsWriter(str(run.tensorboard / 'events'))
            self._events[run].write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._bar = None
        if runs and sys.stdout.isatty():
            self._bar = tqdm.tqdm(total=config.num_epochs, initial=first_epoch, unit='epoch', file=sys.stdout)

    def start(self, line: str) -> None:
        """Prints a line and starts the clock of the first epoch."""
        self._print(line)
        self._started = self._read = time.monotonic()

    def epoch(self, epoch: int, metrics: dict[str, jax.Array]) -> None:
        """Reads an epoch's metrics, which waits for them, and records them.

        Args:
          epoch: its number, from 1.
          metrics: as the compiled epoch's, with a leading axis of runs.

        Raises:
          TrainingDiverged: a loss or an embedding is not finite; nothing of the epoch is recorded.
        """
        if not self._runs:
            return
        metrics = {name: np.asarray(values) for name, values in metrics.items()}
        now = time.monotonic()
        seconds, self._read = now - self._read, now
        last_step = epoch * self._config.batches_per_epoch
        rows = []
        of_runs = (metrics[name] for name in ('loss', 'accuracy', 'embeddings'))
        for run, losses, accuracies, embeddings in zip(self._runs, *of_runs, strict=True):
            if not np.all(np.isfinite(losses)):
                first = int(np.argmin(np.isfinite(losses)))
                raise TrainingDiverged(
                    f'the loss is {losses[first]} at step {last_step - len(losses) + 1 + first} (epoch {epoch}); the '
                    f'checkpoints before it are kept in {run.checkpoints}; lower --config.learning_rate or raise '
                    '--config.temperature'
                )
            if not np.all(np.isfinite(embeddings)):
                raise TrainingDiverged(
                    f'the embeddings are no numbers after epoch {epoch}; the checkpoints before it are kept in '
                    f'{run.checkpoints}; lower --config.learning_rate'
                )
            rows.append(
                {
                    'epoch': epoch,
                    'step': last_step,
                    'loss': float(losses.mean(dtype=np.float64)),
                    'accuracy': float(accuracies.mean(dtype=np.float64)),
                    'learning_rate': float(self._schedule(last_step - 1)),
                    'images_per_second': self._images_per_epoch / seconds,
                    'seconds': seconds,
                }
            )
        recorded = ('loss', 'accuracy', 'learning_rate', 'images_per_second')
        for run, row, embeddings in zip(self._runs, rows, metrics['embeddings'], strict=True):
            run.append_history(row)
            rank = effective_rank(embeddings)
            values = {f'train/{name}': row[name] for name in recorded} | {'train/effective_rank': rank}
            self._write_events(run, last_step, values)
            self._warn(run, symptoms(row, embeddings, self._chance, self._num_classes))
        self._tell(epoch, rows, now)

    def _tell(self, epoch: int, rows: list[dict], now: float) -> None:
        loss, accuracy = (np.mean([row[name] for row in rows]) for name in ('loss', 'accuracy'))
        told = (
            f'loss {loss:.4f} (chance {self._chance[0]:.4f})  accuracy {accuracy:.4f}  '
            f'{sum(row["images_per_second"] for row in rows):,.0f} images/s'
        )
        if len(rows) > 1:
            told = f'means of {len(rows)} seeds: {told}'
        if self._bar is not None:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(epoch - self._bar.n)
        else:
            left = (self._config.num_epochs - epoch) * (now - self._started) / (epoch - self._first_epoch)
            minutes, rest = divmod(round(left), 60)
            self._print(f'epoch {epoch}/{self._config.num_epochs}  {told}  {minutes}:{rest:02d} left')

    def _warn(self, run: RunFolder, found: dict[str, str]) -> None:
        """Prints a run's symptoms, each kind once."""
        for kind, line in found.items():
            if (run, kind) not in self._warned:
                self._warned.add((run, kind))
                self._print(f'warning: {self._named(run)}{line}')

    def evaluation(self, run: RunFolder, epoch: int, figures: dict[str, float]) -> None:
        """Records the figures of an evaluated epoch."""
        self._write_events(run, epoch * self._config.batches_per_epoch, figures)
        headlines = ('pair_accuracy', 'precision_at_1', 'precision_at_10', 'knn_accuracy_k200', 'view_accuracy')
        told = '  '.join(
            f'{name} {value:.4f}'
            for name, value in figures.items()
            if name.startswith(('validation/', 'test/')) and name.count('/') == 1 and name.endswith(headlines)
        )
        self._print(f'evaluated {self._named(run)}epoch {epoch}  {told}')
        self._read = time.monotonic()

    def monitor(self, run: RunFolder, epoch: int, figures: dict[str, float]) -> None:
        """Records the monitor's figures of an epoch."""
        self._write_events(run, epoch * self._config.batches_per_epoch, figures)
        told = '  '.join(f'{name} {value:.4f}' for name, value in figures.items())
        self._print(f'watched {self._named(run)}epoch {epoch}  {told}')
        self._read = time.monotonic()

    def _named(self, run: RunFolder) -> str:
        return f'{run.path.name}, ' if len(self._runs) > 1 else ''

    def _write_events(self, run: RunFolder, step: int, values: dict[str, float]) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        for name, value in values.items():
            event = Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value))
            self._events[run].write_event(event)
        self._events[run].flush()

    def _print(self, line: str) -> None:
        if not self._runs:
            return
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()
        for events in self._events.values():
            events.close()


def symptoms(
    row: dict[str, float], embeddings: np.ndarray, chance: tuple[float, float], num_classes: int
) -> dict[str, str]:
    """Returns what is wrong with an epoch's training: the kind of symptom to a line that says what usually causes it.

    Args:
      row: the epoch's number, step, and loss and accuracy, means over its batches.
      embeddings: float [N, D], unit norm, of images of all classes after it.
      chance: the loss and the accuracy of guessing.
      num_classes: with 2, embeddings along one line are the best there are, not a collapse.
    """
    after, found = f'after epoch {int(row["epoch"])}', {}
    if row['step'] < _SETTLED:
        return found
    rank = effective_rank(embeddings)
    chance_loss, chance_accuracy = chance
    if np.linalg.norm(embeddings.mean(axis=0)) > _ALL_EQUAL:
        found['collapse'] = (
            f'all embeddings are nearly equal {after}: they have collapsed; if it stays so, the usual cause is a '
            'learning rate so high that every ReLU is off, or a temperature too high to tell images apart'
        )
    elif rank < _COLLAPSED_RANK and num_classes != 2:
        found['collapse'] = (
            f'the effective rank of the embeddings is {rank:.2f} of {embeddings.shape[1]} {after}: they have collapsed '
            'to a line; if it stays so, the usual cause is a temperature or a learning rate too high'
        )
    if row['loss'] > _CHANCE_MARGIN * chance_loss:
        found['loss'] = (
            f'the loss {after} is {row["loss"]:.4f}, chance is {chance_loss:.4f}: nothing is learnt yet; if it stays '
            'so, the usual cause is a learning rate far too high or too low, or labels that do not belong to their '
            'images'
        )
    if row['accuracy'] < chance_accuracy / _CHANCE_MARGIN:
        found['accuracy'] = (
            f'the accuracy {after} is {row["accuracy"]:.4f}, chance is {chance_accuracy:.4f}: anchors find their '
            'positives no more often than by guessing; if it stays so, the usual cause is that of a loss at chance, or '
            'images that all look alike to the encoder, as when they are read wrongly'
        )
    return found
