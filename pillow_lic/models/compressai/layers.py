"""Layers of the published transforms, with the parameter names that CompressAI's checkpoints have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 5
"""Side of the context model's window."""

LEAKY_SLOPE = 0.01
_AT_ONCE = 1024
"""Positions that are normalised at once."""


def conv(inputs: int, outputs: int, size: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution that keeps the size, or divides it by its stride."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """A 5x5 transposed convolution that doubles the size."""
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1)


def subpixel(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution whose channels become pixels: doubles the size (Shi et al. 2016)."""
    return nn.Sequential(conv(inputs, 4 * outputs, 3, 1), nn.PixelShuffle(2))


def as_convolution(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, in, k, k) and bias (out,) of a layer; where it doubles the size, of a convolution whose
    channels become pixels.
    """
    if isinstance(layer, nn.Sequential):
        layer = layer[0]
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    assert layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        return layer.weight, layer.bias
    # Output 2 m + a of a transposed convolution gets input m + d through tap a + 2 - 2 d.
    weight = layer.weight.transpose(0, 1)  # out, in, 5, 5
    phases = weight.new_zeros(len(weight), 2, 2, weight.shape[1], 3, 3)
    taps = [(a, d, a + 2 - 2 * d) for a in (0, 1) for d in (-1, 0, 1) if 0 <= a + 2 - 2 * d < 5]
    for a, d, row in taps:
        for b, e, column in taps:
            phases[:, a, b, :, d + 1, e + 1] = weight[:, :, row, column]
    return phases.flatten(0, 2), layer.bias.repeat_interleave(4)


def leaky() -> nn.LeakyReLU:
    """The leaky ReLU of all these networks, in place: it follows a convolution."""
    return nn.LeakyReLU(LEAKY_SLOPE, inplace=True)


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
        """Of x (B, C, h, w), in its place if channels come last there; as much at a time as caches hold."""
        x = x.contiguous(memory_format=torch.channels_last)
        positions = x.permute(0, 2, 3, 1).view(-1, x.shape[1])
        for some in torch.split(positions, _AT_ONCE if x.device.type == "cpu" else len(positions)):
            norm = torch.addmm(self.beta, some.square(), self.gamma.t()).float()
            some.mul_(norm.sqrt_() if self.inverse else norm.rsqrt_())
        return x


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
        return self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x)))).add_(x)  # type: ignore[no-any-return]


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
        return self.gdn(self.conv2(self.leaky_relu(self.conv1(x)))).add_(self.skip(x))  # type: ignore[no-any-return]


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
        return self.igdn(self.conv(self.leaky_relu(self.subpel_conv(x)))).add_(self.upsample(x))  # type: ignore[no-any-return]
