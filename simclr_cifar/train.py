"""The training loop."""

import contextlib
import time

import jax
import ml_collections
import numpy as np

from simclr_cifar import (
    augment,
    beginning,
    checkpoint,
    evaluate,
    interruption,
    models,
    overfitting,
    parallel,
    processes,
    step,
)
from simclr_cifar import config as config_lib
from simclr_cifar.data import Dataset
from simclr_cifar.feed import Feed, is_resident
from simclr_cifar.files import UNKNOWN_WEIGHTS, RunFolder, write_arrays, write_json
from simclr_cifar.log import Log

_SHEET_IMAGES = 10


def train(
    config: ml_collections.ConfigDict, splits: dict[str, Dataset], runs: dict[int, RunFolder | None]
) -> dict[int, dict[str, float]]:
    """Trains runs that differ in their seed alone, all in one program; evaluates them and writes their files.

    Goes from the newest epoch that all of them have a checkpoint of to the last or max_seconds. Where a validation
    split is there, it and the sample of training images are scored at milestones, it alone chooses among a run's
    checkpoints, and the test split is scored at the chosen and the last one. Where not, nothing is chosen and
    milestones score the test split.

    Args:
      config: validated; its seed is not used.
      splits: as `data.load_splits` returns them.
      runs: seed to the run's folder, locked; None in all processes but the leader, which takes their part in writing.

    Returns:
      Seed to the run's final figures, as written to metrics.json, where there is a folder.

    Raises:
      InputError: other processes have other images.
      interruption.Interrupted: the process was asked to end; in the midst of training, after it has saved an epoch.
      log.TrainingDiverged: at a loss that is not finite; the checkpoints before it are kept.
    """
    mesh = parallel.make_mesh(config.groups_per_batch)
    class_names = splits['train'].class_names
    milestones = config_lib.milestones(config)
    scored = ['train', 'validation'] if 'validation' in splits else ['test']
    scored_last = [*scored, 'test'] if 'validation' in splits else scored
    evaluate_state = evaluate.make_evaluate(config, parallel.local_mesh(), splits)
    watch = evaluate.make_monitor(config, parallel.local_mesh(), splits) if config.monitor_every_epochs else None
    folders = [run for run in runs.values() if run]
    beginning.require_same_everywhere(splits)

    epoch, states = 0, [step.init_state(config, splits['train'].images, seed) for seed in runs]
    if folders:
        epoch, states = checkpoint.restore_latest([run.checkpoints for run in folders], states)
    epoch, states = processes.agree(epoch), processes.from_leader(states)
    if not all(run.augmentation.exists() for run in folders):
        sheet = augment.contact_sheet(config, splits['train'].images[:_SHEET_IMAGES])
        if sheet is not None:
            for run in folders:
                write_arrays(run.augmentation, {'images': sheet})
    for run in folders:
        run.start_history(epoch)
        if epoch:
            print(f'Going on from epoch {epoch} of {config.num_epochs} in {run.path}', flush=True)

    def evaluate_run(run, epoch, state, names):
        # Those that a killed process finished are not computed again, if they are of these weights.
        weights, measured = checkpoint.weights_digest(state), run.measured_weights(epoch)
        missing = [name for name in names if epoch not in run.evaluated_epochs(name) or measured.get(name) != weights]
        if missing:
            evaluation = evaluate_state(state, missing)
            evaluate.save(run, epoch, evaluation, class_names, weights)
            log.evaluation(run, epoch, evaluation.figures)

    def renew_evaluations(run, state):
        """Measures again what was not measured of the weights of its checkpoint, or does not tell of which."""
        for number, figures in run.evaluations().items():
            if number > epoch:  # To be trained again, and compared then.
                continue
            names = [name for name in ('train', 'validation', 'test') if any(f.startswith(f'{name}/') for f in figures)]
            if number in checkpoint.saved_epochs(run.checkpoints):
                with contextlib.suppress(checkpoint.CheckpointDamaged):
                    evaluate_run(run, number, checkpoint.restore(run.checkpoints, number, state), names)
                    continue
            if not run.measured_weights(number):
                print(f'{run.evaluation(number)}: kept as it is; the weights that it measured are gone', flush=True)
                write_json(run.evaluation(number) / 'weights.json', dict.fromkeys(names, UNKNOWN_WEIGHTS))

    def watch_run(run, epoch, state):
        figures = watch(state)
        write_json(run.evaluation(epoch) / 'monitor.json', figures)
        log.monitor(run, epoch, figures)

    # Runs go on from what all of them have: one may be a checkpoint behind when it is killed.
    kept = max(config.checkpoints_to_keep, 2 if len(folders) > 1 else 1)
    savers = [checkpoint.Saver(run.checkpoints, kept, milestones) for run in folders]
    log = Log(config, folders, epoch, len(class_names))
    with contextlib.ExitStack() as stack:
        for resource in (*savers, log):
            stack.enter_context(resource)
        for run, state in zip(folders, states, strict=False):
            renew_evaluations(run, state)
        if epoch in milestones:  # Killed between the checkpoint and its figures.
            for run, state in zip(folders, states, strict=False):
                evaluate_run(run, epoch, state, scored_last if epoch == config.num_epochs else scored)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        stacked, seeds = parallel.replicate((stacked, np.array(list(runs), np.int32)), mesh)
        feed = Feed(config, mesh, splits['train'], len(runs), processes.agree(is_resident(config, splits['train'])))
        started = time.monotonic()
        run_epoch = stack.enter_context(feed.epochs(stacked, seeds))
        compiled_in = f'compiled in {time.monotonic() - started:.1f} s'
        log.start(f'Training on {parallel.describe(mesh)}; {_size(config, splits["train"])}; {feed}; {compiled_in}')

        started = time.monotonic()
        in_flight = None  # An epoch's metrics are read while the device trains the next.
        stop = False
        while epoch < config.num_epochs and not stop:
            with interruption.deferred():
                processes.meet()  # The others wait here for the leader's evaluation.
                epoch += 1
                stacked, metrics = run_epoch(stacked)
                if in_flight:
                    log.epoch(*in_flight)
                in_flight = epoch, metrics
                out_of_time = config.max_seconds and time.monotonic() - started >= config.max_seconds
                stop = processes.agree(bool(out_of_time))
                last = stop or epoch == config.num_epochs
                watched = watch and epoch % config.monitor_every_epochs == 0
                milestone = last or epoch in milestones
                saved = milestone or epoch % config.checkpoint_every_epochs == 0
                if watched or saved:
                    log.epoch(*in_flight)
                    in_flight = None
                # After the waiting, in which most signals come.
                told_to_end = processes.any_of(interruption.requested() is not None)
                if told_to_end and in_flight:
                    log.epoch(*in_flight)
                saved = saved or told_to_end
                if watched or saved:
                    states = _unstack(stacked, len(folders))
                if watched:
                    for run, state in zip(folders, states, strict=True):
                        watch_run(run, epoch, state)
                if saved:
                    for saver, state in zip(savers, states, strict=True):
                        saver.save(epoch, state)
                if told_to_end:
                    for saver in savers:
                        saver.wait()
                    processes.meet()
            if told_to_end:
                raise interruption.Interrupted(interruption.requested() or 'a signal to another process')
            if milestone:
                for run, state in zip(folders, states, strict=True):
                    evaluate_run(run, epoch, state, scored_last if last else scored)
        for saver in savers:
            saver.wait()

        chosen = dict.fromkeys(folders, epoch)
        for run, state in zip(folders, states, strict=False):
            if 'validation' in splits:
                chosen[run] = _choose(run, epoch, milestones)
            if chosen[run] != epoch:
                state = checkpoint.restore(run.checkpoints, chosen[run], state)
                evaluate_run(run, chosen[run], state, ['test'])
            checkpoint.save_weights(run, chosen[run], state)
    if folders and epoch < config.num_epochs:
        print(f'Stopped by max_seconds after epoch {epoch} of {config.num_epochs}; the same command goes on')
    return {seed: write_final_figures(run, chosen[run], epoch) for seed, run in runs.items() if run}


