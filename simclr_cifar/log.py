"""What is told of each epoch: history.csv, TensorBoard, and a progress bar or, outside a terminal, a line."""

import sys
import time

import jax
import ml_collections
import numpy as np
import tqdm
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from simclr_cifar import objectives
from simclr_cifar.files import RunFolder


class TrainingDiverged(Exception):
    """The loss is no longer a finite number."""


class Log:
    """The log of one process training a run, a context manager.

    Args:
      config: the run's.
      run: the run's folder; its history must hold first_epoch rows.
      first_epoch: how many epochs are trained already.
      num_classes: for the images of an epoch and the loss of chance.
    """

    def __init__(self, config: ml_collections.ConfigDict, run: RunFolder, first_epoch: int, num_classes: int):
        self._config, self._run, self._first_epoch = config, run, first_epoch
        self._images_per_epoch = 2 * config.groups_per_batch * num_classes * config.batches_per_epoch
        self._chance = objectives.chance_loss(config.groups_per_batch, num_classes, config.negatives)
        run.tensorboard.mkdir(exist_ok=True)
        # Not its SummaryWriter, whose thread would fail out of sight where the disk is full.
        self._events = EventsWriter(str(run.tensorboard / 'events'))
        first_step = first_epoch * config.batches_per_epoch + 1
        self._events.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm.tqdm(total=config.num_epochs, initial=first_epoch, unit='epoch', file=sys.stdout)

    def start(self, line: str) -> None:
        """Prints a line and starts the clock of the first epoch."""
        self._print(line)
        self._started = self._read = time.monotonic()

    def epoch(self, epoch: int, metrics: dict[str, jax.Array]) -> None:
        """Reads an epoch's metrics, which waits for them, and records them.

        Raises:
          TrainingDiverged: a loss is not finite; nothing of the epoch is recorded.
        """
        losses = np.asarray(metrics['loss'])
        now = time.monotonic()
        seconds, self._read = now - self._read, now
        last_step = epoch * self._config.batches_per_epoch
        if not np.all(np.isfinite(losses)):
            first = int(np.argmin(np.isfinite(losses)))
            raise TrainingDiverged(
                f'the loss is {losses[first]} at step {last_step - len(losses) + 1 + first} (epoch {epoch}); the '
                f'checkpoints before it are kept in {self._run.checkpoints}; lower --config.learning_rate or raise '
                '--config.temperature'
            )
        row = {
            'epoch': epoch,
            'step': last_step,
            'loss': float(losses.mean(dtype=np.float64)),
            'accuracy': float(np.asarray(metrics['accuracy']).mean(dtype=np.float64)),
            'learning_rate': self._config.learning_rate,
            'images_per_second': self._images_per_epoch / seconds,
            'seconds': seconds,
        }
        self._run.append_history(row)
        recorded = ('loss', 'accuracy', 'learning_rate', 'images_per_second')
        self._write_events(last_step, {f'train/{name}': row[name] for name in recorded})
        told = (
            f'loss {row["loss"]:.4f} (chance {self._chance:.4f})  accuracy {row["accuracy"]:.4f}  '
            f'{row["images_per_second"]:,.0f} images/s'
        )
        if self._bar is not None:
            self._bar.set_postfix_str(told, refresh=False)
            self._bar.update(epoch - self._bar.n)
        else:
            left = (self._config.num_epochs - epoch) * (now - self._started) / (epoch - self._first_epoch)
            minutes, rest = divmod(round(left), 60)
            self._print(f'epoch {epoch}/{self._config.num_epochs}  {told}  {minutes}:{rest:02d} left')

    def evaluation(self, epoch: int, figures: dict[str, float]) -> None:
        """Records the figures of an evaluated epoch."""
        self._write_events(epoch * self._config.batches_per_epoch, figures)
        headlines = ('pair_accuracy', 'precision_at_1', 'precision_at_10', 'knn_accuracy_k200')
        told = '  '.join(f'{name} {value:.4f}' for name, value in figures.items() if name.endswith(headlines))
        self._print(f'evaluated epoch {epoch}  {told}')
        self._read = time.monotonic()

    def _write_events(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
        self._events.flush()

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()
        self._events.close()
