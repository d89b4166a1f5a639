"""The training loop."""

import time

import ml_collections

from simclr_cifar import checkpoint, evaluate, parallel, sampling, step
from simclr_cifar import config as config_lib
from simclr_cifar.data import Dataset
from simclr_cifar.files import RunFolder, write_json
from simclr_cifar.log import Log


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
      log.TrainingDiverged: at a loss that is not finite; the checkpoints before it are kept.
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
    log = Log(config, run, epoch, num_classes)
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
