"""The command line: flags, dispatch, one-line errors.

python -m simclr_cifar.main --config=configs/c10.py
python -m simclr_cifar.main --mode=eval --workdir=runs/c10-1a2b3c4d
python -m simclr_cifar.main --mode=study --config=configs/study.py
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from simclr_cifar import commands, compiled, files, folders, interruption, stored, streams
from simclr_cifar import config as config_lib
from simclr_cifar.config import DatasetNotFound, InputError, RunFailed

# JAX and what imports it are imported by the modes, so that --help and most bad input are answered at once.

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file with get_config(); any field can be set, as in --config.num_epochs=15.'
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'eval', 'study', 'prepare', 'doctor'],
    'train: train, evaluate and report, going on where the workdir was left. eval: evaluate a checkpoint of --workdir '
    'and report. study: train every subset and seed of a study and compare them, going on likewise. prepare: only make '
    'sure that the data is there, downloading it where needed; exit status 3 where it cannot be had. doctor: tell in '
    'under a minute whether this machine, or all of a cluster, is fit for the config; exit status 1 where it is not.',
)


class _PathParser(flags.ArgumentParser):
    """A path on this machine; raises ValueError for another's."""

    def parse(self, argument: str) -> str:
        return commands.local_path(argument)


def _define_path(name: str, meaning: str) -> flags.FlagHolder:
    return flags.DEFINE(_PathParser(), name, None, meaning, serializer=flags.ArgumentSerializer())


_WORKDIR = _define_path('workdir', "The run's folder; default: runs/<config name>-<fingerprint>.")
_CHECKPOINT = flags.DEFINE_integer(
    'checkpoint', None, 'eval: the epoch to evaluate; default: the one chosen, or the last.'
)
_CLASSES = flags.DEFINE_string('classes', None, 'Comma-separated class names, in any order; sets --config.classes.')
_NUM_CLASSES = flags.DEFINE_integer('num_classes', None, "The dataset's first so many; sets --config.num_classes.")
_DATA_DIR = _define_path('data_dir', "TFDS's data folder; default: TFDS_DATA_DIR, else TFDS's own default.")
_CACHE_DIR = _define_path('cache_dir', 'For decoded images and compiled programs; default: ~/.cache/simclr_cifar.')
_STOPPED_STATUS = flags.DEFINE_integer(
    'stopped_status',
    0,
    'Where a signal or max_seconds stopped a run that is to go on; as 75, for engines that take 0 for its end.',
    *(0, 255),
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, where several train together; default: as Slurm or its like say.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator: how many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator: which of them this is, from 0.')
_PEER_TIMEOUT = flags.DEFINE_float(
    'peer_timeout', 60.0, 'Seconds after which a process that the others do not hear of is lost, and they end.', 5.0
)

_EXIT_FAILED, _EXIT_NO_DATA = 1, 3


def main(argv: list[str]) -> int:
    """Runs the mode and returns its exit status."""
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)
    try:
        if len(argv) > 1:
            raise InputError(f'{argv[1]}: flags only, as --name=value')
        compiled.keep(_CACHE_DIR.value)
        interruption.handle()
        return _MODES[_MODE.value]()
    except InputError as error:
        return commands.fail(error, commands.BAD_INPUT)
    except RunFailed as error:
        return commands.fail(error, _EXIT_FAILED)
    except interruption.Interrupted as error:
        if _MODE.value not in ('train', 'study'):
            return commands.fail(f'stopped by {error}', _EXIT_FAILED)
        print(f'Stopped by {error}; the same command goes on from the newest checkpoint')
        return _STOPPED_STATUS.value
    except Exception as error:
        if _is_full_disk(error):
            where = f' ({error.filename})' if isinstance(error, OSError) and error.filename else ''
            return commands.fail(
                f'--workdir: the disk is full{where}; what was finished is kept; free some space and run the same '
                'command again, or choose another --workdir',
                commands.BAD_INPUT,
            )
        raise


