"""The reference study's 10 classes: all of CIFAR-10, 75 epochs.

python -m simclr_cifar.main --config=configs/c10.py
"""

from simclr_cifar import config as config_lib


def get_config():
    return config_lib.defaults()
