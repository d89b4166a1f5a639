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