def _train() -> int:
    config = _config()
    if 'subsets' in config:
        raise InputError("--config: the config of a study; add --mode=study, or give a single run's, as configs/c10.py")
    from simclr_cifar import beginning, data, processes, report, train

    with processes.together(*_together()), contextlib.ExitStack() as stack:
        splits = data.load_splits(config, _DATA_DIR.value, _CACHE_DIR.value)
        beginning.require_trainable(config, splits['train'])  # Refused before anything is written.
        run = files.RunFolder(_WORKDIR.value or _default_workdir(config)) if processes.is_leader() else None
        finished = False
        if run:
            stored.require_same(run, config)
            finished = run.config.exists() and beginning.is_finished(run, config)
            if finished:
                beginning.require_same_images(run, splits)
            else:
                beginning.require_free(run)  # Before the lock's file lies in it.
                stack.enter_context(run.locked())
                beginning.begin(run, _name(), config, splits)
                beginning.require_resumable(run, config)
        finished = processes.agree(finished)
        if not finished:
            train.train(config, splits, {config.seed: run})
        if not run:
            return 0
        figures = run.read_json(run.metrics)
        # A killed process may have left a finished run without its report; one that was handed on has no evaluation.
        if not finished or (not run.report.exists() and run.evaluation(figures['epoch']).exists()):
            report.write_report(run)
        if finished:
            print(f'Finished before: {run.path} holds all {config.num_epochs} epochs, so nothing was trained')
        _tell(run, figures)
    return 0 if figures['last_epoch'] == config.num_epochs else _STOPPED_STATUS.value


def _study() -> int:
    config = _config()
    if 'subsets' not in config:
        raise InputError(
            "--config: the config of a single run; a study's starts from simclr_cifar.config.study_defaults(), "
            'as configs/study.py'
        )
    from simclr_cifar import beginning, processes, study

    where = _DATA_DIR.value, _CACHE_DIR.value
    with processes.together(*_together()):
        plan = study.plan(config, *where)
        if not processes.is_leader():
            study.run_study(_name(), config, plan, None, *where)
            return 0
        folder = files.StudyFolder(_WORKDIR.value or _default_workdir(config))
        stored.require_same(folder, config)
        beginning.require_free(folder)
        with folder.locked():
            finished = study.run_study(_name(), config, plan, folder, *where)
        print(folder.text.read_text())
        print(f'Study: {folder.page}')
    return 0 if finished else _STOPPED_STATUS.value


def _together() -> tuple:
    return _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _PEER_TIMEOUT.value


def _evaluate() -> int:
    if not _WORKDIR.value and not _CONFIG.value:
        raise InputError('--mode=eval: give the run with --workdir')
    run = files.RunFolder(_WORKDIR.value or _default_workdir(_config()))
    if not run.path.is_dir():
        raise InputError(f'--workdir={run.path}: there is no such folder; give the folder of a run')
    if _CONFIG.value:
        stored.require_same(run, _config())
    elif _CLASSES.value or _NUM_CLASSES.value is not None:
        raise InputError('--classes, --num_classes: a run is evaluated on the classes that it was trained on')
    fields = run.read_config()
    if 'subsets' in fields:
        raise InputError(f'--workdir={run.path}: holds a study; give the folder of one of its runs, as c4/seed_0')
    config = stored.from_json(fields)
    with config.unlocked():
        config.dataset = folders.absolute_of_run(config.dataset, run.path)
    from simclr_cifar import reevaluate

    figures = reevaluate.reevaluate(run, config, _CHECKPOINT.value, _DATA_DIR.value, _CACHE_DIR.value)
    _tell(run, figures)
    return 0


