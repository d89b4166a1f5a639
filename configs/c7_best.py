"""The best embeddings of the first seven classes, as many images as in the reference study: 75 x 1000 x 7 pairs.

python -m simclr_cifar.main --config=configs/c7_best.py

The settings of configs/c4_best.py. Measured on two shared cores of an AMD EPYC, CIFAR-10's JPEG copy, seed 0, test
images: kNN accuracy 0.904, pair accuracy 0.832 after 30 epochs (60.4 minutes of training beside other work; the median
epoch took 117 s). Of the three classes left out: precision at 1 0.767, MAP@R 0.511.
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.num_classes = 7
    # Every image once an epoch, in batches of 350: 30 epochs are the study's 75 of 14,000.
    config.with_replacement = False
    config.groups_per_batch = 25
    config.batches_per_epoch = 100
    config.num_epochs = 30
    config.augmentation = 'alternating_flip,pad_and_crop,cutout'
    config.crop_padding = 4
    config.cutout_size = 8
    config.encoder = 'whitened_cnn'
    config.channels = (64, 128, 256)
    config.batch_norm_momentum = 0.6
    config.embedding_dim = 10
    config.objective = 'simplex'
    config.temperature = 0.2
    config.label_smoothing = 0.2
    config.optimizer = 'muon'
    config.learning_rate = 0.12
    config.momentum = 0.6
    config.adam_learning_rate_share = 0.08
    config.weight_decay = 0.03
    config.schedule = 'linear'
    config.warmup_share = 0.03
    config.average_decay = 0.99
    config.flip_averaging = True
    config.milestones = (30,)
    config.checkpoint_every_epochs = 1
    return config
