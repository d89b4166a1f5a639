"""How many images of each class every split gets, and what to do if that is too few of some class."""

import itertools
import shlex

import ml_collections
import numpy as np

from simclr_cifar.config import FOLDER

TEST_FRACTION = 0.2  # of the images of a dataset that has none for testing
PAIR = 2  # images that a class needs in every split: one is compared with another

_FRACTIONS = tuple(step / 20 for step in range(1, 11))  # that are suggested in place of ones that leave too few
_LONGEST_FLAG = 500  # characters of one that is suggested
_MOST_NEEDED = 10_000  # images of a class
_MOST_NAMED = 10  # classes


def carved(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Returns how many images of each class, int [C], a fraction of so many is, int [C]."""
    return np.round(fraction * counts).astype(int)


def enough(train: np.ndarray, test: np.ndarray | None, test_fraction: float, validation_fraction: float) -> np.ndarray:
    """Returns which classes have a pair of images in every split, bool [C].

    Args:
      train, test: how many images each class has before any are carved off, int [C]; None: there is no test split.
      test_fraction, validation_fraction: as of the config.
    """
    if test_fraction or test is None:
        test = carved(train, test_fraction or TEST_FRACTION)
        train = train - test
    splits = [train, test]
    if validation_fraction:
        validation = carved(train, validation_fraction)
        splits = [train - validation, test, validation]
    return np.all(np.stack(splits) >= PAIR, axis=0)


def remedy(
    config: ml_collections.ConfigDict, class_names: tuple[str, ...], train: np.ndarray, test: np.ndarray | None
) -> str:
    """Returns what to do if classes have too few images, in words; every suggestion gives all of them enough.

    Args:
      config: the run's.
      class_names: of the classes that it chooses.
      train, test: as of `enough`.
    """
    now = config.test_fraction, config.validation_fraction
    fits = dict(zip(class_names, enough(train, test, *now), strict=True))
    few = [name for name in class_names if not fits[name]]
    it = 'it' if len(few) == 1 else 'them'
    suggested = [_leave_out(config, [name for name in class_names if fits[name]], it)]
    fractions = _nearest_fractions(train, test, *now)
    if fractions:
        changed = zip(('test_fraction', 'validation_fraction'), fractions, now, strict=True)
        flags = [f'--config.{name}={value:g}' for name, value, before in changed if value != before]
        suggested.append(f'set {" ".join(flags)}')
    needed = None
    if test is None or config.test_fraction:  # All splits are carved from the training images.
        fitting = (count for count in range(2 * PAIR, _MOST_NEEDED) if enough(np.array([count]), None, *now)[0])
        needed = next(fitting, None)
    suggested.append(f'add to {it}' + (f' until there are {needed} images of each class' if needed else ''))
    named = f'{", ".join(map(repr, few[:_MOST_NAMED]))}{", ..." if len(few) > _MOST_NAMED else ""}'
    too_few = f'{len(few)} classes have too few ({named}); ' if len(few) > 1 else ''
    return too_few + ', or '.join(filter(None, suggested))


def _leave_out(config: ml_collections.ConfigDict, usable: list[str], it: str) -> str:
    """Returns how to go on with the usable classes alone; '': they are too few."""
    if len(usable) < (1 if config.pairs == 'views' else 2):
        return ''
    flag = shlex.quote(f'--classes={",".join(usable)}')
    if len(flag) > _LONGEST_FLAG or any(',' in name or name != name.strip() for name in usable):
        return f'leave {it} out' + (' by moving the folder elsewhere' if config.dataset.startswith(FOLDER) else '')
    instead = f' in place of --num_classes={config.num_classes}' if config.num_classes else ''
    return f'leave {it} out with {flag}{instead} (of a study, in --config.subsets)'


def _nearest_fractions(
    train: np.ndarray, test: np.ndarray | None, test_fraction: float, validation_fraction: float
) -> tuple[float, float] | None:
    """Returns the (test_fraction, validation_fraction) nearest to these that leave every class enough, if any do."""
    of_test = test_fraction if test is not None else test_fraction or TEST_FRACTION
    of_validation = [*_FRACTIONS, validation_fraction] if validation_fraction else [0.0]
    candidates = itertools.product([*_FRACTIONS, test_fraction], of_validation)

    def distance(fractions):
        return abs((fractions[0] or of_test) - of_test) + abs(fractions[1] - validation_fraction)

    fitting = [fractions for fractions in candidates if np.all(enough(train, test, *fractions))]
    return min(fitting, key=distance) if fitting else None