def _prepare() -> int:
    config = _config()
    from simclr_cifar import data

    try:
        splits = data.load_splits(config, _DATA_DIR.value, _CACHE_DIR.value)
    except DatasetNotFound as error:
        print(error)  # On standard output: for scripts that know another way.
        return _EXIT_NO_DATA
    sizes = ', '.join(f'{len(dataset.labels):,} {split}' for split, dataset in splits.items())
    print(f'{config.dataset}: {sizes} images of {", ".join(splits["train"].class_names)}')
    return 0


def _doctor() -> int:
    config = _config()
    from simclr_cifar import doctor, processes

    workdir = pathlib.Path(_WORKDIR.value or _default_workdir(config))
    with processes.together(*_together()):
        well = doctor.examine(config, _DATA_DIR.value, _CACHE_DIR.value, workdir)
    return 0 if well else _EXIT_FAILED


def _config():
    """Returns the config of --config with the class flags in it, validated."""
    config = _CONFIG.value
    if config is None:
        raise InputError('--config: give a config file, as in --config=configs/c10.py')
    if not hasattr(config, 'items'):
        raise InputError(f'--config: get_config() must return a ConfigDict, not {type(config).__name__}')
    with config.unlocked():
        if _CLASSES.value is not None or _NUM_CLASSES.value is not None:
            config.update(classes=_CLASSES.value or '', num_classes=_NUM_CLASSES.value or 0)
    config_lib.validate(config)
    config.dataset = folders.absolute(_given_dataset())
    return config


@functools.cache
def _given_dataset() -> str:
    """Returns the dataset as it was given: its path may be one from the current directory."""
    return _CONFIG.value.dataset


def _name() -> str:
    return pathlib.Path(flags.FLAGS['config'].config_filename).stem


def _default_workdir(config) -> pathlib.Path:
    # Earlier versions named it by the dataset's path as it was given.
    earlier = config.copy_and_resolve_references()
    earlier.dataset = _given_dataset()
    before, now = _workdir_of(earlier), _workdir_of(config)
    return before if before.is_dir() and not now.is_dir() else now


def _workdir_of(config) -> pathlib.Path:
    # The dataset's name where it is not the one that this project is named after.
    parts = [_name()] + ([config_lib.title(config.dataset)] if config.dataset != 'cifar10' else [])
    name = re.sub('[^\\w.-]+', '-', '-'.join([*parts, stored.fingerprint(config)]))
    return pathlib.Path('runs') / name


def _tell(run: files.RunFolder, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        print(f'{name:32} {value:.6g}')
    if run.report.exists():
        print(f'Report: {run.report}')


def _is_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
            return True  # As TensorStore says it.
        error = error.__cause__ or error.__context__
    return False


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; answers bad ones in one line and ends the process."""
    fields = config_lib.study_defaults()
    argv = [re.sub('^(--?config=)(~.*)', lambda match: match[1] + os.path.expanduser(match[2]), part) for part in argv]
    try:
        for argument in argv[1:]:
            name = argument.partition('=')[0].lstrip('-')
            if name.startswith('config.') and name.removeprefix('config.') not in fields:
                raise InputError(config_lib.unknown_field(name.removeprefix('config.')))
        remaining = flags.FLAGS(argv)
        if flags.FLAGS['config'].present:
            hasattr(_CONFIG.value, 'items')  # Raises what opening the file raised, kept until its first use.
        return remaining
    except InputError as error:
        sys.exit(commands.fail(error, commands.BAD_INPUT))
    except flags.Error as error:
        sys.exit(commands.fail(f'{error}; --help lists the flags', commands.BAD_INPUT))
    except Exception as error:  # The config file's own.
        sys.exit(
            commands.fail(
                f'--config: {type(error).__name__}: {error}; give a file with get_config()', commands.BAD_INPUT
            )
        )


_MODES = {'train': _train, 'eval': _evaluate, 'study': _study, 'prepare': _prepare, 'doctor': _doctor}

if __name__ == '__main__':
    streams.outlast()
    app.run(main, flags_parser=_parse_flags)
