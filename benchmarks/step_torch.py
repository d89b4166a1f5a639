"""The training step in PyTorch: images in memory, pairs drawn for a whole epoch at once, one pass for both images."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from simclr_cifar import config as config_lib
from simclr_cifar import data

# What torch.compile keeps on disk would hide what it takes.
torch.compiler.config.force_disable_caches = True
_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class Encoder(nn.Module):
    """uint8 [B, H, W, C] to unit-norm float32 [B, embedding_dim]."""

    def __init__(self, channels: tuple[int, ...], embedding_dim: int):
        super().__init__()
        widths = zip((3, *channels), channels, strict=False)
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, kernel_size=3, stride=2) for pair in widths)
        self.dense = nn.Linear(channels[-1], embedding_dim)

    def forward(self, images):
        # A view: images lie in memory as channels_last wants them.
        hidden = images.permute(0, 3, 1, 2).float() / 255
        for convolution in self.convolutions:
            # 'SAME' of stride 2 pads the far edges only, where the size is even.
            hidden = functional.relu(convolution(functional.pad(hidden, (0, 1, 0, 1))))
        return functional.normalize(self.dense(hidden.mean(dim=(2, 3))), dim=1)


class Trainer:
    """An encoder in training.

    Args:
      num_classes: C, the first classes of the dataset.
      loss: 'cross_entropy' of the logits, or 'pytorch_metric_learning' for that library's NTXentLoss of anchors against
        reference embeddings, which is the same sum; it gives no accuracy.
      compile_mode: torch.compile's, of all that leads from indices to the loss; None: eager.
    """

    def __init__(self, num_classes: int, loss: str = 'cross_entropy', compile_mode: str | None = None):
        self.config = config_lib.defaults()
        train = data.select(data.load(self.config.dataset, 'train'), num_classes=num_classes)
        self.images = torch.from_numpy(np.array(train.images)).to(_DEVICE)
        counts = np.bincount(train.labels, minlength=num_classes)
        # Images' indices, class after class; where each begins; how many it has.
        order, starts = np.argsort(train.labels, kind='stable'), np.cumsum(counts) - counts
        self.order, self.starts, self.counts = (torch.from_numpy(part).to(_DEVICE) for part in (order, starts, counts))
        encoder = Encoder(self.config.channels, self.config.embedding_dim)
        self.encoder = encoder.to(_DEVICE, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=self.config.learning_rate, fused=True)
        self.targets = torch.arange(num_classes, device=_DEVICE)
        forward = self._cross_entropy
        if loss == 'pytorch_metric_learning':
            from pytorch_metric_learning import losses

            self.contrast = losses.NTXentLoss(temperature=self.config.temperature)
            # Another tensor: of labels that are the reference's very own, it leaves the diagonal out.
            self.reference_labels = self.targets.clone()
            forward = self._contrast
        self.forward, self.compiled = forward, compile_mode is not None
        if self.compiled:
            self.forward = torch.compile(forward, mode=compile_mode)
            # CUDA graphs copy what they are given before every replay, unless it never moves.
            torch._dynamo.mark_static_address(self.images)

    def _cross_entropy(self, indices):
        anchors, positives = self.encoder(self.images[indices]).chunk(2)
        logits = anchors @ positives.T / self.config.temperature
        accuracy = (logits.detach().argmax(dim=1) == self.targets).float().mean()
        return functional.cross_entropy(logits, self.targets), accuracy

    def _contrast(self, indices):
        anchors, positives = self.encoder(self.images[indices]).chunk(2)
        return self.contrast(anchors, self.targets, ref_emb=positives, ref_labels=self.reference_labels), None

    def draw(self, batches: int):
        """Returns indices of anchors, then positives, int64 [batches, 2C]."""
        anchors, others = (
            (torch.rand(batches, len(counts), dtype=torch.float64, device=_DEVICE) * counts).long()
            for counts in (self.counts, self.counts - 1)
        )
        positives = others + (others >= anchors)
        return torch.cat([self.order[self.starts + member] for member in (anchors, positives)], dim=1)

    def step(self, indices):
        """Trains on one batch, int64 [2C]; returns (loss, accuracy), scalars; accuracy may be None."""
        self.optimizer.zero_grad(set_to_none=True)
        loss, accuracy = self.forward(indices)
        loss.backward()
        self.optimizer.step()
        if self.compiled:  # A CUDA graph's next replay overwrites what the last returned.
            return loss.detach().clone(), None if accuracy is None else accuracy.clone()
        return loss.detach(), accuracy

    def set_weights(self, weights: list[np.ndarray]) -> None:
        """Takes kernels HWIO and [in, out], each followed by its bias, in the order of the layers."""
        with torch.no_grad():
            for layer, kernel, bias in zip(
                [*self.encoder.convolutions, self.encoder.dense], weights[::2], weights[1::2], strict=True
            ):
                kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
                layer.weight.copy_(torch.tensor(kernel))
                layer.bias.copy_(torch.tensor(bias))


def epoch(num_classes: int, batches: int, **choices):
    """A repetition is one epoch, its pairs drawn in it."""
    trainer = Trainer(num_classes, **choices)

    def run():
        history = [trainer.step(indices) for indices in trainer.draw(batches)]
        figures = {'loss': torch.stack([loss for loss, _ in history]).mean().item()}
        accuracies = [accuracy for _, accuracy in history if accuracy is not None]
        return figures | ({'accuracy': torch.stack(accuracies).mean().item()} if accuracies else {})

    return run


def losses(num_classes: int, weights: list[np.ndarray], pairs: np.ndarray, **choices):
    """A repetition returns 'losses' of training on the pairs, int [steps, 2, C], from the weights."""
    trainer = Trainer(num_classes, **choices)

    def run():
        trainer.set_weights(weights)
        batches = torch.from_numpy(pairs.reshape(len(pairs), -1).astype(np.int64)).to(_DEVICE)
        return {'losses': np.array([trainer.step(indices)[0].item() for indices in batches])}

    return run
