"""Supervised contrastive learning: ResNet-18, 200 epochs, batches of 510 images seen twice.

python -m simclr_cifar.main --config=configs/supcon_r18.py

For a GPU. Time and scores: not measured yet.
Frozen features before the head are compared: kNN accuracy (k = 200) and a linear probe, on test images,
once, after the last epoch. An epoch shows 4,998 of the 5,000 training images of each class, each once.
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.pairs = 'class_views'
    config.with_replacement = False
    config.groups_per_batch = 51
    config.batches_per_epoch = 98
    config.num_epochs = 200
    config.augmentation = 'simclr'
    config.crop_smallest_area = 0.2
    config.encoder = 'resnet18'
    config.head_channels = (512,)
    config.embedding_dim = 128
    config.compute_dtype = 'bfloat16'
    config.representation = 'features'
    config.objective = 'sup_con'
    config.temperature = 0.1
    config.optimizer = 'sgd'
    config.learning_rate = 0.5
    config.schedule = 'cosine'
    config.warmup_share = 0.05
    config.weight_decay = 1e-4
    config.milestones = (200,)
    config.eval_batch_size = 1000
    return config
