"""Layers of the published transforms, with the parameter names that CompressAI's checkpoints have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 5
"""Side of the context model's window."""

LEAKY_SLOPE = 0.01


def conv(inputs: int, outputs: int, size: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution that keeps the size, or divides it by its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A 5x5 transposed convolution that doubles the size."""
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1)


def subpixel(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution whose channels become pixels: doubles the size (Shi et al. 2016)."""
    return nn.Sequential(conv(inputs, 4 * outputs, 3, 1), nn.PixelShuffle(2))


def leaky() -> nn.LeakyReLU:
    """The leaky ReLU of all these networks."""
    return nn.LeakyReLU(LEAKY_SLOPE)


class GDN(nn.Module):
    """Generalised divisive normalisation (Ballé et al. 2016): x / sqrt(beta + gamma x²), or times it if inverse.

    beta (C,) and gamma (C, C) are kept as they are used; checkpoints have them reparametrised.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(0.1 * torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = F.conv2d(x.square(), self.gamma[:, :, None, None], self.beta)
        return x * (norm.sqrt() if self.inverse else norm.rsqrt())


class MaskedConv(nn.Conv2d):
    """A 5x5 convolution that sees what comes before each position in raster order (van den Oord et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, TAPS, padding=TAPS // 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.arange(TAPS * TAPS, device=x.device) < TAPS * TAPS // 2
        return F.conv2d(x, self.weight * seen.reshape(TAPS, TAPS), self.bias, padding=self.padding)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the input (Cheng et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, 1)
        self.conv2 = conv(channels, channels, 3, 1)
        self.leaky_relu = leaky()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x))))  # type: ignore[no-any-return]


class ResidualDown(nn.Module):
    """A residual block with GDN that halves the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, 2)
        self.conv2 = conv(outputs, outputs, 3, 1)
        self.leaky_relu = leaky()
        self.gdn = GDN(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.gdn(self.conv2(self.leaky_relu(self.conv1(x))))  # type: ignore[no-any-return]


class ResidualUp(nn.Module):
    """A residual block with inverse GDN that doubles the size by subpixel convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.subpel_conv = subpixel(channels, channels)
        self.conv = conv(channels, channels, 3, 1)
        self.leaky_relu = leaky()
        self.igdn = GDN(channels, inverse=True)
        self.upsample = subpixel(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(x) + self.igdn(self.conv(self.leaky_relu(self.subpel_conv(x))))  # type: ignore[no-any-return]
