"""The fields of a run: their defaults and units, their limits, their fingerprint."""

import difflib
import hashlib
import json
import math

import ml_collections


class InputError(Exception):
    """Bad input of the person at the command line: one line that names the flag and the remedy."""


def defaults() -> ml_collections.ConfigDict:
    """Returns the reference configuration, locked: configs change its fields and add none."""
    config = ml_collections.ConfigDict()

    # Data.
    config.dataset = 'cifar10'  # a name in data.DATASETS
    config.classes = ''  # comma-separated names, relabelled in that order; '' leaves it to num_classes
    config.num_classes = 0  # the first so many classes of the dataset; 0: all
    config.validation_fraction = 0.0  # of each class's training images; above 0 it chooses the checkpoint
    config.split_seed = 0  # draws the validation images; apart from seed, so that seeds are compared on the same ones

    # Batches: a batch is groups_per_batch groups of one (anchor, positive) pair per class.
    config.groups_per_batch = 1
    config.batches_per_epoch = 1000
    config.num_epochs = 75

    # Encoder.
    config.encoder = 'average_pooling_cnn'  # a name in models.ENCODERS
    config.channels = (32, 64, 128)  # of the convolutions, in order
    config.embedding_dim = 8

    # Objective.
    config.negatives = 'group'  # 'group': the other classes of the group; 'batch': of the global batch
    config.temperature = 0.2

    # Optimiser: Adam.
    config.learning_rate = 1e-3

    config.seed = 0

    # Milestones are evaluated and checkpointed, and never deleted; those past num_epochs are left out.
    config.milestones = (15, 30, 45, 60, 75)
    config.checkpoint_every_epochs = 5
    config.checkpoints_to_keep = 2  # the newest, beside the milestones
    config.max_seconds = 0.0  # of training, then evaluate and stop; 0: never

    config.eval_batch_size = 200  # images an encoder call
    return config.lock()


def study_defaults() -> ml_collections.ConfigDict:
    """Returns the reference study's configuration, locked: the fields of its runs, and which runs there are."""
    config = defaults().unlock()
    config.validation_fraction = 0.1
    config.subsets = (4, 7, 10)  # of the classes, each as num_classes or as classes gives it
    config.num_seeds = 3  # seed, seed + 1, ..., trained together
    return config.lock()


# These change neither the parameters nor the figures of a run, so a run may go on with others.
OPERATIONAL = ('max_seconds', 'checkpoint_every_epochs', 'checkpoints_to_keep')

