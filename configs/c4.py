"""The reference study's 4 classes: airplane, automobile, bird, cat; 75 epochs.

python -m simclr_cifar.main --config=configs/c4.py

On two cores of an AMD EPYC, on CIFAR-10's JPEG copy, seed 0:
2 min 14 s from start to report, 1.38 s an epoch (median).
After 75 epochs: training accuracy 83.67 %; on test images
pair accuracy 65.34 %, precision at 1 70.78 %, precision at 10 70.20 %,
kNN accuracy 77.68 %.
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.num_classes = 4
    return config
