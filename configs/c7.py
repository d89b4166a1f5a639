"""The reference study's 7 classes: airplane, automobile, bird, cat, deer, dog, frog; 75 epochs.

python -m simclr_cifar.main --config=configs/c7.py
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.num_classes = 7
    return config
