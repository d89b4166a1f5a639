"""The study: every subset of the classes, all its seeds in one program, then what their files say together."""

import re

import ml_collections

from simclr_cifar import beginning, data, duplicates, pictures, processes, report, stored, study_report, train
from simclr_cifar import config as config_lib
from simclr_cifar.config import InputError
from simclr_cifar.files import StudyFolder, write_arrays, write_json


def plan(
    config: ml_collections.ConfigDict, data_dir: str | None = None, cache_dir: str | None = None
) -> dict[str, int | str]:
    """Returns what a study trains: the name of each subset's folder to the subset, as config.subsets gives it.

    Raises:
      InputError: as `data.load_splits` and `beginning.require_trainable`; a subset named twice, in whatever words.
    """
    subsets, named = {}, {}
    for subset in config.subsets:
        run = config_lib.study_run(config, subset, config.seed)
        try:
            splits = data.load_splits(run, data_dir, cache_dir)
        except InputError as error:
            raise InputError(f'--config.subsets={config.subsets!r}: {error}') from error
        beginning.require_trainable(run, splits['train'])
        if not splits['train'].has_classes:
            raise InputError(f'--config.subsets={config.subsets!r}: a study compares classes; give two or more')
        class_names = splits['train'].class_names
        other = named.setdefault(frozenset(class_names), subset)
        if other is not subset or list(config.subsets).count(subset) > 1:
            raise InputError(
                f'--config.subsets={config.subsets!r}: {other!r} and {subset!r} are the same classes; leave one out'
            )
        name = f'c{len(class_names)}'
        if isinstance(subset, str):
            name = re.sub('[^a-z0-9]+', '-', '-'.join([name, *class_names]).lower())[:60].strip('-')
        while name in subsets:
            name += '-b'
        subsets[name] = subset
    return subsets


def run_study(
    name: str,
    config: ml_collections.ConfigDict,
    subsets: dict[str, int | str],
    folder: StudyFolder | None,
    data_dir: str | None = None,
    cache_dir: str | None = None,
) -> bool:
    """Trains and reports what is not finished, writes the study's files, and returns whether all is finished now.

    Args:
      name: of the config file.
      config: of a study, validated.
      subsets: what `plan` returned.
      folder: the study's, locked; None in all processes but the leader.
      data_dir, cache_dir: as `data.load`.

    Raises:
      log.TrainingDiverged: as `train.train`.
    """
    seeds, finished = range(config.seed, config.seed + config.num_seeds), True
    if folder:
        described = {'name': name, 'fingerprint': stored.fingerprint(config), 'config': stored.to_json(config)}
        write_json(folder.config, described | {'subsets': list(subsets), 'seeds': list(seeds)})
    for number, (subset_name, subset) in enumerate(subsets.items(), 1):
        runs = {seed: folder and folder.run(subset_name, seed) for seed in seeds}
        seeds_told = f'{len(runs)} seeds' if len(runs) > 1 else '1 seed'
        told = f'Subset {number} of {len(subsets)}, {subset_name}, {seeds_told}'
        splits = data.load_splits(config_lib.study_run(config, subset, config.seed), data_dir, cache_dir)
        configs = {seed: config_lib.study_run(config, subset, seed) for seed in seeds}
        for seed, run in runs.items():
            if run:
                beginning.begin(run, subset_name, configs[seed], splits)
        trained = processes.agree(
            bool(folder and all(beginning.is_finished(run, configs[seed]) for seed, run in runs.items()))
        )
        if folder:
            print(f'{told}: finished before' if trained else told, flush=True)
        if not trained:
            for seed, run in runs.items():
                if run:
                    beginning.require_resumable(run, configs[seed])
            train.train(config_lib.study_run(config, subset, config.seed), splits, runs)
        if folder:
            if not trained or not folder.duplicates(subset_name).exists():
                _find_duplicates(folder, subset_name, splits)
            for seed, run in runs.items():
                if not trained or not run.report.exists():
                    report.write_report(run)
                finished &= beginning.is_finished(run, configs[seed])
    if folder:
        study_report.write_study(folder)
    return finished


def _find_duplicates(folder: StudyFolder, subset_name: str, splits: dict[str, data.Dataset]) -> None:
    test, training = splits['test'], splits['train']
    found = duplicates.near_duplicates(test.images, training.images)
    write_arrays(
        folder.duplicates(subset_name),
        {
            'test': found.test,
            'train': found.train,
            'similarity': found.similarity,
            'test_label': test.labels[found.test],
            'train_label': training.labels[found.train],
            'test_images': pictures.small(test.images[found.test]),
            'train_images': pictures.small(training.images[found.train]),
        },
    )
