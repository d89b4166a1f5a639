"""SimCLR: ResNet-18, 200 epochs, batches of 512 images seen twice; no labels in training.

python -m simclr_cifar.main --config=configs/simclr_r18.py

For a GPU. On one NVIDIA H200, CIFAR-10's JPEG copy, seed 0, at commit 403e6ef, n = 1:
205 s of training; kNN accuracy 0.7509.
Frozen features before the head are compared: kNN accuracy (k = 200) and a linear probe, on test images,
once, after the last epoch. An epoch shows 49,664 of the 50,000 training images, each once.
"""

from simclr_cifar import config as config_lib


def get_config():
    config = config_lib.defaults()
    config.pairs = 'views'
    config.with_replacement = False
    config.groups_per_batch = 512
    config.batches_per_epoch = 97
    config.num_epochs = 200
    config.augmentation = 'simclr'
    config.encoder = 'resnet18'
    config.head_channels = (512,)
    config.embedding_dim = 128
    config.head_batch_norm = True
    config.compute_dtype = 'bfloat16'
    config.representation = 'features'
    config.objective = 'nt_xent'
    config.temperature = 0.5
    config.optimizer = 'sgd'
    config.learning_rate = 0.12
    config.schedule = 'cosine'
    config.warmup_share = 0.05
    config.weight_decay = 5e-4
    config.milestones = (200,)
    config.eval_batch_size = 1000
    return config
