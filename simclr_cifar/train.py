"""The training loop."""

import sys
import time

import jax
import ml_collections
import numpy as np
import tqdm
from tensorboardX import SummaryWriter

from simclr_cifar import checkpoint, evaluate, objectives, parallel, sampling, step
from simclr_cifar import config as config_lib
from simclr_cifar.data import Dataset
from simclr_cifar.files import RunFolder, write_json


class TrainingDiverged(Exception):
    """The loss is no longer a finite number."""


def train(config: ml_collections.ConfigDict, splits: dict[str, Dataset], run: RunFolder) -> dict[str, float]:
    """Trains from the run's newest checkpoint to the last epoch or max_seconds, evaluates, and writes the run's files.

    Where a validation split is there, it alone is scored at milestones, it chooses among their checkpoints, and the
    test split is scored once, at the chosen one. Where not, nothing is chosen and milestones score the test split.

    Args:
      config: validated.
      splits: as `data.load_splits` returns them.
      run: the run's folder, locked.

    Returns:
      The final figures, as written to metrics.json.

    Raises:
      TrainingDiverged: at a loss that is not finite; the checkpoints before it are kept.
    """
    mesh = parallel.make_mesh(config.groups_per_batch)
    num_classes = len(splits['train'].class_names)
    milestones = config_lib.milestones(config)
    scored = ['validation'] if 'validation' in splits else ['test']
    evaluate_params = evaluate.make_evaluate(config, mesh, splits)

    initial = step.init_state(config, splits['train'].images.shape[1:])
    epoch, state = checkpoint.restore_latest(run.checkpoints, initial)
    run.start_history(epoch)
    if epoch:
        print(f'Going on from epoch {epoch} of {config.num_epochs} in {run.path}', flush=True)

    def evaluate_epoch(epoch, state, names):
        evaluation = evaluate_params(state.params, names)
        evaluate.save(run, epoch, evaluation, splits['train'].class_names)
        log.evaluation(epoch, evaluation.figures)

    saver = checkpoint.Saver(run.checkpoints, config.checkpoints_to_keep, milestones)
    log = _Log(config, run, epoch, num_classes)
    with saver, log:
        # Killed between the checkpoint and its figures.
        if epoch in milestones and epoch not in run.evaluated_epochs():
            evaluate_epoch(epoch, state, scored)
        state = parallel.replicate(state, mesh)
        images = parallel.replicate(splits['train'].images, mesh)
        index = parallel.replicate(sampling.class_index(splits['train'].labels, num_classes), mesh)
        started = time.monotonic()
        run_epoch = step.compile_epoch(config, mesh).lower(state, images, index).compile()
        log.start(f'Training on {parallel.describe(mesh)}; compiled in {time.monotonic() - started:.1f} s')

        started = time.monotonic()
        in_flight = None  # An epoch's metrics are read while the device trains the next.
        while epoch < config.num_epochs:
            epoch += 1
            state, metrics = run_epoch(state, images, index)
            if in_flight:
                log.epoch(*in_flight)
            in_flight = epoch, metrics
            out_of_time = config.max_seconds and time.monotonic() - started >= config.max_seconds
            last = out_of_time or epoch == config.num_epochs
            if last or epoch in milestones or epoch % config.checkpoint_every_epochs == 0:
                log.epoch(*in_flight)
                in_flight = None
                saver.save(epoch, state)
                if last or epoch in milestones:
                    evaluate_epoch(epoch, state, scored)
            if out_of_time:
                break
        saver.wait()

        chosen, state = _choose(run, epoch, milestones, state) if 'validation' in splits else (epoch, state)
        if 'validation' in splits:
            evaluate_epoch(chosen, state, ['validation', 'test'])
    if epoch < config.num_epochs:
        print(f'Stopped by max_seconds after epoch {epoch} of {config.num_epochs}; the same command goes on')
    return write_final_figures(run, chosen)


def write_final_figures(run: RunFolder, epoch: int) -> dict[str, float]:
    """Writes metrics.json, the figures of one evaluated epoch and of training up to it, and returns them."""
    row = next((row for row in run.read_history() if row['epoch'] == epoch), {})
    final = {
        'epoch': epoch,
        **{f'train/{name}': row[name] for name in ('loss', 'accuracy') if name in row},
        **run.read_json(run.evaluation(epoch) / 'metrics.json'),
    }
    write_json(run.metrics, final)
    return final


def _choose(run: RunFolder, last_epoch: int, milestones: list[int], state: step.TrainState):
    """Returns (epoch, state) of the checkpoint with the best validation precision_at_10, the earliest of equals."""
    candidates = [epoch for epoch in run.evaluated_epochs() if epoch in milestones or epoch == last_epoch]
    figures = {epoch: run.read_json(run.evaluation(epoch) / 'metrics.json') for epoch in candidates}
    scores = {epoch: figures[epoch]['validation/precision_at_10'] for epoch in candidates}
    chosen = max(scores, key=lambda epoch: (scores[epoch], -epoch))
    return chosen, state if chosen == last_epoch else checkpoint.restore(run.checkpoints, chosen, state)


class _Log:
    """Tells of each epoch: history.csv, TensorBoard, a progress bar or, outside a terminal, a line."""

    def __init__(self, config, run, first_epoch, num_classes):
        self._config, self._run = config, run
        self._images_per_epoch = 2 * config.groups_per_batch * num_classes * config.batches_per_epoch
        self._chance = objectives.chance_loss(config.groups_per_batch, num_classes, config.negatives)
        self._first_epoch = first_epoch
        self._tensorboard = SummaryWriter(str(run.tensorboard), purge_step=first_epoch * config.batches_per_epoch + 1)
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm.tqdm(total=config.num_epochs, initial=first_epoch, unit='epoch', file=sys.stdout)

    def start(self, line: str) -> None:
        """Prints a line and starts the clock of the first epoch."""
        self._print(line)
        self._started = self._read = time.monotonic()

    def epoch(self, epoch: int, metrics: dict[str, jax.Array]) -> None:
        """Reads an epoch's metrics, which waits for them, and records them."""
        losses = np.asarray(metrics['loss'])
        now = time.monotonic()
        seconds, self._read = now - self._read, now
        last_step = epoch * self._config.batches_per_epoch
        if not np.all(np.isfinite(losses)):
            first = last_step - len(losses) + 1 + int(np.argmin(np.isfinite(losses)))
            raise TrainingDiverged(
                f'the loss is {losses[first - last_step - 1]} at step {first} (epoch {epoch}); the checkpoints before '
                f'it are kept in {self._run.checkpoints}; lower --config.learning_rate or raise --config.temperature'
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
        for name in ('loss', 'accuracy', 'learning_rate', 'images_per_second'):
            self._tensorboard.add_scalar(f'train/{name}', row[name], last_step)
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
            print(f'epoch {epoch}/{self._config.num_epochs}  {told}  {minutes}:{rest:02d} left', flush=True)

    def evaluation(self, epoch: int, figures: dict[str, float]) -> None:
        """Records the figures of an evaluated epoch."""
        for name, value in figures.items():
            self._tensorboard.add_scalar(name, value, epoch * self._config.batches_per_epoch)
        self._tensorboard.flush()
        told = '  '.join(
            f'{name} {value:.4f}'
            for name, value in figures.items()
            if name.endswith(('pair_accuracy', 'precision_at_1', 'precision_at_10', 'knn_accuracy_k200'))
        )
        self._print(f'evaluated epoch {epoch}  {told}')
        self._read = time.monotonic()

    def _print(self, line: str) -> None:
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._tensorboard.close()
        if self._bar is not None:
            self._bar.close()