def _size(config: ml_collections.ConfigDict, training: Dataset) -> str:
    """Returns the model's size in words: its parameters, and its multiplications of one image's embedding."""
    model = models.make_model(config)
    variables = jax.eval_shape(lambda: models.init(model, jax.random.key(0), training.images))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    multiplications = models.operations(model, variables, training.images.shape[1:])
    return f'{parameters:,} parameters, {multiplications:,} multiplications an image'


def _unstack(stacked: step.TrainState, count: int) -> list[step.TrainState]:
    """Returns host copies: training may go on and overwrite the state."""
    host = jax.tree.map(np.array, stacked)
    return [jax.tree.map(lambda leaf, number=number: leaf[number], host) for number in range(count)]


def write_final_figures(run: RunFolder, epoch: int, last_epoch: int) -> dict[str, float]:
    """Writes metrics.json and returns it: the figures of one epoch, of training up to it, and what tells overfitting.

    Args:
      run: evaluated at both epochs.
      epoch: the chosen one.
      last_epoch: the last one trained; where it is another, its test figures come under 'last/'.
    """
    row = next((row for row in run.read_history() if row['epoch'] == epoch), {})
    evaluations = run.evaluations()
    final = {
        'epoch': epoch,
        'last_epoch': last_epoch,
        **{f'train/{name}': row[name] for name in ('loss', 'accuracy') if name in row},
        **evaluations[epoch],
    }
    if last_epoch != epoch:
        last = evaluations[last_epoch]
        final |= {f'last/{name}': value for name, value in last.items() if name.startswith('test/')}
    scored = [
        number
        for number in run.evaluated_epochs('validation')
        if number <= last_epoch and f'train/{overfitting.criterion(evaluations[number])}' in evaluations[number]
    ]
    if scored:
        criterion = overfitting.criterion(evaluations[scored[0]])
        hits = {
            split: {number: run.read_arrays(number, split)[criterion] for number in scored}
            for split in ('train', 'validation')
        }
        verdict = overfitting.judge(hits['train'], hits['validation'])
        final |= {f'overfitting/{name}': value for name, value in verdict.items()}
    write_json(run.metrics, final)
    return final


def _choose(run: RunFolder, last_epoch: int, milestones: list[int]) -> int:
    """Returns the epoch with the best of the validation figures that choose, the earliest of equals."""
    scores = {
        epoch: figures[f'validation/{overfitting.criterion(figures)}']
        for epoch, figures in run.evaluations().items()
        if epoch == last_epoch or (epoch in milestones and epoch < last_epoch)
    }
    return max(scores, key=lambda epoch: (scores[epoch], -epoch))
