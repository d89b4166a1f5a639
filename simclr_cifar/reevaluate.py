"""Evaluation of a run from its folder alone."""

import contextlib

import ml_collections

from simclr_cifar import beginning, checkpoint, data, evaluate, parallel, report, step, stored, train
from simclr_cifar.files import NotWritable, RunFolder


def reevaluate(
    run: RunFolder,
    config: ml_collections.ConfigDict,
    epoch: int | None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint, writes its figures and the report where the folder can be written, returns the figures.

    Args:
      run: with checkpoints, or with weights.npz.
      config: its own.
      epoch: the checkpoint's; None: the one chosen, or the last, whose figures are then the run's final ones.
      data_dir, cache_dir: as `data.load`.

    Raises:
      InputError: there is nothing to evaluate, not of that epoch, or it is damaged; another process holds the run; the
        images are not those that it is of.
    """
    stored.require_same_meaning(run, config, resumed=False)
    evaluated = checkpoint.evaluated_epoch(run, epoch)
    splits = data.load_splits(config, data_dir, cache_dir)
    beginning.require_same_images(run, splits)
    like = step.init_state(config, splits['train'].images, config.seed)
    state = checkpoint.read_evaluated(run, evaluated, like)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run.locked())
            reason = ''
        except NotWritable as error:
            reason = error.reason
        scored = ['train', 'validation', 'test'] if 'validation' in splits else ['test']
        evaluation = evaluate.make_evaluate(config, parallel.local_mesh(), splits)(state, scored)
        if reason:
            print(f'{run.flag}={run.path}: cannot be written ({reason}), so nothing was saved')
            return evaluation.figures
        weights = checkpoint.weights_digest(state)
        evaluate.save(run, evaluated, evaluation, splits['train'].class_names, weights)
        if epoch is None:
            final = run.read_json(run.metrics) if run.metrics.exists() else {}
            train.write_final_figures(run, evaluated, final.get('last_epoch', evaluated))
        report.write_report(run)
    return evaluation.figures
