"""The reference study's 4 classes: airplane, automobile, bird, cat; 75 epochs.

python -m simclr_cifar.main --config=configs/c4.py
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.num_classes = 4
    return config
