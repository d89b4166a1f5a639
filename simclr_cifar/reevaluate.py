"""Evaluation of a run from its folder alone."""

import ml_collections

from simclr_cifar import beginning, checkpoint, data, evaluate, parallel, report, step, train
from simclr_cifar.config import InputError
from simclr_cifar.files import RunFolder


def reevaluate(
    run: RunFolder,
    config: ml_collections.ConfigDict,
    epoch: int | None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint, writes its figures and the report, and returns the figures.

    Args:
      run: with checkpoints, or with weights.npz.
      config: its own.
      epoch: the checkpoint's; None: the one chosen, or the last, whose figures are then the run's final ones.
      data_dir, cache_dir: as `data.load`.

    Raises:
      InputError: there is nothing to evaluate, not of that epoch, or it is damaged; another process holds the run; the
        images are not those that it is of.
    """
    epochs = checkpoint.saved_epochs(run.checkpoints)
    weights_alone = not epochs and run.weights.exists()
    if weights_alone:
        epochs = [int(run.read_weights()['epoch'])]
    if not epochs:
        raise InputError(f'--workdir={run.path}: holds no checkpoint yet; train first')
    final = run.read_json(run.metrics) if run.metrics.exists() else {}
    evaluated = final.get('epoch', epochs[-1]) if epoch is None else epoch
    if evaluated not in epochs:
        there = ', '.join(map(str, epochs))
        raise InputError(f'--checkpoint={evaluated}: no checkpoint of that epoch; there are {there}')
    splits = data.load_splits(config, data_dir, cache_dir)
    beginning.require_same_images(run, splits)
    like = step.init_state(config, splits['train'].images, config.seed)
    if weights_alone:
        state = checkpoint.read_weights(run, like)
    else:
        state = checkpoint.restore(run.checkpoints, evaluated, like)
    with run.locked():
        scored = ['train', 'validation', 'test'] if 'validation' in splits else ['test']
        evaluation = evaluate.make_evaluate(config, parallel.local_mesh(), splits)(state, scored)
        evaluate.save(run, evaluated, evaluation, splits['train'].class_names)
        if epoch is None:
            train.write_final_figures(run, evaluated, final.get('last_epoch', epochs[-1]))
        report.write_report(run)
    return evaluation.figures
