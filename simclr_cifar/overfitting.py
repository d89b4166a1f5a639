"""Whether a run overfitted: a verdict computed from its images' figures, with bootstrap intervals."""

import numpy as np

_CRITERIA = ('precision_at_10', 'view_accuracy')  # of images with classes, and of those without
_RESAMPLES = 2000
_CONFIDENCE = 0.95


def criterion(figures: dict[str, float]) -> str:
    """Returns which figure of the validation images chooses a checkpoint and tells overfitting.

    Args:
      figures: '<split>/<metric>' to value, the validation images' among them.
    """
    return next(name for name in _CRITERIA if f'validation/{name}' in figures)


def judge(train: dict[int, np.ndarray], validation: dict[int, np.ndarray]) -> dict[str, float]:
    """Returns what tells overfitting, from the criterion's values of the same images at several epochs.

    A run overfits where the validation images' mean falls from its peak to the last epoch by more than chance. The gap
    is the training sample's mean less the validation images'. Every quantity comes with the bounds of its 95 %
    percentile bootstrap interval over images, `<name>_low` and `<name>_high`; images are drawn once for both epochs
    of a difference. The peak being the highest of several noisy means, its fall is overrated a little; the fall on
    test images between the same epochs is not.

    Args:
      train: epoch to float [N], of the same N training images at every epoch.
      validation: epoch to float [M], of the same M validation images at the same epochs.

    Returns:
      peak_epoch (the earliest of equals) and last_epoch; gap_at_peak and gap_at_last; widening (of the gap, from the
      peak to the last epoch); fall (of the validation mean); seen: 1 where fall_low is above 0, else 0.
    """
    means = {epoch: np.mean(values, dtype=np.float64) for epoch, values in validation.items()}
    peak, last = max(means, key=lambda epoch: (means[epoch], -epoch)), max(means)
    verdict = {'peak_epoch': peak, 'last_epoch': last}
    verdict |= _interval('gap_at_peak', train[peak], validation[peak])
    verdict |= _interval('gap_at_last', train[last], validation[last])
    verdict |= _interval('widening', train[last] - train[peak], validation[last] - validation[peak])
    verdict |= _interval('fall', validation[peak] - validation[last])
    return verdict | {'seen': int(verdict['fall_low'] > 0)}


def _interval(name: str, values: np.ndarray, less: np.ndarray | None = None) -> dict[str, float]:
    """Returns the mean of values, less that of others drawn apart from them, and its interval."""
    from scipy import stats  # Most of a second to import, which only a finished run needs.

    samples = [np.asarray(each, np.float64) for each in (values, less) if each is not None]
    mean = float(samples[0].mean() - sum(sample.mean() for sample in samples[1:]))
    if all(np.ptp(sample) == 0 for sample in samples):  # As where the peak is the last epoch.
        return {name: mean, f'{name}_low': mean, f'{name}_high': mean}

    def statistic(*resampled, axis):
        return resampled[0].mean(axis=axis) - sum(sample.mean(axis=axis) for sample in resampled[1:])

    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        batch=100,
        confidence_level=_CONFIDENCE,
        method='percentile',
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {name: mean, f'{name}_low': float(interval.low), f'{name}_high': float(interval.high)}
