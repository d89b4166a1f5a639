"""One clear line for every bad input, and nothing left behind."""

import pytest
from test_main import assert_refused, run, snapshot

CONFIG_FILES = {
    'without.py': 'x = 1\n',
    'syntax.py': 'def get_config(:\n',
    'imports.py': 'import no_such_module\n',
    'raises.py': 'def get_config():\n    raise RuntimeError("no")\n',
    'number.py': 'def get_config():\n    return 3\n',
    'unknown.py': (
        'from simclr_cifar import config\ndef get_config():\n    c = config.defaults()\n'
        '    c.num_epoch = 3\n    return c\n'
    ),
    'typed.py': (
        'from simclr_cifar import config\ndef get_config():\n    c = config.defaults()\n'
        "    c.num_epochs = 'ten'\n    return c\n"
    ),
    'missing.py': 'import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n',
}
SMOKE = '--config=configs/smoke.py'
STUDY = ['--mode=study', '--config=configs/study.py', '--config.dataset=digits']


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        ([], '--config'),
        (['--config=FOLDER/nowhere.py'], '--config'),
        (['--config='], '--config'),
        (['--config=FOLDER'], '--config'),
        (['--config=FOLDER/without.py'], 'get_config'),
        (['--config=FOLDER/syntax.py'], 'SyntaxError'),
        (['--config=FOLDER/imports.py'], 'no_such_module'),
        (['--config=FOLDER/raises.py'], 'RuntimeError'),
        (['--config=FOLDER/number.py'], 'ConfigDict'),
        (['--config=FOLDER/unknown.py'], 'num_epoch'),
        (['--config=FOLDER/typed.py'], 'num_epochs'),
        (['--config=FOLDER/missing.py'], 'is missing'),
        ([SMOKE, '--config.num_epoch=3'], '--config.num_epoch: no such field; did you mean num_epochs?'),
        ([SMOKE, '--config.num_epochs=ten'], '--config.num_epochs'),
        ([SMOKE, '--config.num_epochs=1.5'], '--config.num_epochs'),
        ([SMOKE, '--config.num_epochs=0'], '--config.num_epochs=0: must be'),
        ([SMOKE, '--config.batches_per_epoch=0'], '--config.batches_per_epoch'),
        ([SMOKE, '--config.groups_per_batch=-1'], '--config.groups_per_batch'),
        ([SMOKE, '--config.schedule=one_cycle', '--config.warmup_share=1.0'], '--config.warmup_share=1.0: leaves no'),
        *(
            ([SMOKE, f'--{flag}={address}/x'], f"--{flag}={address}/x: '{address}/x' is an address")
            for flag, address in (('workdir', 'gs://bucket'), ('data_dir', 's3://b'), ('cache_dir', 'hdfs://host'))
        ),
        ([SMOKE, '--config.temperature=0'], '--config.temperature'),
        ([SMOKE, '--config.temperature=nan'], '--config.temperature'),
        ([SMOKE, '--config.temperature=inf'], '--config.temperature'),
        ([SMOKE, '--config.encoder=cnn'], '--config.encoder=cnn: unknown encoder'),
        (
            [SMOKE, '--config.encoder=whitened_cnn', '--config.channels=(8,8,8,8,8,8)'],
            'needs images of 64 pixels a side',
        ),
        ([SMOKE, '--config.objective=triplet'], '--config.objective=triplet: must be one of'),
        ([SMOKE, '--config.optimizer=adagrad'], '--config.optimizer=adagrad: must be one of'),
        ([SMOKE, '--config.augmentation=flip,flap'], "there is no 'flap'"),
        ([SMOKE, '--config.pairs=views'], 'two views of an image are equal without --config.augmentation'),
        ([SMOKE, '--config.pairs=views', '--config.augmentation='], 'are equal without --config.augmentation'),
        (
            [SMOKE, '--config.pairs=views', '--config.augmentation=simclr'],
            "--config.negatives=group: a group of 'views'",
        ),
        (
            [SMOKE, '--config.pairs=views', '--config.augmentation=simclr', '--config.objective=simplex'],
            "'views' tell it no classes",
        ),
        ([SMOKE, '--config.objective=simplex'], '--config.embedding_dim=8: the simplex of 10 classes'),
        ([SMOKE, '--config.with_replacement=False'], '250 batches draw 500 images of a class, without replacement'),
        ([SMOKE, '--config.augmentation=pad_and_crop', '--config.crop_padding=32'], '--config.crop_padding=32'),
        ([SMOKE, '--config.monitor_every_epochs=1'], 'set --config.validation_fraction'),
        ([SMOKE, '--config.momentum=1'], '--config.momentum'),
        ([SMOKE, '--config.dataset=mnist'], '--config.dataset=mnist: --data_dir='),
        ([SMOKE, '--config.dataset=MNIST'], '--config.dataset=MNIST: unknown dataset'),
        ([SMOKE, '--config.dataset=folder:nowhere'], '/nowhere: there is no such folder'),
        ([SMOKE, '--config.resident=maybe'], '--config.resident=maybe: must be one of auto, yes, no'),
        ([SMOKE, '--classes=one,lion'], "no class 'lion'"),
        ([SMOKE, '--classes=one,two,one'], "'one' is named twice"),
        ([SMOKE, '--classes=one'], 'at least 2'),
        ([SMOKE, '--num_classes=1'], 'at least 2'),
        ([SMOKE, '--num_classes=11'], '--num_classes=11'),
        ([SMOKE, '--num_classes=ten'], '--num_classes'),
        ([SMOKE, '--num_classes=4', '--classes=one,two'], 'one of the two'),
        ([SMOKE, '--config.validation_fraction=0.001'], 'validation image'),
        ([SMOKE, '--mode=fly'], '--mode'),
        ([SMOKE, '--mode=study'], 'the config of a single run'),
        ([STUDY[1]], 'add --mode=study'),
        ([*STUDY, '--config.num_epochs=60'], '75 is beyond num_epochs, 60'),
        ([*STUDY, '--config.validation_fraction=0'], '--config.validation_fraction'),
        ([*STUDY, '--config.subsets=4,4'], '4 and 4 are the same classes'),
        ([*STUDY, "--config.subsets=('one,two','two,one')"], 'are the same classes'),
        ([*STUDY, "--config.subsets=('one,lion',)"], "no class 'lion'"),
        ([*STUDY, '--config.subsets=11,'], 'only 10 classes'),
        ([*STUDY, '--config.num_seeds=0'], '--config.num_seeds'),
        ([*STUDY, '--config.validation_fraction=0.001'], '0 validation image(s)'),
        ([*STUDY, '--num_classes=4'], '--config.subsets'),
        ([SMOKE, '--no_such_flag'], 'no_such_flag'),
        ([SMOKE, 'positional'], 'positional'),
        (['--config=configs/c4.py', '--data_dir=FOLDER/nowhere'], '--data_dir=FOLDER/nowhere'),
        (['--config=configs/c4.py', '--data_dir=FOLDER'], 'holds no cifar10'),
        (['--mode=eval'], '--workdir'),
        (['--mode=eval', '--workdir=FOLDER/nowhere'], 'no such folder'),
        (['--mode=eval', '--workdir=FOLDER'], 'config.json'),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(flags, said, tmp_path):
    for name, content in CONFIG_FILES.items():
        (tmp_path / name).write_text(content)
    before = snapshot(tmp_path)
    flags = [flag.replace('FOLDER', str(tmp_path)) for flag in flags]
    if '--mode=eval' not in flags:
        flags.append(f'--workdir={tmp_path / "run"}')
    result = run(*flags, environment={'PYTHONDONTWRITEBYTECODE': '1'})
    assert_refused(result, said.replace('FOLDER', str(tmp_path)))
    assert snapshot(tmp_path) == before
    assert not (tmp_path / 'run').exists()