_ABOVE_ZERO = math.ulp(0.0)
_LIMITS = {  # field: lowest and highest value; a tuple's elements each
    'num_classes': (0, 2**31 - 1),
    'validation_fraction': (0.0, 0.9),
    'split_seed': (0, 2**31 - 1),
    'num_seeds': (1, 2**16),
    'groups_per_batch': (1, 2**31 - 1),
    'batches_per_epoch': (1, 2**31 - 1),
    'num_epochs': (1, 2**31 - 1),
    'channels': (1, 2**31 - 1),
    'embedding_dim': (1, 2**31 - 1),
    'temperature': (_ABOVE_ZERO, 1e30),
    'learning_rate': (_ABOVE_ZERO, 1e30),
    'seed': (0, 2**31 - 1),
    'milestones': (1, 2**31 - 1),
    'checkpoint_every_epochs': (1, 2**31 - 1),
    'checkpoints_to_keep': (1, 2**31 - 1),
    'max_seconds': (0.0, 1e30),
    'eval_batch_size': (1, 2**31 - 1),
}


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field's presence, type and limits, of a run or, where it has subsets, of a study.

    Raises:
      InputError: naming the field as a flag, its value and what it may be.
    """
    fields = study_defaults() if 'subsets' in config else defaults()
    for name in config:
        if name not in fields:
            raise InputError(unknown_field(name))
    for name, default in fields.items():
        if name not in config:
            raise InputError(f'--config: the field {name} is missing; start from simclr_cifar.config.defaults()')
        value = config[name]
        if type(value) is not type(default):
            expected, given = type(default).__name__, type(value).__name__
            raise InputError(f'--config.{name}={value!r}: must be of type {expected}, not {given}')
        elements = value if isinstance(value, tuple) else (value,)
        if name == 'channels' and not value:
            raise InputError('--config.channels=(): the encoder needs at least one convolution')
        if name == 'subsets':
            _validate_subsets(value)
            continue
        for element in elements:
            if isinstance(value, tuple) and type(element) is not int:
                raise InputError(f'--config.{name}={value!r}: must hold whole numbers only')
            lowest, highest = _LIMITS.get(name, (element, element))
            if not lowest <= element <= highest:
                limit = 'above 0' if lowest == _ABOVE_ZERO else f'at least {lowest}'
                raise InputError(f'--config.{name}={value!r}: must be finite, {limit} and at most {highest:g}')
    if config.negatives not in ('group', 'batch'):
        raise InputError(f"--config.negatives={config.negatives}: must be 'group' or 'batch'")
    if config.batches_per_epoch * config.num_epochs > 2**31 - 1:
        raise InputError('--config.num_epochs: num_epochs x batches_per_epoch must stay below 2**31')
    if 'subsets' in config:
        _validate_study(config)


def _validate_subsets(subsets: tuple) -> None:
    if not subsets:
        raise InputError('--config.subsets=(): a study needs at least one subset of the classes, as (4, 7, 10)')
    for subset in subsets:
        if type(subset) not in (int, str) or not subset:
            raise InputError(
                f"--config.subsets={subsets!r}: each must be a number of classes or their names, as (4, 'truck,cat')"
            )


def _validate_study(config: ml_collections.ConfigDict) -> None:
    if not config.validation_fraction:
        raise InputError(
            '--config.validation_fraction=0.0: a study chooses checkpoints on validation images; make it 0.1'
        )
    beyond = [epoch for epoch in config.milestones if epoch > config.num_epochs]
    if beyond:
        raise InputError(
            f'--config.milestones={config.milestones!r}: {beyond[0]} is beyond num_epochs, {config.num_epochs}; '
            'leave it out, or raise --config.num_epochs'
        )
    if config.classes or config.num_classes:
        raise InputError('--classes, --num_classes: a study takes its classes from --config.subsets')


def study_run(config: ml_collections.ConfigDict, subset: int | str, seed: int) -> ml_collections.ConfigDict:
    """Returns the config of one run of a study, locked."""
    run = defaults().unlock()
    run.update({name: config[name] for name in run})
    run.update(classes=subset if isinstance(subset, str) else '', seed=seed)
    run.num_classes = subset if isinstance(subset, int) else 0
    return run.lock()


def unknown_field(name: str) -> str:
    """Returns the line that says a config has no such field, and which ones come close."""
    fields = list(study_defaults())
    close = difflib.get_close_matches(name, fields)
    hint = f'did you mean {" or ".join(close)}?' if close else f'the fields are {", ".join(fields)}'
    return f'--config.{name}: no such field; {hint}'


def milestones(config: ml_collections.ConfigDict) -> list[int]:
    """Returns the epochs to evaluate at, ascending: the milestones within num_epochs, and the last epoch."""
    return sorted({epoch for epoch in config.milestones if epoch < config.num_epochs} | {config.num_epochs})


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Returns 8 hexadecimal digits of the fields that decide a run's result."""
    decisive = {name: value for name, value in config.items() if name not in OPERATIONAL}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def to_json(config: ml_collections.ConfigDict) -> dict:
    """Returns the config as plain JSON types (tuples become lists)."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def from_json(fields: dict) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` wrote.

    Raises:
      InputError: where a field is missing, unknown, wrongly typed or out of its limits.
    """
    config = ml_collections.ConfigDict(
        {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    )
    validate(config)
    return config.lock()
