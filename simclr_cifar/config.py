"""The fields of a run: their defaults and units, their limits."""

import difflib
import math
import re

import ml_collections

# They begin the name of a dataset that is a folder of images: of a class in each sub-folder, or of none.
FOLDER, IMAGES = 'folder:', 'images:'


class InputError(Exception):
    """Bad input of the person at the command line: one line that names the flag and the remedy."""


class DatasetNotFound(InputError):
    """The dataset is neither on disk nor to be downloaded."""


class RunFailed(Exception):
    """A run cannot go on, through no fault of the command line: one line that says why and what is kept."""


def defaults() -> ml_collections.ConfigDict:
    """Returns the reference configuration, locked: configs change its fields and add none."""
    config = ml_collections.ConfigDict()

    # Data.
    config.dataset = 'cifar10'  # or 'digits', 'folder:PATH', 'images:PATH', or another dataset's name in TFDS
    config.image_size = 0  # pixels, of both sides, which images are scaled to; 0: as they are
    config.classes = ''  # comma-separated names, relabelled in that order; '' leaves it to num_classes
    config.num_classes = 0  # the first so many classes of the dataset; 0: all
    config.validation_fraction = 0.0  # of each class's training images; above 0 it chooses the checkpoint
    config.test_fraction = 0.0  # above 0 so many of them stand in for the test images, which tuning must not see
    config.resident = 'auto'  # 'yes': devices hold all training images; 'no': they are read as needed; or as they fit
    config.split_seed = 0  # draws both; apart from seed, so that seeds are compared on the same images

    # Batches: a batch is groups_per_batch groups of one (anchor, positive) pair per class.
    config.pairs = 'class'  # two images of it; 'views': any image, twice; 'class_views': an image of a class, twice
    config.with_replacement = True  # False: an epoch draws no image twice
    config.groups_per_batch = 1
    config.batches_per_epoch = 1000
    config.num_epochs = 75

    # Augmentation of every image drawn.
    config.augmentation = 'none'  # a name in augment.RECIPES, or names in augment.OPERATIONS, separated by commas
    config.crop_padding = 4  # pixels
    config.crop_smallest_area = 0.08  # of the image's
    config.jitter_strength = 0.5
    config.cutout_size = 8  # pixels

    # Encoder, and the head that makes embeddings of its features.
    config.encoder = 'average_pooling_cnn'  # a name in models.ENCODERS
    config.channels = (32, 64, 128)  # of the convolutions, or of their stages, in order; ResNets have their own
    config.head_channels = ()  # of the head's hidden layers
    config.embedding_dim = 8
    config.head_batch_norm = False  # after each layer of the head
    config.batch_norm_momentum = 0.9  # of the running averages
    config.compute_dtype = 'float32'  # or 'bfloat16', of activations; parameters are float32
    config.representation = 'embedding'  # what is compared after training; or the 'features' before the head

    # Objective.
    config.objective = 'anchor_positive'  # or 'sup_con', 'nt_xent', 'siglip', 'simplex'
    config.negatives = 'group'  # of 'anchor_positive'; 'group': the other classes of it; 'batch': of the global batch
    config.temperature = 0.2
    config.logit_bias = -10.0  # of 'siglip'
    config.label_smoothing = 0.0  # of 'simplex'

    # Optimiser.
    config.optimizer = 'adam'  # or 'sgd', 'lars', 'muon'
    config.learning_rate = 1e-3  # the highest
    config.schedule = 'constant'  # after the warm-up; or 'linear', 'cosine', 'one_cycle'
    config.warmup_share = 0.0  # of all steps
    config.final_learning_rate_share = 0.0  # of learning_rate, where 'linear' and 'cosine' end
    config.momentum = 0.9  # of all but 'adam'
    config.weight_decay = 0.0  # of kernels
    config.adam_learning_rate_share = 0.1  # of learning_rate, for what 'muon' leaves to NAdam
    config.average_decay = 0.0  # of the exponential moving average of the weights; 0: none is kept

    config.seed = 0

    # Milestones are evaluated and checkpointed, and never deleted; those past num_epochs are left out.
    config.milestones = (15, 30, 45, 60, 75)
    config.checkpoint_every_epochs = 5
    config.monitor_every_epochs = 0  # cheap figures of the validation images; 0: never
    config.checkpoints_to_keep = 2  # the newest, beside the milestones
    config.max_seconds = 0.0  # of training, then evaluate and stop; 0: never

    # Evaluation.
    config.flip_averaging = False  # an image's embedding is the mean of its own and its mirror image's
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
OPERATIONAL = ('resident', 'max_seconds', 'checkpoint_every_epochs', 'checkpoints_to_keep', 'monitor_every_epochs')

