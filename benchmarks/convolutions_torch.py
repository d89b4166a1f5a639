"""ResNet-18's forward and backward pass in PyTorch."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks import convolutions as benchmark


class ResNet(nn.Module):
    """float [B, 3, H, W] -> [B, 512]."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inward, outward, size, stride, padding=size // 2, bias=False)
            for size, stride, inward, outward, _ in benchmark.layers()
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(layer.out_channels) for layer in self.convolutions)

    def forward(self, images):
        layers = zip(self.convolutions, self.norms, strict=True)

        def convolution(hidden):
            convolve, norm = next(layers)
            return norm(convolve(hidden))

        hidden = functional.relu(convolution(images), inplace=True)
        for _, stride in benchmark.blocks():
            inner = convolution(functional.relu(convolution(hidden), inplace=True))
            hidden = functional.relu(inner + (hidden if stride == 1 else convolution(hidden)), inplace=True)
        return hidden.mean(dim=(2, 3))


def both_passes(batch: int, dtype: str):
    """A repetition is one forward and backward pass; returns 'loss' and 'gradients', the norm of each kernel's."""
    dtype = getattr(torch, dtype)
    kernels, images, slope = benchmark.weights_and_images(batch)
    encoder = ResNet()
    for layer, kernel in zip(encoder.convolutions, kernels, strict=True):
        # PyTorch pads the near edges too and so drops the far ones: upside down it sees what 'SAME' does.
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel[::-1, ::-1].transpose(3, 2, 0, 1)))
    encoder.to(dtype=dtype, memory_format=torch.channels_last)
    images = torch.from_numpy(np.ascontiguousarray(images[:, ::-1, ::-1])).to(dtype).permute(0, 3, 1, 2)
    slope = torch.from_numpy(slope).to(dtype)

    def run():
        encoder.zero_grad()
        loss = (encoder(images) * slope).sum(dtype=torch.float32)
        loss.backward()
        norms = [float(layer.weight.grad.float().norm()) for layer in encoder.convolutions]
        return {'loss': float(loss.detach()), 'gradients': np.array(norms)}

    return run


def training_steps(batch: int, steps: int, compile_mode: str | None):
    """Returns a call that trains on batches of random pairs of images, and ends when the device is done.

    It is NT-Xent of a ResNet-18 and a head of two layers, in bfloat16 by autocast, with SGD of Nesterov's momentum.

    Args:
      batch: pairs of images.
      steps: of a call.
      compile_mode: torch.compile's, of all that leads from images to the loss; None: eager.
    """
    channels_last = {'device': 'cuda', 'memory_format': torch.channels_last}
    head = [nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 128, bias=False)]
    model = nn.Sequential(ResNet(), *head, nn.BatchNorm1d(128)).to(**channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.12, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    images = torch.randint(0, 256, (50_000, 32, 32, 3), dtype=torch.uint8, device='cuda')
    # The other view of each row, and what is never its own match.
    targets = (torch.arange(2 * batch, device='cuda') + batch) % (2 * batch)
    itself = torch.eye(2 * batch, dtype=torch.bool, device='cuda')

    def forward(indices):
        views = images[indices].permute(0, 3, 1, 2).float() / 255
        with torch.autocast('cuda', torch.bfloat16):
            embeddings = model(views)
        embeddings = functional.normalize(embeddings.float(), dim=1)
        logits = (embeddings @ embeddings.T / 0.5).masked_fill(itself, -torch.inf)
        return functional.cross_entropy(logits, targets)

    if compile_mode is not None:
        forward = torch.compile(forward, mode=compile_mode)

    def call():
        for _ in range(steps):
            indices = torch.randint(0, len(images), (batch,), device='cuda').repeat(2)
            optimizer.zero_grad(set_to_none=True)
            forward(indices).backward()
            optimizer.step()
        torch.cuda.synchronize()

    return call
