"""A config as it is stored: its fingerprint, its JSON, and what one that an older version stored means now."""

import dataclasses
import hashlib
import json
from collections.abc import Callable

import ml_collections

from simclr_cifar import config as config_lib
from simclr_cifar import folders
from simclr_cifar.config import InputError
from simclr_cifar.files import Folder

FORMAT = 2  # of config.json; those of format 1 do not tell theirs
# Old names to new ones, wherever they are stored: of config fields and in the trees of checkpoints.
RENAMED: dict[str, str] = {}
# Fields that came after format 1. They stand in a fingerprint only where they differ from their default, so that the
# folders of older runs keep their names.
ADDED = ()


@dataclasses.dataclass(frozen=True)
class Change:
    """What a setting meant before a format, and no longer means.

    Attributes:
      format: the first of the new meaning.
      what: for a person, after 'since then'.
      concerns: from a config to whether it uses the setting.
      forward_pass: whether trained weights give other embeddings, too.
    """

    format: int
    what: str
    concerns: Callable[[ml_collections.ConfigDict], bool]
    forward_pass: bool = False


def _crops(config: ml_collections.ConfigDict) -> bool:
    return not {'simclr', 'random_resized_crop'}.isdisjoint(name.strip() for name in config.augmentation.split(','))


_CHANGES = (
    Change(
        2,
        'ResNets pad strided convolutions at both edges',
        lambda config: config.encoder in ('resnet18', 'resnet50'),
        forward_pass=True,
    ),
    Change(2, 'random_resized_crop draws a part that does not fit again', _crops),
    Change(
        2,
        'schedules end at the last step, not one after it',
        lambda config: config.schedule in ('linear', 'cosine', 'one_cycle'),
    ),
)


def renamed(tree: dict) -> dict:
    """Returns a tree of dictionaries with the names of today."""
    return {
        RENAMED.get(name, name): renamed(value) if isinstance(value, dict) else value for name, value in tree.items()
    }


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Returns 8 hexadecimal digits of the fields that decide a run's result, the same in every version."""
    before = {new: old for old, new in RENAMED.items()}
    defaults = config_lib.study_defaults()
    decisive = {
        before.get(name, name): value
        for name, value in config.items()
        if name not in config_lib.OPERATIONAL and not (name in ADDED and value == defaults[name])
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]


def to_json(config: ml_collections.ConfigDict) -> dict:
    """Returns the config as plain JSON types (tuples become lists)."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def from_json(fields: dict) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` wrote, perhaps in an older version: fields that it lacks have their defaults.

    Raises:
      InputError: where a field is unknown, wrongly typed or out of its limits.
    """
    fields = renamed(fields)
    defaults = config_lib.study_defaults() if 'subsets' in fields else config_lib.defaults()
    for name in fields:
        if name not in defaults:  # Some are no names that a ConfigDict takes.
            raise InputError(config_lib.unknown_field(name))
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    config = ml_collections.ConfigDict(dict(defaults.items()) | fields)
    config_lib.validate(config)
    return config.lock()


def require_same(folder: Folder, config: ml_collections.ConfigDict) -> None:
    """Checks that a folder, where it holds a run or a study, was begun with the config.

    Raises:
      InputError: it was begun with another.
    """
    if not folder.config.exists():
        return
    before, now = renamed(folder.read_config()), to_json(config)
    kind = 'a study' if 'subsets' in before else 'a run'
    if ('subsets' in before) == ('subsets' in now):
        defaults = config_lib.study_defaults() if 'subsets' in now else config_lib.defaults()
        before = to_json(defaults) | before
        before['dataset'] = folders.absolute_of_run(str(before['dataset']), folder.path)
    differing = [
        f'{name} was {before.get(name)!r} and is {now.get(name)!r}'
        for name in sorted(before.keys() | now.keys())
        if name not in config_lib.OPERATIONAL and before.get(name) != now.get(name)
    ]
    if differing:
        raise InputError(
            f'{folder.flag}={folder.path}: holds {kind} of another config ({"; ".join(differing)}); '
            'choose another folder, or the config that it was started with'
        )


def require_same_meaning(folder: Folder, config: ml_collections.ConfigDict, resumed: bool) -> None:
    """Checks that a stored config still means what it meant when its folder was begun.

    Args:
      folder: of the run.
      config: its own.
      resumed: whether the run is to be trained on; if not, its weights are used, and only what changes the encoder's
        forward pass counts.

    Raises:
      InputError: it means something else now, or a newer version wrote it.
    """
    described = folder.read_json(folder.config)
    stored = described.get('format', 1)
    if type(stored) is not int or not 1 <= stored <= FORMAT:
        raise InputError(
            f'{folder.flag}={folder.path}: {folder.config.name} has the format {stored!r}, and this version of '
            f'simclr_cifar reads 1 to {FORMAT}; update simclr_cifar'
        )
    for change in _CHANGES:
        if stored < change.format and change.concerns(config) and (resumed or change.forward_pass):
            remedy = 'choose another folder to train it anew' if resumed else 'train it anew'
            version = f', or use the version that it was begun with (commit {described.get("git_commit", "unknown")})'
            raise InputError(
                f'{folder.flag}={folder.path}: cannot be {"resumed" if resumed else "used"}, as it was begun by an '
                f'older version, and since then {change.what}; {remedy}{version}'
            )
