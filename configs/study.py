"""The reference study: 4, 7 and 10 classes of CIFAR-10, 75 epochs, 3 seeds, 10 % of the training images held out.

python -m simclr_cifar.main --mode=study --config=configs/study.py

On two cores of an AMD EPYC, on CIFAR-10's JPEG copy, seeds 0 to 2, at commit 143e584:
30 min 40 s from start to page; with --config.num_seeds=1 11 min 16 s.
Test images at the chosen epochs, mean ± standard deviation, 4 / 7 / 10 classes:
pair accuracy 65.90 ± 1.14 / 44.94 ± 0.17 / 40.47 ± 1.08 %,
precision at 10 70.60 ± 1.33 / 50.53 ± 0.49 / 48.06 ± 1.28 %.
"""

from simclr_cifar import config as config_lib


def get_config():
    return config_lib.study_defaults()
