import importlib.util
import json
import pathlib

import pytest

from simclr_cifar import config as config_lib

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))


def changed(**fields):
    config = config_lib.defaults()
    with config.unlocked():
        for name, value in fields.items():
            with config.ignore_type():
                config[name] = value
    return config


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_its_command(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config_lib.validate(module.get_config())
    assert f'python -m simclr_cifar.main --config=configs/{path.name}' in module.__doc__


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('num_epochs', 0),
        ('batches_per_epoch', 0),
        ('groups_per_batch', -1),
        ('temperature', 0.0),
        ('temperature', -0.2),
        ('temperature', float('nan')),
        ('temperature', float('inf')),
        ('learning_rate', float('inf')),
        ('validation_fraction', 1.0),
        ('channels', ()),
        ('channels', (32, 0)),
        ('milestones', (0,)),
        ('milestones', ('a',)),
        ('negatives', 'all'),
        ('num_epochs', 1.5),
        ('num_epochs', True),
        ('dataset', 3),
        ('max_seconds', -1.0),
        ('num_epoch', 3),
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(config_lib.InputError, match=rf'--config\.{field}\b'):
        config_lib.validate(changed(**{field: value}))


def test_a_missing_field_is_named():
    config = config_lib.defaults()
    with config.unlocked():
        del config.temperature
    with pytest.raises(config_lib.InputError, match='temperature'):
        config_lib.validate(config)


def test_json_keeps_every_field():
    config = changed(channels=(8, 16), classes='cat,ship')
    assert config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config)))) == config


def test_the_fingerprint_is_of_what_decides_the_result():
    reference = config_lib.fingerprint(config_lib.defaults())
    for name, value in config_lib.defaults().items():
        other = value + 'x' if isinstance(value, str) else (*value, 5) if isinstance(value, tuple) else value + 1
        differs = config_lib.fingerprint(changed(**{name: other})) != reference
        assert differs == (name not in config_lib.OPERATIONAL), name


def test_milestones_end_with_the_last_epoch():
    assert config_lib.milestones(changed(milestones=(30, 15, 75), num_epochs=40)) == [15, 30, 40]
    assert config_lib.milestones(changed(milestones=(15, 40), num_epochs=40)) == [15, 40]
