"""The reference study: 4, 7 and 10 classes of CIFAR-10, 75 epochs each, 3 seeds, 10 % of the training images held out.

python -m simclr_cifar.main --mode=study --config=configs/study.py
"""

from simclr_cifar import config as config_lib


def get_config():
    return config_lib.study_defaults()
