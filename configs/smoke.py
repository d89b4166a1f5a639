"""A look at every part in seconds, on the embedded digits: no download, no accelerator.

python -m simclr_cifar.main --config=configs/smoke.py
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.dataset = 'digits'
    config.num_epochs = 4
    config.batches_per_epoch = 250
    config.milestones = (2,)
    config.checkpoint_every_epochs = 1
    return config
