"""The best embeddings of the first four classes, as many images as in the reference study: 75 x 1000 x 4 pairs.

python -m simclr_cifar.main --config=configs/c4_best.py

Measured on two shared cores of an AMD EPYC, CIFAR-10's JPEG copy, seed 0, test images: kNN accuracy 0.947, pair
accuracy 0.925 after 30 epochs (50.8 minutes of training beside other work; the median epoch took 93 s). What was tried:
benchmarks/RECIPES.md.
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.num_classes = 4
    # Every image once an epoch, in batches of 400: 30 epochs are the study's 75 of 8,000.
    config.with_replacement = False
    config.groups_per_batch = 50
    config.batches_per_epoch = 50
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
