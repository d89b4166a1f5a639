import importlib.util
import json
import pathlib

import pytest

from simclr_cifar import config as config_lib
from simclr_cifar import stored

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))


def changed(config=None, **fields):
    config = config or config_lib.defaults()
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
    mode = '--mode=study ' if path.stem == 'study' else ''
    assert f'python -m simclr_cifar.main {mode}--config=configs/{path.name}' in module.__doc__


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


@pytest.mark.parametrize(
    ('fields', 'said'),
    [
        ({'milestones': (15, 30), 'num_epochs': 20}, r'--config\.milestones.*30 is beyond num_epochs, 20'),
        ({'validation_fraction': 0.0}, r'--config\.validation_fraction.*make it 0\.1'),
        ({'subsets': ()}, r'--config\.subsets.*at least one'),
        ({'subsets': (4, 2.5)}, r'--config\.subsets'),
        ({'subsets': ('',)}, r'--config\.subsets'),
        ({'num_seeds': 0}, r'--config\.num_seeds'),
        ({'num_classes': 4}, r'--config\.subsets'),
    ],
)
def test_a_bad_field_of_a_study_is_named(fields, said):
    with pytest.raises(config_lib.InputError, match=said):
        config_lib.validate(changed(config_lib.study_defaults(), **fields))


def test_a_run_of_a_study_is_a_plain_run():
    study = changed(config_lib.study_defaults(), learning_rate=0.5)
    for subset, classes, num_classes in ((4, '', 4), ('truck,cat', 'truck,cat', 0)):
        run = config_lib.study_run(study, subset, seed=7)
        config_lib.validate(run)
        expected = changed(learning_rate=0.5, validation_fraction=0.1, classes=classes, num_classes=num_classes, seed=7)
        assert run == expected


def test_a_missing_field_is_named():
    config = config_lib.defaults()
    with config.unlocked():
        del config.temperature
    with pytest.raises(config_lib.InputError, match='temperature'):
        config_lib.validate(config)


def test_json_keeps_every_field():
    config = changed(channels=(8, 16), classes='cat,ship')
    assert stored.from_json(json.loads(json.dumps(stored.to_json(config)))) == config
    study = config_lib.study_defaults()
    assert stored.from_json(json.loads(json.dumps(stored.to_json(study)))) == study


def test_the_fingerprint_is_of_what_decides_the_result():
    reference = stored.fingerprint(config_lib.defaults())
    for name, value in config_lib.defaults().items():
        other = value + 'x' if isinstance(value, str) else (*value, 5) if isinstance(value, tuple) else value + 1
        differs = stored.fingerprint(changed(**{name: other})) != reference
        assert differs == (name not in config_lib.OPERATIONAL), name


def test_milestones_end_with_the_last_epoch():
    assert config_lib.milestones(changed(milestones=(30, 15, 75), num_epochs=40)) == [15, 30, 40]
    assert config_lib.milestones(changed(milestones=(15, 40), num_epochs=40)) == [15, 40]