_ABOVE_ZERO = math.ulp(0.0)
_LIMITS = {  # field: lowest and highest value; a tuple's elements each
    'image_size': (0, 2**10),
    'num_classes': (0, 2**31 - 1),
    'validation_fraction': (0.0, 0.9),
    'test_fraction': (0.0, 0.9),
    'split_seed': (0, 2**31 - 1),
    'num_seeds': (1, 2**16),
    'groups_per_batch': (1, 2**31 - 1),
    'batches_per_epoch': (1, 2**31 - 1),
    'num_epochs': (1, 2**31 - 1),
    'channels': (1, 2**31 - 1),
    'crop_padding': (0, 2**15),
    'crop_smallest_area': (_ABOVE_ZERO, 1.0),
    'jitter_strength': (0.0, 2.5),
    'cutout_size': (1, 2**15),
    'head_channels': (1, 2**31 - 1),
    'embedding_dim': (1, 2**31 - 1),
    'batch_norm_momentum': (0.0, 1.0),
    'temperature': (_ABOVE_ZERO, 1e30),
    'logit_bias': (-1e30, 1e30),
    'label_smoothing': (0.0, 1.0),
    'learning_rate': (_ABOVE_ZERO, 1e30),
    'warmup_share': (0.0, 1.0),
    'final_learning_rate_share': (0.0, 1.0),
    'momentum': (0.0, 0.9999),
    'weight_decay': (0.0, 1e30),
    'adam_learning_rate_share': (_ABOVE_ZERO, 1e30),
    'average_decay': (0.0, 0.99999),
    'seed': (0, 2**31 - 1),
    'milestones': (1, 2**31 - 1),
    'checkpoint_every_epochs': (1, 2**31 - 1),
    'monitor_every_epochs': (0, 2**31 - 1),
    'checkpoints_to_keep': (1, 2**31 - 1),
    'max_seconds': (0.0, 1e30),
    'eval_batch_size': (1, 2**31 - 1),
}

_CHOICES = {
    'resident': ('auto', 'yes', 'no'),
    'pairs': ('class', 'views', 'class_views'),
    'compute_dtype': ('float32', 'bfloat16'),
    'representation': ('embedding', 'features'),
    'objective': ('anchor_positive', 'sup_con', 'nt_xent', 'siglip', 'simplex'),
    'negatives': ('group', 'batch'),
    'optimizer': ('adam', 'sgd', 'lars', 'muon'),
    'schedule': ('constant', 'linear', 'cosine', 'one_cycle'),
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
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise InputError(f'--config.{name}={config[name]}: must be one of {", ".join(choices)}')
    _validate_pairs(config)
    if config.schedule == 'one_cycle' and config.warmup_share == 1:
        raise InputError(
            "--config.warmup_share=1.0: leaves no step for 'one_cycle' to go down in; make it smaller, or choose "
            '--config.schedule=constant'
        )
    if config.monitor_every_epochs and not config.validation_fraction:
        raise InputError(
            f'--config.monitor_every_epochs={config.monitor_every_epochs}: watches validation images; '
            'set --config.validation_fraction'
        )
    if config.batches_per_epoch * config.num_epochs > 2**31 - 1:
        raise InputError('--config.num_epochs: num_epochs x batches_per_epoch must stay below 2**31')
    if 'subsets' in config:
        _validate_study(config)


def _validate_pairs(config: ml_collections.ConfigDict) -> None:
    """Checks that the pairs have something to tell them apart."""
    if config.pairs == 'class':
        return
    if config.augmentation.strip() in ('', 'none'):
        raise InputError(
            f'--config.pairs={config.pairs}: two views of an image are equal without --config.augmentation; '
            "choose one, as 'simclr'"
        )
    if config.pairs == 'views' and config.objective == 'anchor_positive' and config.negatives == 'group':
        raise InputError(
            "--config.negatives=group: a group of 'views' is one pair and has no negatives; choose 'batch'"
        )
    if config.pairs == 'views' and config.objective == 'simplex':
        raise InputError(
            "--config.objective=simplex: 'views' tell it no classes; choose another, or --config.pairs=class"
        )


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


def title(dataset: str) -> str:
    """Returns what a dataset is called where there is little room: of a folder, its last name."""
    if not dataset.startswith((FOLDER, IMAGES)):
        return dataset
    return re.split(r'[\\/]', dataset.partition(':')[2].rstrip('\\/'))[-1]


def unknown_field(name: str) -> str:
    """Returns the line that says a config has no such field, and which ones come close."""
    fields = list(study_defaults())
    close = difflib.get_close_matches(name, fields)
    hint = f'did you mean {" or ".join(close)}?' if close else f'the fields are {", ".join(fields)}'
    return f'--config.{name}: no such field; {hint}'


def milestones(config: ml_collections.ConfigDict) -> list[int]:
    """Returns the epochs to evaluate at, ascending: the milestones within num_epochs, and the last epoch."""
    return sorted({epoch for epoch in config.milestones if epoch < config.num_epochs} | {config.num_epochs})
